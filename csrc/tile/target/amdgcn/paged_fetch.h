// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "lane_reduce.h"
#include "paged_plan.h"
#include "sync.h"

namespace hipdecode::tile::amdgcn {

/// One wave's part of a tile on its way from memory to registers: keys and values each have one
/// set of them, which the next part's loads take as soon as the products have used this one's.
template <class Shape>
class PagedFetch {
 public:
  using P = PagedPlan<Shape>;
  using Cache = typename P::Cache;

  U32x4 keys[P::kKeyChunks][P::kProducts];  // chunk l / 16 of four; token_of_row(l % 16) + 4 i
  U32x4 values[P::kColumnTiles];            // column l % 16 of a tile; chunk l / 16 of the part
  float key_scale, value_scale;             // of token l % 16 of this lane's chunk of values

  TILE_FN explicit PagedFetch(const Cache& cache)
      : key_stride_(kept(cache.keys.stride_block * P::kElementBytes >> 4)),
        value_stride_(kept(cache.values.stride_block * P::kElementBytes >> 4)),
        key_chunk_bytes_(kept(cache.key_chunk_stride() * P::kElementBytes)),
        value_chunk_bytes_(kept(cache.value_chunk_stride() * P::kElementBytes)),
        value_column_bytes_(kept(cache.value_column_stride() * P::kElementBytes)) {
    const uint32_t row = lane_id() % 16, chunk = lane_id() / 16;
    const uint32_t token = row / 4 * P::kChunk % kGroupTokens + row % 4;
    keys_ = bytes(cache.keys.blocks) + chunk * key_chunk_bytes_ + token * 16;
    const uint32_t first = chunk * P::kChunk % kGroupTokens;
    values_ = bytes(cache.values.blocks) + first / P::kChunk * value_chunk_bytes_ +
              row * value_column_bytes_;
    if constexpr (P::kTokenScales) {
      key_scale_stride_ = kept(cache.keys.scale_stride_block);
      value_scale_stride_ = kept(cache.values.scale_stride_block);
      key_scales_ = cache.keys.scales + row;
      value_scales_ = cache.values.scales + row;
    }
  }

  /// Looks where the part's groups of 16 tokens lie, the same for all lanes: it is waited for here
  /// and not before. @returns bit g: there is no group g; block 0 stands in for it
  TILE_FN uint32_t aim(const PagedGroup (&groups)[P::kGroups]) {
    uint32_t block[P::kGroups], first[P::kGroups], missing = 0;
#pragma unroll
    for (int g = 0; g < P::kGroups; ++g) {
      // taken here, so that nothing before can wait for it and its load is not put off until then
      block[g] = recomputed_uniform(groups[g].block);
      const bool exists = block[g] < groups[g].blocks;
      block[g] = exists ? block[g] : 0;
      first[g] = exists ? groups[g].first : 0;
      missing |= exists ? 0 : 1u << g;
    }
    const uint32_t of_keys = recomputed(lane_id()) % 16 * P::kGroups / 16;
    const uint32_t of_values = group_of_values();
    next_block_ = pick(block, of_values);
    const uint32_t key_block = pick(block, of_keys);
    next_keys_ = keys_ + (uint64_t{key_block} * key_stride_ << 4);
    if constexpr (!Cache::kBlock16) {
      next_first_ = pick(first, of_values);
      next_keys_ += uint64_t{pick(first, of_keys)} * 16;
    }
    return missing;
  }

  TILE_FN void fetch_keys() {
    const char* from = next_keys_;
#pragma unroll
    for (int j = 0; j < P::kKeyChunks; ++j) {
#pragma unroll
      for (int i = 0; i < P::kProducts; ++i) keys[j][i] = global_read<U32x4>(from + i * 64);
      from += 4 * key_chunk_bytes_;
    }
    if constexpr (P::kTokenScales) key_scale = scale_from(key_scales_, key_scale_stride_);
  }

  TILE_FN void fetch_values() {
    if constexpr (P::kTokenScales) value_scale = scale_from(value_scales_, value_scale_stride_);
    const char* from = values_ + (uint64_t{next_block_} * value_stride_ << 4);
    if constexpr (!Cache::kBlock16) from += uint64_t{next_first_ / P::kChunk} * value_chunk_bytes_;
#pragma unroll
    for (int c = 0; c < P::kColumnTiles; ++c) {
      values[c] = global_read<U32x4>(from);
      from += 16 * value_column_bytes_;
    }
  }

  /// The scale of token kToken of this lane's chunk.
  template <int kToken>
  static TILE_FN float scale_of(float scale) {
    static_assert(P::kChunk == 16, "a lane of the chunk's 16 for each token");
    return std::bit_cast<float>(dpp<kDppRowBroadcast + kToken>(std::bit_cast<uint32_t>(scale)));
  }

  /// Of each token of this lane's chunk a number, times the token's scale. One instruction each:
  /// multiplied in pairs, as the compiler would, they need a register each for the scales.
  static TILE_FN void scale(float scale, F32x4 (&tokens)[P::kProducts]) {
    unrolled<P::kChunk>(
        [&](auto n) { tokens[n / 4][n % 4] = own(tokens[n / 4][n % 4] * scale_of<n>(scale)); });
  }

  /// The group of 16 tokens that this lane's chunk of values is part of.
  static TILE_FN uint32_t group_of_values() { return recomputed(lane_id()) / 16 * P::kGroups / 4; }

 private:
  const char *keys_, *values_;  // what this lane reads first of block 0
  const float *key_scales_, *value_scales_;
  const char* next_keys_;
  uint32_t next_block_, next_first_;    // of this lane's chunk of values; first token in its block
  uint32_t key_stride_, value_stride_;  // from block to block: in 16 bytes
  uint32_t key_scale_stride_, value_scale_stride_;                     // in scales
  uint32_t key_chunk_bytes_, value_chunk_bytes_, value_column_bytes_;  // within a block

  TILE_FN float scale_from(const float* scales, uint32_t stride) const {
    const float* from = scales + uint64_t{next_block_} * stride;
    return global_read<float>(Cache::kBlock16 ? from : from + next_first_);
  }

  /// A stride that fits 32 bits; in a vector register where scalar ones are few.
  static TILE_FN uint32_t kept(int64_t stride) {
    const auto low = static_cast<uint32_t>(stride);
    return P::kTokenScales && !Cache::kBlock16 ? own(low) : low;
  }
  static TILE_FN const char* bytes(const typename Cache::Element* elements) {
    return reinterpret_cast<const char*>(elements);
  }

  template <int kCount>
  static TILE_FN uint32_t pick(const uint32_t (&values)[kCount], uint32_t which) {
    uint32_t picked = values[0];
#pragma unroll
    for (uint32_t n = 1; n < kCount; ++n) picked = which >= n ? values[n] : picked;
    return picked;
  }
};

}  // namespace hipdecode::tile::amdgcn
