// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../tile/tile.h"

namespace hipdecode::kernels {

TILE_FN int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

TILE_FN int32_t clamp32(int64_t value, int32_t low, int32_t high) {
  return static_cast<int32_t>(clamp(value, low, high));
}

}  // namespace hipdecode::kernels
