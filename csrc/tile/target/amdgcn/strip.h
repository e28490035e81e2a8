// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "scalar.h"
#include "sync.h"

namespace hipdecode::tile {

/// Whether rows whose addresses allow it are merged faster by strips than by Row.
inline constexpr bool kStripsPay = false;

/// Columns of a row that a wave merges together: kEach times kVec neighbours a lane, read and
/// written as one, so that counts are multiples of kVec. Addresses need be no more than an
/// element's.
template <int kVec, int kEach = 1>
class Strip {
  typedef float Values __attribute__((ext_vector_type(kVec)));
  typedef float Floats __attribute__((ext_vector_type(kVec), aligned(4)));
  typedef __bf16 Bfloats __attribute__((ext_vector_type(kVec), aligned(2)));
  typedef _Float16 Halves __attribute__((ext_vector_type(kVec), aligned(2)));

 public:
  static constexpr int kColumns = kEach * kVec * kLanes;

  TILE_FN void clear() {
    for (Values& vector : sum_) vector = Values{};
  }

  /// Partials that are about to be added.
  template <int kPartials>
  struct Partials {
    Values at[kEach][kPartials];
  };
  template <int kPartials>
  static TILE_FN Partials<kPartials> load(const float* const (&from)[kPartials], int count) {
    Partials<kPartials> partials;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      // a lane without columns reads the first: no branch keeps the loads from being in flight
      const int column = first(i) < count ? first(i) : 0;
#pragma unroll
      for (int n = 0; n < kPartials; ++n)
        partials.at[i][n] = *reinterpret_cast<const Floats*>(from[n] + column);
    }
    return partials;
  }

  /// Adds weight * partial of each, in order; a weight of zero adds nothing, whatever the partial
  /// holds.
  template <int kPartials>
  TILE_FN void add(const Partials<kPartials>& partials, const float (&weights)[kPartials], int) {
#pragma unroll
    for (int n = 0; n < kPartials; ++n)
#pragma unroll
      for (int i = 0; i < kEach; ++i)
        sum_[i] += weights[n] != 0 ? partials.at[i][n] * weights[n] : Values{};
  }

  /// destination[i] = element i * scale, as bf16 or fp16.
  TILE_FN void store(void* destination, float scale, int count, abi::DType type) const {
    if (type == abi::DType::bf16)
      store_as<__bf16, Bfloats>(destination, scale, count);
    else
      store_as<_Float16, Halves>(destination, scale, count);
  }

 private:
  static TILE_FN int first(int i) { return (i * kLanes + lane()) * kVec; }

  template <class Element, class Vector>
  TILE_FN void store_as(void* destination, float scale, int count) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (first(i) < count)
        *reinterpret_cast<Vector*>(static_cast<Element*>(destination) + first(i)) =
            __builtin_convertvector(sum_[i] * scale, Vector);
  }

  Values sum_[kEach];
};

}  // namespace hipdecode::tile
