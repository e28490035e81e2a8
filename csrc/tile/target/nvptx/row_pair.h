// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../../abi/dtype.h"
#include "scalar.h"
#include "sync.h"

namespace hipdecode::tile::nvptx {

/// Maxima and sums of the two query rows that a thread has scores of, in base 2, as RunningRows
/// keeps them: four lanes share the rows lane / 4 and 8 more of a wave's 16, scores[4j], [4j + 1]
/// belong to the first and [4j + 2], [4j + 3] to the second.
template <abi::DType kType>
class RowPair {
 public:
  static constexpr float kSlack = 4, kShift = kType == abi::DType::fp16 ? 11 : 0;

  TILE_FN void clear() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      top_[i] = most_[i] = -kInfinity;
      base_[i] = sum_[i] = 0;
    }
  }

  /// Looks for the largest scores of a tile that the thread has, which are to be multiplied by
  /// `scale`.
  template <int kWords>
  TILE_FN void look(const float (&scores)[kWords], float scale) {
    scale_ = fmaxf(scale, 0x1p-126f);  // zero times what is hidden would be no number
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float most[2] = {scores[2 * i], scores[2 * i + 1]};
#pragma unroll
      for (int j = 4; j < kWords; j += 4) {
        most[0] = fmaxf(most[0], scores[j + 2 * i]);
        most[1] = fmaxf(most[1], scores[j + 2 * i + 1]);
      }
      most_[i] = fmaxf(most[0], most[1]) * scale_;
    }
  }

  /// Takes what look() found.
  /// @return whether some row's maximum was raised; then what it had counts for factor() of before
  TILE_FN bool raise() {
    if (!__any_sync(~0u, most_[0] > top_[0] + kSlack || most_[1] > top_[1] + kSlack)) return false;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float most = fmaxf(most_[i], __shfl_xor_sync(~0u, most_[i], 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      set(i, most > top_[i] + kSlack ? most : top_[i]);
    }
    return true;
  }

  /// Takes maxima that another warpgroup has raised.
  TILE_FN void take(float first, float second) {
    set(0, first);
    set(1, second);
  }

  /// Scores become weights, and are summed up.
  template <int kWords>
  TILE_FN void weigh(float (&scores)[kWords]) {
#pragma unroll
    for (int i = 0; i < kWords; ++i)
      scores[i] = exp2(__fmaf_rn(scores[i], scale_, -base_[i / 2 % 2]));
    // two sums of a row, so that one addition need not wait for another
    float sums[2][2] = {};
#pragma unroll
    for (int i = 0; i < kWords; ++i) sums[i / 2 % 2][i % 2] += scores[i];
#pragma unroll
    for (int i = 0; i < 2; ++i) sum_[i] += sums[i][0] + sums[i][1];
  }

  TILE_FN float top(int i) const { return top_[i]; }
  TILE_FN float factor(int i) const { return factor_[i]; }
  TILE_FN float sum(int i) const {
    const float two = sum_[i] + __shfl_xor_sync(~0u, sum_[i], 1);
    return two + __shfl_xor_sync(~0u, two, 2);
  }

 private:
  TILE_FN void set(int i, float top) {
    factor_[i] = top == top_[i] ? 1.0f : exp2(top_[i] - top);
    top_[i] = top;
    base_[i] = top == -kInfinity ? 0 : top - kShift;  // a row that saw nothing weighs nothing
    sum_[i] *= factor_[i];
  }

  float top_[2], most_[2], base_[2], sum_[2], factor_[2], scale_;
};

}  // namespace hipdecode::tile::nvptx
