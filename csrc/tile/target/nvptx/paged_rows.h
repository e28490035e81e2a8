// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../../abi/dtype.h"
#include "scalar.h"
#include "sync.h"

namespace hipdecode::tile::nvptx {

/// Maxima and sums of 8 * kTiles query rows over the tokens of one wave, in base 2; scores lie as
/// multiply() leaves them, rows across. As in running_rows.h a maximum is raised only by a score
/// that exceeds it by more than kSlack, and weights are relative to a base below it.
template <int kTiles, abi::DType kOperand>
class WaveRows {
 public:
  static constexpr float kSlack = 4, kShift = kOperand == abi::DType::fp16 ? 11 : 0;
  using Scores = float[kTiles][4];

  TILE_FN void clear() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int side = 0; side < 2; ++side) bases_[t][side] = kLeast, sums_[t][side] = 0;
  }

  /// Whether one of the thread's scores raises a maximum.
  TILE_FN bool may_raise(const Scores& scores) const {
    bool higher = false;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int side = 0; side < 2; ++side)
        higher |= fmaxf(scores[t][side], scores[t][side + 2]) > limit(t, side);
    return higher;
  }

  /// Raises the maxima that the wave's scores exceed.
  /// @return what the thread's rows of a tile had counts for from now on
  TILE_FN float2 raise(const Scores& scores, int t) {
    float factors[2];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      float most = fmaxf(scores[t][side], scores[t][side + 2]);
#pragma unroll
      for (int distance = 4; distance < kLanes; distance *= 2)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, distance));
      const float base = most > limit(t, side) ? most - kShift : bases_[t][side];
      factors[side] = exp2(bases_[t][side] - base);
      bases_[t][side] = base;
      sums_[t][side] *= factors[side];
    }
    return {factors[0], factors[1]};
  }

  /// Scores become weights, and are summed up.
  TILE_FN void weigh(Scores& scores) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        float &first = scores[t][side], &second = scores[t][side + 2];
        first = exp2(first - bases_[t][side]);
        second = exp2(second - bases_[t][side]);
        sums_[t][side] += first + second;
      }
  }

  TILE_FN float base(int t, int side) const { return bases_[t][side]; }
  /// Over the tokens of the wave.
  TILE_FN float sum(int t, int side) const {
    float sum = sums_[t][side];
#pragma unroll
    for (int distance = 4; distance < kLanes; distance *= 2)
      sum += __shfl_xor_sync(~0u, sum, distance);
    return sum;
  }

 private:
  static constexpr float kLeast = -3e38f;  // finite: minus infinity less it weighs nothing

  TILE_FN float limit(int t, int side) const { return bases_[t][side] + (kShift + kSlack); }

  float bases_[kTiles][2], sums_[kTiles][2];
};

/// Scales of values enter the weights in units of a power of two that none exceeds, so that fp16
/// holds them; the output is in these units.
struct ValueUnit {
  static constexpr float kLeast = 0x1p-120f;

  /// Of a thread's two scales; infinite ones show anyhow.
  static TILE_FN float largest_of(const float (&scales)[2]) {
    const float sizes[2] = {fabsf(scales[0]), fabsf(scales[1])};
    return fmaxf(sizes[0] < kInfinity ? sizes[0] : 0, sizes[1] < kInfinity ? sizes[1] : 0);
  }
  /// The unit for a scale above the least unit.
  static TILE_FN float above(float scale) {
    const float most = fminf(scale, 0x1p120f);
    return __uint_as_float((__float_as_uint(most) & 0x7f800000u) + 0x00800000u);
  }
  static TILE_FN float inverse(float unit) {
    return __uint_as_float(0x7f000000u - __float_as_uint(unit));
  }
};

}  // namespace hipdecode::tile::nvptx
