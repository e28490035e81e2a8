// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "scalar.h"
#include "sync.h"

namespace hipdecode::tile {

/// One row of at most kMost fp32 elements, shared by the lanes of a wave: four neighbours a lane.
template <int kMost>
class Row {
 public:
  TILE_FN void clear() {
    for (Quad& quad : sum_) quad = Quad{};
  }

  /// Adds weight * partial; a weight of zero adds nothing, whatever the partial holds.
  TILE_FN void add(const float* partial, float weight, int count) {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int at = first(i);
      Quad x{};
      if (at + 4 <= count) {
        x = *reinterpret_cast<const Floats*>(partial + at);
      } else {
#pragma unroll
        for (int e = 0; e < 3; ++e)
          if (at + e < count) x[e] = partial[at + e];
      }
      // no branch on the weight: the loads of several partials stay in flight together
      sum_[i] += weight == 0 ? Quad{} : x * weight;
    }
  }

  /// destination[i] = element i * scale, as bf16, fp16 or fp32.
  TILE_FN void store(void* destination, float scale, int count, abi::DType type) const {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const Quad x = sum_[i] * scale;
      if (type == abi::DType::fp32)
        store_quad<Floats, float>(destination, x, first(i), count);
      else if (type == abi::DType::bf16)
        store_quad<Bfloats, __bf16>(destination, __builtin_convertvector(x, Bfloats), first(i),
                                    count);
      else
        store_quad<Halves, _Float16>(destination, __builtin_convertvector(x, Halves), first(i),
                                     count);
    }
  }

 private:
  typedef float Quad __attribute__((ext_vector_type(4)));
  // rows begin where the caller's tensors do: no more than an element's own alignment
  typedef float Floats __attribute__((ext_vector_type(4), aligned(4)));
  typedef __bf16 Bfloats __attribute__((ext_vector_type(4), aligned(2)));
  typedef _Float16 Halves __attribute__((ext_vector_type(4), aligned(2)));
  static constexpr int kQuads = (kMost + 4 * kLanes - 1) / (4 * kLanes);

  static TILE_FN int first(int quad) { return (quad * kLanes + lane()) * 4; }

  template <class Vector, class Element>
  static TILE_FN void store_quad(void* destination, Vector x, int at, int count) {
    Element* out = static_cast<Element*>(destination) + at;
    if (at + 4 <= count) {
      *reinterpret_cast<Vector*>(out) = x;
      return;
    }
#pragma unroll
    for (int e = 0; e < 3; ++e)
      if (at + e < count) out[e] = x[e];
  }

  Quad sum_[kQuads];
};

}  // namespace hipdecode::tile
