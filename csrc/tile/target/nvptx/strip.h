// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "convert.h"
#include "sync.h"

namespace hipdecode::tile {

/// Whether rows whose addresses allow it are merged faster by strips than by Row.
inline constexpr bool kStripsPay = true;

/// Columns of a row that a wave merges together: kEach times kVec neighbours a lane, read and
/// written as one, so that addresses and counts are multiples of kVec elements.
template <int kVec, int kEach = 4>
class Strip {
  struct alignas(kVec * sizeof(float)) Floats {
    float at[kVec];
  };
  struct alignas(kVec * sizeof(uint16_t)) Halves {
    uint16_t at[kVec];
  };

 public:
  static constexpr int kColumns = kEach * kVec * kLanes;
  static constexpr bool kLoadsSome = true;

  TILE_FN void clear() {
#pragma unroll
    for (Floats& vector : sum_) vector = {};
  }

  /// Partials that are about to be added.
  template <int kPartials>
  struct Partials {
    Floats at[kEach][kPartials];
  };
  template <int kPartials>
  static TILE_FN Partials<kPartials> load(const float* const (&from)[kPartials], int partials_left,
                                          int count) {
    Partials<kPartials> partials;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      // a lane without columns reads the first: no branch keeps the loads from being in flight
      const int column = first(i) < count ? first(i) : 0;
#pragma unroll
      for (int n = 0; n < kPartials; ++n)
        partials.at[i][n] =
            n < partials_left ? *reinterpret_cast<const Floats*>(from[n] + column) : Floats{};
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
#pragma unroll
        for (int v = 0; v < kVec; ++v)
          if (weights[n] != 0)
            sum_[i].at[v] = fmaf(partials.at[i][n].at[v], weights[n], sum_[i].at[v]);
  }

  /// destination[i] = element i * scale, as bf16 or fp16.
  TILE_FN void store(void* destination, float scale, int count, abi::DType type) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      Halves out;
      if constexpr (kVec == 1) {
        out.at[0] = static_cast<uint16_t>(nvptx::pack_as(sum_[i].at[0] * scale, 0, type));
      } else {
        uint32_t words[kVec / 2];
#pragma unroll
        for (int v = 0; v < kVec; v += 2)
          words[v / 2] = nvptx::pack_as(sum_[i].at[v] * scale, sum_[i].at[v + 1] * scale, type);
        __builtin_memcpy(&out, words, sizeof(out));
      }
      if (first(i) < count)
        *reinterpret_cast<Halves*>(static_cast<uint16_t*>(destination) + first(i)) = out;
    }
  }

 private:
  static TILE_FN int first(int i) { return (i * kLanes + lane()) * kVec; }

  Floats sum_[kEach];
};

}  // namespace hipdecode::tile
