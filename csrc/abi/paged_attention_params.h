// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"

namespace hipdecode::abi {

/// Keys or values of a paged cache: blocks of block_size tokens, a multiple of 16, for each kv head
/// chunks of 16 bytes, x = 16 / element size elements each. Strides are in elements. A chunk is x
/// columns of one token (keys) or one column of x tokens (values), and lies, counted from the
/// block's and the head's first element,
/// keys: at (column / x) * stride_chunk + token * x,
/// values: at (token / x) * stride_chunk + column * stride_column.
struct PagedTensor {
  const void* blocks;                             // [num_blocks, nhead_kv, ...]
  const float* scale;                             // [1], or one a token; null means 1
  int64_t stride_block, stride_head;              // multiples of x, as all of them are
  int64_t stride_chunk, stride_column;            // stride_column: values only
  int64_t scale_stride_block, scale_stride_head;  // of a scale a token; tokens are neighbours
};
static_assert(sizeof(PagedTensor) == 2 * 8 + 6 * 8);

/// Arguments of `paged_attention`. Strides are in elements. Nothing here is trusted on the device:
/// block ids, lengths and rows are checked against the sizes below.
struct PagedAttentionParams {
  const void* q;             // [rows_q, nhead, head_dim], last dimension contiguous
  void* o;                   // [rows_q, nhead, head_dim], bf16, fp16 or fp8
  float* lse;                // [rows_q, nhead] natural log; may be null
  float* partial_o;          // [rows_q * num_splits, nhead, head_dim]; null when nothing is split
  float* partial_lse;        // [rows_q * num_splits, nhead]
  int32_t* arrivals;         // [batch * nhead_kv * row_tiles] zero before and after
  const int32_t* qo_indptr;  // [batch + 1] rows of q; null: max_seqlen_q rows a request
  const int32_t* block_tables;  // [batch, max_blocks] block ids; what names no block is skipped
  const int32_t* context_lens;  // [batch] tokens of a request, those of this step included
  const float* out_scale;       // [1] the output is divided by it; null means 1
  PagedTensor k, v;
  int64_t q_stride_row, q_stride_head;
  int64_t o_stride_row, o_stride_head;
  int64_t table_stride;  // from request to request
  int64_t num_blocks;
  int64_t rows_q;
  int32_t batch, nhead, nhead_kv;
  int32_t gqa;           // nhead / nhead_kv
  int32_t max_seqlen_q;  // query tokens of a request, at most
  int32_t block_size;
  int32_t max_blocks;         // of a request: columns of block_tables
  int32_t num_splits;         // pieces of a request's keys, each at least kMinSplitTokens
  int32_t row_tiles;          // tiles of packed rows of one kv head of a request
  int32_t together;           // all blocks of the launch run at once and may wait for each other
  uint32_t group_multiplier;  // group g of 16 tokens is in table column g * multiplier >> shift
  int32_t group_shift;
  DType o_dtype;
  float sm_scale;
};
static_assert(sizeof(PagedAttentionParams) == 10 * 8 + 2 * sizeof(PagedTensor) + 7 * 8 + 14 * 4);
static_assert(offsetof(PagedAttentionParams, k) == 80);

}  // namespace hipdecode::abi
