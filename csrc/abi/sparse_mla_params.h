// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"

namespace hipdecode::abi {

/// A paged cache of packed keys and the slots in it that each query token attends to. A slot is
/// block * block_size + position; what is no slot of the cache is skipped.
struct SparseCache {
  const uint8_t* blocks;   // [num_blocks] blocks of block_size tokens; null: there is no such cache
  const int32_t* indices;  // [num_indices] slots: a table [tokens, topk], or ragged
  const int32_t* indptr;   // [tokens + 1] where a token's slots begin; null: a table
  const int32_t*
      lengths;           // [tokens / tokens_per_length] slots of a table row that count; null: all
  int64_t stride_block;  // bytes
  int64_t num_indices;
  int64_t num_slots;
  int32_t block_bits;  // log2 of block_size
  int32_t topk;        // columns of a table
  int32_t tokens_per_length;
  int32_t reserved;
};
static_assert(sizeof(SparseCache) == 7 * 8 + 4 * 4);

/// Arguments of `sparse_mla_decode`. Strides are in elements. Contents of index tensors are checked
/// on the device against the sizes here.
struct SparseMlaParams {
  const void* q;           // [tokens, nhead, head_dim_qk], last dimension contiguous
  void* o;                 // [tokens, nhead, head_dim_v], bf16 or fp16
  float* lse;              // [tokens, nhead] natural log, of the keys alone; may be null
  const float* attn_sink;  // [nhead] a logit without a value in each row's denominator; may be null
  float* partial_o;        // [tokens * num_splits, nhead, head_dim_v]; null when nothing is split
  float* partial_lse;      // [tokens * num_splits, nhead]
  int32_t* arrivals;       // [tokens * row_tiles] zero before and after
  SparseCache main, extra;
  int64_t q_stride_row, q_stride_head;
  int64_t o_stride_row, o_stride_head;
  int32_t tokens, nhead;
  int32_t num_splits;  // pieces of a token's keys, each at least kMinSplitKeys
  int32_t row_tiles;   // tiles of heads
  DType o_dtype;
  float sm_scale;
  int32_t tile_heads;  // of a tile, at most its rows
  int32_t reserved;
};
static_assert(sizeof(SparseMlaParams) == 7 * 8 + 2 * sizeof(SparseCache) + 4 * 8 + 8 * 4);
static_assert(offsetof(SparseMlaParams, main) == 56);

}  // namespace hipdecode::abi
