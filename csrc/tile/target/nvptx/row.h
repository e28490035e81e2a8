// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "convert.h"
#include "sync.h"

namespace hipdecode::tile {

/// Partials that a wave has on their way where it merges whole rows, and into how many parts a row
/// is divided where many waves merge few rows.
inline constexpr int kMergeAhead = 4, kMergeParts = 4;

/// Four neighbouring columns of a row, in one lane.
struct Quad {
  float values[4];

  /// @param from divisible by 16
  TILE_FN void load(const float* from) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
  }
  TILE_FN void add(const Quad& other, float weight) {
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] += other.values[i] * weight;
  }
  /// destination[i ... i + 3] = values * scale, as store_four() has it.
  TILE_FN void store(void* destination, int i, float scale, abi::DType type) const {
    nvptx::store_four(destination, i,
                      {values[0] * scale, values[1] * scale, values[2] * scale, values[3] * scale},
                      type);
  }
};

/// One row of at most kMost fp32 elements, shared by the lanes of a wave: element i is in lane
/// i % 32, so that rows may begin anywhere.
template <int kMost>
class Row {
  static constexpr int kEach = (kMost + kLanes - 1) / kLanes;

 public:
  using Quad = tile::Quad;

  TILE_FN void clear() {
#pragma unroll
    for (float& value : values_) value = 0;
  }

  /// Rows that are about to be added: the columns that are in a lane.
  template <int kPartials>
  struct Partials {
    float values[kEach][kPartials];
  };
  template <int kPartials>
  static TILE_FN Partials<kPartials> load(const float* const (&from)[kPartials], int count) {
    Partials<kPartials> partials;  // no branch between the loads: all are in flight together
#pragma unroll
    for (int i = 0; i < kEach; ++i)
#pragma unroll
      for (int n = 0; n < kPartials; ++n)
        partials.values[i][n] = i * kLanes + lane() < count ? from[n][i * kLanes + lane()] : 0;
    return partials;
  }

  /// Adds weight * partial of each, in order; a weight of zero adds nothing, whatever the partial
  /// holds.
  template <int kPartials>
  TILE_FN void add(const Partials<kPartials>& partials, const float (&weights)[kPartials], int) {
#pragma unroll
    for (int i = 0; i < kEach; ++i)
#pragma unroll
      for (int n = 0; n < kPartials; ++n)
        values_[i] += weights[n] != 0 ? partials.values[i][n] * weights[n] : 0;
  }

  /// destination[i] = element i * scale, as that type.
  TILE_FN void store(void* destination, float scale, int count, abi::DType type) const {
    if (type == abi::DType::fp32) {
      auto* to = static_cast<float*>(destination) + lane();
#pragma unroll
      for (int i = 0; i < kEach; ++i)
        if (i * kLanes + lane() < count) to[i * kLanes] = values_[i] * scale;
    } else if (type == abi::DType::fp8_e4m3fn) {
#pragma unroll
      for (int i = 0; i < kEach; ++i)
        if (i * kLanes + lane() < count)
          nvptx::store_one(destination, i * kLanes + lane(), values_[i] * scale, type);
    } else {
      auto* to = static_cast<uint16_t*>(destination) + lane();
#pragma unroll
      for (int i = 0; i < kEach; ++i)
        if (i * kLanes + lane() < count)
          to[i * kLanes] = static_cast<uint16_t>(nvptx::pack_as(values_[i] * scale, 0, type));
    }
  }

 private:
  float values_[kEach];
};

}  // namespace hipdecode::tile
