// SPDX-License-Identifier: MIT
#pragma once

#include "../../dtypes.h"
#include "../../softmax.h"
#include "entry.h"

namespace hipdecode::tile {

/// 2^x and log2(x) of the special function unit: 2 ulp, results below 2^-126 are zero.
TILE_FN float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
TILE_FN float log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace hipdecode::tile
