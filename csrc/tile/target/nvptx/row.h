// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "convert.h"
#include "sync.h"

namespace hipdecode::tile {

/// One row of at most kMost fp32 elements, shared by the lanes of a wave: element i is in lane
/// i % 32, so that rows may begin anywhere.
template <int kMost>
class Row {
 public:
  TILE_FN void clear() {
#pragma unroll
    for (float& value : values_) value = 0;
  }

  /// Adds weight * partial; a weight of zero adds nothing, whatever the partial holds.
  TILE_FN void add(const float* partial, float weight, int count) {
    // no branch on the weight: the loads of several partials stay in flight together
    const bool counts = weight != 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (i * kLanes >= count) break;
      const float x = i * kLanes + lane() < count ? partial[i * kLanes + lane()] : 0;
      values_[i] += counts ? x * weight : 0;
    }
  }

  /// destination[i] = element i * scale, as bf16, fp16 or fp32.
  TILE_FN void store(void* destination, float scale, int count, abi::DType type) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (i * kLanes + lane() < count)
        nvptx::store_one(destination, i * kLanes + lane(), values_[i] * scale, type);
  }

 private:
  static constexpr int kEach = (kMost + kLanes - 1) / kLanes;
  float values_[kEach];
};

}  // namespace hipdecode::tile
