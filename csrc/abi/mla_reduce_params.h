// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"

namespace hipdecode::abi {

/// Arguments of `mla_reduce`: merges the partials of every tile by their log-sum-exp.
struct MlaReduceParams {
  const float* partial_o;        // [partial_rows, nhead, head_dim_v] normalised per partial
  const float* partial_lse;      // [partial_rows, nhead] natural log; -inf: the partial saw no key
  const int32_t* reduce_indptr;  // [tiles + 1]
  const int32_t*
      reduce_final_map;  // [tiles, 2] rows [begin, end) of o; null: uniform tiles, see kernel
  const int32_t*
      reduce_partial_map;  // [num_partials] base row of each partial; -1: written by the decode
  void* o;                 // [rows_o, nhead, head_dim_v], bf16 or fp16
  float* lse;              // [rows_o, nhead] natural log; may be null
  int64_t o_stride_row, o_stride_head;  // elements
  int64_t partial_rows;
  int64_t num_partials;
  int64_t rows_o;
  int32_t tiles;
  int32_t nhead;
  int32_t head_dim_v;
  DType o_dtype;
};
static_assert(sizeof(MlaReduceParams) == 7 * 8 + 5 * 8 + 4 * 4);
static_assert(offsetof(MlaReduceParams, tiles) == 96);

}  // namespace hipdecode::abi
