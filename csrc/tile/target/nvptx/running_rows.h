// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../../abi/dtype.h"
#include "scalar.h"
#include "sync.h"

namespace hipdecode::tile::nvptx {

/// Maximum and sum of kRows query rows of a warpgroup, in base 2. A thread's values v belong to
/// rows row_of(v), two tokens each, in the layout of wgmma.h; besides, each lane looks after one
/// row. A maximum is raised only by a score that exceeds it by more than kSlack, so that rescaling
/// is rare. Weights are relative to a base below the maximum: they stay below 2^15, and of what is
/// small next to the largest fp16 keeps as much as it can.
template <int kRows, abi::DType kType>
class RunningRows {
 public:
  static constexpr int kValues = kRows / 4;
  static constexpr float kSlack = 4, kShift = kType == abi::DType::fp16 ? 11 : 0;
  static_assert(kValues == 4 || kValues == 8);

  static TILE_FN int row_of(int value) { return value / 2 * 8 + lane() % 4 * 2 + value % 2; }
  /// The row that this lane looks after; with 16 rows two lanes share one.
  static TILE_FN int own_row() {
    const int g = lane() / 4;
    const int value = kValues == 8 ? g % 2 * 4 + g / 2 % 2 * 2 + g / 4 : g % 2 * 2 + g / 2 % 2;
    return row_of(value);
  }

  TILE_FN void clear() {
    own_ = -kInfinity;
#pragma unroll
    for (int v = 0; v < kValues; ++v) base_[v] = sums_[v] = 0;
    fresh_ = true;
  }

  /// Whether one of the thread's scores may raise a maximum; raise() knows.
  TILE_FN bool may_raise(const float (&scores)[kRows / 2]) const {
    bool higher = fresh_;
#pragma unroll
    for (int v = 0; v < kValues; ++v)
      higher |= fmaxf(scores[low(v)], scores[low(v) + 2]) > base_[v] + (kShift + kSlack);
    return higher;
  }

  /// The largest score of the wave's tokens for the lane's row. Halving what is exchanged at each
  /// step leaves one row to a lane.
  static TILE_FN float largest(const float (&scores)[kRows / 2]) {
    float most[kValues];
#pragma unroll
    for (int v = 0; v < kValues; ++v) most[v] = fmaxf(scores[low(v)], scores[low(v) + 2]);
#pragma unroll
    for (int half = kValues / 2, distance = 4; half > 0; half /= 2, distance *= 2) {
      const bool upper = (lane() & distance) != 0;
#pragma unroll
      for (int v = 0; v < half; ++v) {
        const float kept = upper ? most[v + half] : most[v];
        const float sent = upper ? most[v] : most[v + half];
        most[v] = fmaxf(kept, __shfl_xor_sync(~0u, sent, distance));
      }
    }
    return kValues == 8 ? most[0] : fmaxf(most[0], __shfl_xor_sync(~0u, most[0], 16));
  }

  /// Takes the largest score of all tokens for the lane's row.
  /// @return whether some row's maximum was raised; then what it had counts for factor() of before
  TILE_FN bool raise(float most) {
    const bool higher = most > own_ + kSlack;
    factor_ = 1;
    if (!__any_sync(~0u, higher)) return false;
    if (higher) {
      factor_ = exp2(own_ - most);
      own_ = most;
    }
    fresh_ = __any_sync(~0u, own_ == -kInfinity);  // a row that saw nothing weighs nothing
    const float base = own_ == -kInfinity ? 0 : own_ - kShift;
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      base_[v] = __shfl_sync(~0u, base, lane_of(v));
      sums_[v] *= __shfl_sync(~0u, factor_, lane_of(v));
    }
    return true;
  }

  /// Scores become weights, and are summed up.
  TILE_FN void weigh(float (&scores)[kRows / 2]) {
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      float &first = scores[low(v)], &second = scores[low(v) + 2];
      first = exp2(first - base_[v]);
      second = exp2(second - base_[v]);
      sums_[v] += first + second;
    }
  }

  TILE_FN float own_base() const { return own_ - kShift; }
  TILE_FN float own_factor() const { return factor_; }
  TILE_FN float factor(int value) const { return __shfl_sync(~0u, factor_, lane_of(value)); }
  /// Over the tokens of the wave.
  TILE_FN float sum(int value) const {
    float sum = sums_[value];
#pragma unroll
    for (int distance = 4; distance < kLanes; distance *= 2)
      sum += __shfl_xor_sync(~0u, sum, distance);
    return sum;
  }

 private:
  static constexpr int low(int value) { return value / 2 * 4 + value % 2; }
  static TILE_FN int lane_of(int value) {
    const int g =
        kValues == 8 ? value / 4 + value / 2 % 2 * 2 + value % 2 * 4 : value / 2 + value % 2 * 2;
    return lane() % 4 + 4 * g;
  }

  bool fresh_;  // some row saw nothing yet
  float own_, factor_, base_[kValues], sums_[kValues];
};

}  // namespace hipdecode::tile::nvptx
