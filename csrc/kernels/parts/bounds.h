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

/// a / b, which are not negative; in front of everything else a division is worth a branch.
TILE_FN int32_t quotient(int32_t a, int32_t b) {
  return b == 1 ? a : static_cast<int32_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b));
}

}  // namespace hipdecode::kernels
