// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

#include "work_item.h"

namespace hipdecode::abi {

/// Arguments of `mla_plan`. Lengths are read on the device and clamped, never trusted; nothing is
/// written past the `*_size` fields, which count elements of the array above them.
struct MlaPlanParams {
  const int32_t* qo_indptr;          // [batch + 1] rows of q; not read when uni_seqlen_qo >= 1
  const int32_t* kv_indptr;          // [batch + 1] pages
  const int32_t* kv_last_page_lens;  // [batch] tokens in the last page; null means full pages
  uint64_t* work_metadata;           // [2] receives the addresses of work_indptr and work_info
  WorkItem* work_info;               // [works]
  int32_t* work_indptr;              // [clusters + 1] works of each cluster
  int32_t* reduce_indptr;            // [tiles + 1] partials of each tile of query rows
  int32_t* reduce_final_map;         // [tiles, 2] rows [begin, end) of the output of each tile
  int32_t* reduce_partial_map;       // [partials] first row of each partial; -1: nothing to merge
  int64_t work_metadata_size;        // 64-bit words
  int64_t work_info_size;            // records
  int64_t work_indptr_size;          // clusters + 1
  int64_t reduce_indptr_size;
  int64_t reduce_final_map_size;  // tiles, that is pairs
  int64_t reduce_partial_map_size;
  int32_t batch, nhead;
  int32_t page_size;            // tokens
  int32_t kv_granularity;       // pages; KV is cut at multiples of it
  int32_t max_seqlen_qo;        // query rows of a request at most; < 1: unknown
  int32_t uni_seqlen_qo;        // >= 1: every request has this many query rows
  int32_t topk;                 // >= 0: sparse, keys per query token at most; < 0: dense
  int32_t max_split_per_batch;  // < 0: no limit on the cuts but the number of clusters
  int32_t causal;               // 0: keys of early query rows are not trimmed
  int32_t intra_batch_mode;     // 1: the same number of cuts for each request
  int32_t num_kv_splits;        // works per tile at most, intra_batch_mode only
  int32_t reserved;
};
static_assert(sizeof(MlaPlanParams) == 9 * 8 + 6 * 8 + 12 * 4);
static_assert(offsetof(MlaPlanParams, work_metadata_size) == 72);
static_assert(offsetof(MlaPlanParams, batch) == 120);

}  // namespace hipdecode::abi
