// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"

namespace hipdecode::abi {

/// Arguments of `mla_decode_reduce`: merges the splits of requests with one query row each at most.
/// Partials of row t are rows t * num_splits ...; of them the first min(ceil(kv_len / 64),
/// num_splits) are read.
struct MlaDecodeReduceParams {
  const float* partial_o;    // [rows * num_splits, nhead, head_dim_v] normalised per partial
  const float* partial_lse;  // [rows * num_splits, nhead] natural log
  const int32_t* qo_indptr;  // [batch + 1] rows of o; null: request i has row i
  const int32_t* kv_indptr;  // [batch + 1] keys
  void* o;                   // [rows, nhead, head_dim_v], bf16 or fp16
  float* lse;                // [rows, nhead] natural log; may be null
  int64_t o_stride_row, o_stride_head;  // elements
  int32_t rows, batch, nhead;
  int32_t head_dim_v;
  DType o_dtype;
  int32_t reserved;  // 0
};
static_assert(sizeof(MlaDecodeReduceParams) == 6 * 8 + 2 * 8 + 6 * 4);
static_assert(offsetof(MlaDecodeReduceParams, rows) == 64);

}  // namespace hipdecode::abi
