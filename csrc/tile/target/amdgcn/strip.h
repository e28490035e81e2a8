// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "scalar.h"
#include "sync.h"

namespace hipdecode::tile {

/// Columns of a row that a wave merges together: kVec neighbours a lane, read and written as one,
/// so that counts are multiples of kVec. Addresses need be no more than an element's.
template <int kVec>
class Strip {
  typedef float Values __attribute__((ext_vector_type(kVec)));
  typedef float Floats __attribute__((ext_vector_type(kVec), aligned(4)));
  typedef __bf16 Bfloats __attribute__((ext_vector_type(kVec), aligned(2)));
  typedef _Float16 Halves __attribute__((ext_vector_type(kVec), aligned(2)));

 public:
  static constexpr int kColumns = kVec * kLanes;

  TILE_FN void clear() { sum_ = Values{}; }

  /// Partials that are about to be added.
  template <int kPartials>
  struct Partials {
    Values at[kPartials];
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
      sum_ += weights[n] != 0 ? partials.at[n] * weights[n] : Values{};
  }

  /// destination[i] = element i * scale, as bf16 or fp16.
  TILE_FN void store(void* destination, float scale, int count, abi::DType type) const {
    if (lane() * kVec >= count) return;
    const Values scaled = sum_ * scale;
    if (type == abi::DType::bf16)
      *reinterpret_cast<Bfloats*>(static_cast<__bf16*>(destination) + lane() * kVec) =
          __builtin_convertvector(scaled, Bfloats);
    else
      *reinterpret_cast<Halves*>(static_cast<_Float16*>(destination) + lane() * kVec) =
          __builtin_convertvector(scaled, Halves);
  }

 private:
  Values sum_;
};

}  // namespace hipdecode::tile
