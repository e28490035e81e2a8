// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "registers.h"
#include "scalar.h"
#include "sync.h"

namespace hipdecode::tile {

/// One row of at most kMost fp32 elements, shared by the lanes of a wave: four neighbours a lane,
/// and up to three that are left over in the first lanes.
template <int kMost>
class Row {
 public:
  TILE_FN void clear() {
    for (Quad& quad : quads_) quad = Quad{};
    rest_ = 0;
  }

  /// Adds weight * partial; a weight of zero adds nothing, whatever the partial holds.
  TILE_FN void add(const float* partial, float weight, int count) {
    // no branch on the weight: the loads of several partials stay in flight together
    const bool counts = weight != 0;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      if (first(i) + 4 > count) break;
      const Quad x = *reinterpret_cast<const Floats*>(partial + first(i));
      quads_[i] += counts ? x * weight : Quad{};
    }
    if (lane() < count % 4) rest_ += counts ? partial[count / 4 * 4 + lane()] * weight : 0;
  }

  /// destination[i] = element i * scale, as bf16, fp16 or fp32.
  TILE_FN void store(void* destination, float scale, int count, abi::DType type) const {
    if (type == abi::DType::fp32)
      store_as<float, Floats>(destination, scale, count);
    else if (type == abi::DType::bf16)
      store_as<__bf16, Bfloats>(destination, scale, count);
    else
      store_as<_Float16, Halves>(destination, scale, count);
  }

 private:
  typedef float Quad __attribute__((ext_vector_type(4)));
  // rows begin where the caller's tensors do: no more than an element's own alignment
  typedef float Floats __attribute__((ext_vector_type(4), aligned(4)));
  typedef __bf16 Bfloats __attribute__((ext_vector_type(4), aligned(2)));
  typedef _Float16 Halves __attribute__((ext_vector_type(4), aligned(2)));
  static constexpr int kQuads = (kMost + 4 * kLanes - 1) / (4 * kLanes);

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

  Quad quads_[kQuads];
  float rest_;
};

}  // namespace hipdecode::tile
