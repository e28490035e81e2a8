// SPDX-License-Identifier: MIT
#pragma once

namespace hipdecode::tile {

inline constexpr float kInfinity = __builtin_inff();
inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

/// What the accumulated values of a row are multiplied by: rows that saw nothing come out as zero.
constexpr float row_scale(float sum, float value_scale) {
  return sum == 0 ? 0.0f : value_scale / sum;
}

/// As row_scale() for values of scale 1 beside an attention sink: a logit without a value that
/// joins the denominator. `maximum` is the row's in base 2, `sum` is relative to it.
template <class Exp2>
constexpr float row_scale_beside(float sink, float maximum, float sum, Exp2 exp2) {
  if (sink == -kInfinity) return row_scale(sum, 1.0f);
  if (sum == 0 || sink == kInfinity) return 0;
  const float logit = sink * kLog2E, top = logit > maximum ? logit : maximum;
  const float share = exp2(maximum - top);
  return share / (sum * share + exp2(logit - top));
}

/// Natural log-sum-exp of a row from its maximum in base 2, its sum and log2 of that sum.
constexpr float row_lse(float maximum, float sum, float log2_sum) {
  return sum == 0 ? -kInfinity : (maximum + log2_sum) * kLn2;
}

}  // namespace hipdecode::tile
