// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "global.h"
#include "registers.h"
#include "scalar.h"
#include "sync.h"

namespace hipdecode::tile {

/// Partials that a wave has on their way where it merges whole rows, and into how many parts a row
/// is divided where many waves merge few rows.
inline constexpr int kMergeAhead = 1, kMergeParts = 1;

/// One row of at most kMost fp32 elements, shared by the lanes of a wave: four neighbours a lane,
/// and up to three that are left over in the first lanes.
template <int kMost>
class Row {
  typedef float Quad __attribute__((ext_vector_type(4)));
  // rows begin where the caller's tensors do: no more than an element's own alignment
  typedef float Floats __attribute__((ext_vector_type(4), aligned(4)));
  typedef __bf16 Bfloats __attribute__((ext_vector_type(4), aligned(2)));
  typedef _Float16 Halves __attribute__((ext_vector_type(4), aligned(2)));
  static constexpr int kQuads = (kMost + 4 * kLanes - 1) / (4 * kLanes);

 public:
  TILE_FN void clear() {
    for (Quad& quad : quads_) quad = Quad{};
    rest_ = 0;
  }

  /// Rows that are about to be added: the columns that are in a lane.
  template <int kPartials>
  struct Partials {
    Quad quads[kQuads][kPartials];
    float rest[kPartials];
  };
  template <int kPartials>
  static TILE_FN Partials<kPartials> load(const float* const (&from)[kPartials], int count) {
    Partials<kPartials> partials;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      if (first(i) + 4 > count) break;
#pragma unroll
      for (int n = 0; n < kPartials; ++n)
        partials.quads[i][n] = *reinterpret_cast<const Floats*>(from[n] + first(i));
    }
#pragma unroll
    for (int n = 0; n < kPartials; ++n)
      partials.rest[n] = lane() < count % 4 ? from[n][count / 4 * 4 + lane()] : 0;
    return partials;
  }

  /// Adds weight * partial of each, in order; a weight of zero adds nothing, whatever the partial
  /// holds.
  template <int kPartials>
  TILE_FN void add(const Partials<kPartials>& partials, const float (&weights)[kPartials],
                   int count) {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      if (first(i) + 4 > count) break;
#pragma unroll
      for (int n = 0; n < kPartials; ++n)
        quads_[i] += weights[n] != 0 ? partials.quads[i][n] * weights[n] : Quad{};
    }
#pragma unroll
    for (int n = 0; n < kPartials; ++n)
      rest_ += weights[n] != 0 ? partials.rest[n] * weights[n] : 0;
  }

  /// destination[i] = element i * scale, as bf16, fp16, fp32 or the machine's fp8, which saturates.
  TILE_FN void store(void* destination, float scale, int count, abi::DType type) const {
    if (type == abi::DType::fp32)
      store_as<float, Floats>(destination, scale, count);
    else if (type == abi::DType::bf16)
      store_as<__bf16, Bfloats>(destination, scale, count);
    else if (type == abi::DType::fp16)
      store_as<_Float16, Halves>(destination, scale, count);
    else
      store_as_fp8(destination, scale, count);
  }

 private:
  /// Recomputed, so that a kernel's first row and its last do not share a register in between.
  static TILE_FN int first(int quad) { return (quad * kLanes + amdgcn::recomputed(lane())) * 4; }

  template <class Element, class Four>
  TILE_FN void store_as(void* destination, float scale, int count) const {
    auto* out = static_cast<Element*>(destination);
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      if (first(i) + 4 > count) break;
      *reinterpret_cast<Four*>(out + first(i)) = __builtin_convertvector(quads_[i] * scale, Four);
    }
    if (lane() < count % 4) out[count / 4 * 4 + lane()] = static_cast<Element>(rest_ * scale);
  }

  TILE_FN void store_as_fp8(void* destination, float scale, int count) const {
    auto* out = static_cast<uint8_t*>(destination);
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      if (first(i) + 4 > count) break;
      amdgcn::global_write(reinterpret_cast<uint64_t>(out + first(i)),
                           amdgcn::pack4_fp8_saturated(quads_[i] * scale));
    }
    if (lane() < count % 4)
      out[count / 4 * 4 + lane()] =
          static_cast<uint8_t>(amdgcn::pack4_fp8_saturated(amdgcn::F32x4{rest_ * scale}));
  }

  Quad quads_[kQuads];
  float rest_;
};

}  // namespace hipdecode::tile
