// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"
#include "work_item.h"

namespace hipdecode::abi {

/// Arguments of `mla_decode_hk` and `mla_decode_persistent`. Strides are in elements. Nothing here
/// is trusted on the device: page ids, index ranges and rows are checked against the sizes below.
struct MlaDecodeParams {
  const void* q;       // [rows_q, nhead, head_dim_qk], last dimension contiguous
  const void* kv;      // [num_pages, page_size, 1, head_dim_qk]; V is its first head_dim_v columns
  void* o;             // [rows_q, nhead, head_dim_v], bf16 or fp16
  float* lse;          // [rows_q, nhead] natural log; may be null
  float* partial_o;    // [partial_rows, nhead, head_dim_v] normalised; null when nothing is split
  float* partial_lse;  // [partial_rows, nhead] natural log
  const int32_t* qo_indptr;          // [batch + 1] rows of q
  const int32_t* kv_indptr;          // [batch + 1] pages
  const int32_t* kv_indices;         // [num_kv_indices] page ids; negative ids are skipped
  const int32_t* kv_last_page_lens;  // [batch] tokens in the last page; null means full pages
  const int32_t* work_indptr;        // [clusters + 1] (persistent)
  const WorkItem* work_info;         // [num_works] (persistent)
  int32_t* arrivals;           // [batch * row_tiles] zero before and after (hk with num_splits > 1)
  const float* q_scale;        // [1] dequantisation scale of an fp8 q; null means 1
  const float* kv_scale;       // [1] dequantisation scale of kv; null means 1
  const int32_t* g_kv_indptr;  // [batch + 1] tokens over all ranks; null where round is 0
  int64_t q_stride_row, q_stride_head;
  int64_t kv_stride_page, kv_stride_token;
  int64_t o_stride_row, o_stride_head;
  int64_t num_pages;
  int64_t num_kv_indices;
  int64_t num_works;
  int64_t partial_rows;
  int64_t rows_q;
  int32_t batch, nhead;
  int32_t max_seqlen_q;
  int32_t page_size;   // a power of two
  int32_t num_splits;  // hk: KV pieces per request, each at least kMinSplitTokens
  int32_t row_tiles;   // hk: tiles of query rows per request; persistent: blocks of a cluster
  int32_t causal;
  DType o_dtype;
  float sm_scale;
  int32_t page_bits;  // log2 of page_size
  int32_t
      together;  // hk: all blocks of the launch run at the same time and may wait for each other
  // Where the cache is one rank's share: groups of tokens are dealt to the ranks in turn.
  int32_t round;          // tokens of one group each; 0 where this rank has all
  int32_t group;          // tokens
  int32_t group_begin;    // where this rank's group begins in a round
  uint32_t round_factor;  // n / round, n below 2^31, is the upper half of n * round_factor,
  int32_t round_shift;    // shifted right by this
};
static_assert(sizeof(MlaDecodeParams) == 16 * 8 + 11 * 8 + 16 * 4);
static_assert(offsetof(MlaDecodeParams, q_stride_row) == 128);
static_assert(offsetof(MlaDecodeParams, batch) == 216);

}  // namespace hipdecode::abi
