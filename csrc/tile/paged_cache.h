// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "dtypes.h"

namespace hipdecode::tile {

/// How fp8 keys and values of a paged cache are scaled: all by one factor, or each token of each kv
/// head by its own. One factor is the kernel's business; a scale a token is that of the tiles.
enum class PagedScales { tensor, token };

/// Which paged caches a kernel reads. block16: blocks of 16 tokens without gaps, values as
/// [16 / x, head_dim, x], so that every offset within a block is known to the compiler. any: any
/// multiple of 16 tokens, and the strides of the cache.
enum class PagedLayout { block16, any };

inline constexpr int kGroupTokens = 16;  // tokens that lie in one block, whatever its size

/// Sixteen tokens of a request, by an entry of its block table that may still be on its way: what
/// asks for `block` waits for it.
struct PagedGroup {
  uint32_t block, blocks;  // block ids from `blocks` on name no block
  uint32_t first;          // of the block's tokens; a multiple of 16

  constexpr bool exists() const { return block < blocks; }
};

/// A paged cache as one kv head sees it; see abi/paged_attention_params.h. A chunk is 16 bytes.
template <class Shape>
struct PagedCache {
  using Element = typename Storage<Shape::kKvDType>::Type;
  static constexpr int kChunk = 16 / static_cast<int>(sizeof(Element));
  static constexpr bool kBlock16 = Shape::kLayout == PagedLayout::block16;

  struct Half {
    const Element* blocks;  // of block 0
    const float* scales;    // one a token, of block 0; not read unless PagedScales::token
    int64_t stride_block, scale_stride_block;
    int64_t stride_chunk, stride_column;
  };
  Half keys, values;

  constexpr int64_t key_chunk_stride() const {
    return kBlock16 ? kGroupTokens * kChunk : keys.stride_chunk;
  }
  constexpr int64_t value_chunk_stride() const {
    return kBlock16 ? Shape::kHeadDim * kChunk : values.stride_chunk;
  }
  constexpr int64_t value_column_stride() const { return kBlock16 ? kChunk : values.stride_column; }

  /// Columns [0, kChunk) of the group's first token: token t is t chunks on, columns c * kChunk are
  /// c * key_chunk_stride() on.
  constexpr const Element* keys_of(const PagedGroup& group) const {
    return keys.blocks + int64_t{group.block} * keys.stride_block + int64_t{group.first} * kChunk;
  }

  /// Column 0 of the group's first kChunk tokens: column d is d * value_column_stride() on, tokens
  /// c * kChunk are c * value_chunk_stride() on.
  constexpr const Element* values_of(const PagedGroup& group) const {
    return values.blocks + int64_t{group.block} * values.stride_block +
           group.first / kChunk * value_chunk_stride();
  }

  /// The scale of the group's first token; token t is t on.
  constexpr const float* key_scales_of(const PagedGroup& group) const {
    return keys.scales + int64_t{group.block} * keys.scale_stride_block + group.first;
  }
  constexpr const float* value_scales_of(const PagedGroup& group) const {
    return values.scales + int64_t{group.block} * values.scale_stride_block + group.first;
  }
};

}  // namespace hipdecode::tile
