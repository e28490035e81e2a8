// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace hipdecode::abi {

inline constexpr int32_t kWorkRows = 128;  // (query token x head) rows of a work at most

/// One record of `work_info_set` ([max_work, 8] int32): the keys that one tile of query rows
/// attends to in one go.
///
/// With S tokens in the request and causal masking, row i of the request's `qlen` rows sees the
/// tokens before S - (qlen - 1 - i); a work covers those of them that lie in [kv_start, kv_end).
/// A work may leave some rows without a visible key (and has no key at all when S is 0): such a
/// row is written as zeros with lse = -inf. Records past the last entry of `work_indptr` are
/// garbage.
struct WorkItem {
  int32_t batch;           ///< request index (sparse: the request that the token belongs to)
  int32_t partial_qo_loc;  ///< -1: whole KV, write final rows; else first row of the partial
  int32_t qo_start;        ///< first query row, global (row of q and of the output)
  int32_t qo_end;          ///< one past the last query row, global
  int32_t kv_start;        ///< first entry of kv_indices, global, in pages
  int32_t kv_end;          ///< one past the last entry of kv_indices, global, in pages
  int32_t kv_offset;       ///< tokens of this request after kv_end; 0: the work holds the tail
  int32_t reserved;        ///< 0
};

static_assert(sizeof(WorkItem) == 32, "WorkItem is one 32-byte record of work_info_set");

}  // namespace hipdecode::abi
