// SPDX-License-Identifier: MIT
#pragma once

namespace hipdecode::tile {

inline constexpr float kInfinity = __builtin_inff();
inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

/// What the accumulated values of a row are multiplied by: rows that saw nothing come out as zero.
constexpr float row_scale(float sum, float value_scale) {
  return sum == 0 ? 0.0f : value_scale / sum;
}

/// The share of a row's softmax that its keys keep beside an attention sink: a logit without a
/// value that joins the denominator. `lse2` is the row's log-sum-exp in base 2.
template <class Exp2>
constexpr float share_beside(float sink, float lse2, Exp2 exp2) {
  if (sink == -kInfinity) return 1;
  if (sink == kInfinity) return 0;
  const float logit = sink * kLog2E, top = logit > lse2 ? logit : lse2;
  const float keys = exp2(lse2 - top);
  return keys / (keys + exp2(logit - top));
}

/// Natural log-sum-exp of a row from its maximum in base 2, its sum and log2 of that sum.
constexpr float row_lse(float maximum, float sum, float log2_sum) {
  return sum == 0 ? -kInfinity : (maximum + log2_sum) * kLn2;
}

}  // namespace hipdecode::tile
