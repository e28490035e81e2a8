// SPDX-License-Identifier: MIT
#pragma once

namespace hipdecode::tile {

inline constexpr float kInfinity = __builtin_inff();
inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

/// What the accumulated values of a row are multiplied by: rows that saw nothing come out as zero.
constexpr float row_scale(float sum, float value_scale) {
  return sum == 0 ? 0.0f : value_scale / sum;
}

/// Natural log-sum-exp of a row from its maximum in base 2, its sum and log2 of that sum.
constexpr float row_lse(float maximum, float sum, float log2_sum) {
  return sum == 0 ? -kInfinity : (maximum + log2_sum) * kLn2;
}

}  // namespace hipdecode::tile
