// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "convert.h"
#include "sync.h"

namespace hipdecode::tile {

/// Columns of a row that a wave merges together: kVec neighbours a lane, read and written as one,
/// so that addresses and counts are multiples of kVec elements.
template <int kVec>
class Strip {
  struct alignas(kVec * sizeof(float)) Floats {
    float at[kVec];
  };
  struct alignas(kVec * sizeof(uint16_t)) Halves {
    uint16_t at[kVec];
  };

 public:
  static constexpr int kColumns = kVec * kLanes;

  TILE_FN void clear() { sum_ = {}; }

  /// Partials that are about to be added.
  template <int kPartials>
  struct Partials {
    Floats at[kPartials];
  };
  template <int kPartials>
  static TILE_FN Partials<kPartials> load(const float* const (&from)[kPartials], int count) {
    // a lane without columns reads the first: no branch keeps the loads from being in flight
    const int column = lane() * kVec < count ? lane() * kVec : 0;
    Partials<kPartials> partials;
#pragma unroll
    for (int n = 0; n < kPartials; ++n)
      partials.at[n] = *reinterpret_cast<const Floats*>(from[n] + column);
    return partials;
  }

  /// Adds weight * partial of each, in order; a weight of zero adds nothing, whatever the partial
  /// holds.
  template <int kPartials>
  TILE_FN void add(const Partials<kPartials>& partials, const float (&weights)[kPartials], int) {
#pragma unroll
    for (int n = 0; n < kPartials; ++n)
#pragma unroll
      for (int i = 0; i < kVec; ++i)
        sum_.at[i] += weights[n] != 0 ? partials.at[n].at[i] * weights[n] : 0;
  }

  /// destination[i] = element i * scale, as bf16 or fp16.
  TILE_FN void store(void* destination, float scale, int count, abi::DType type) const {
    if (lane() * kVec >= count) return;
    Halves out;
#pragma unroll
    for (int i = 0; i < kVec; ++i)
      out.at[i] = static_cast<uint16_t>(nvptx::pack_as(sum_.at[i] * scale, 0, type));
    *reinterpret_cast<Halves*>(static_cast<uint16_t*>(destination) + lane() * kVec) = out;
  }

 private:
  Floats sum_;
};

}  // namespace hipdecode::tile
