// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>

#include "../runtime/kernel_table.h"

namespace hipdecode::torch_ops {

/// All that a route follows from: host integers, as hipdecode.dispatch.DecodeShape, and the
/// caller's choices. Compared and hashed as bytes, so nothing may be left between the fields.
struct RouteKey {
  int64_t batch, kv_len;  // kv_len -1: unknown to the host
  int64_t units;          // threads of a CPU; 0 for GPUs, whose units do not change
  int32_t kind, index;
  int32_t nhead, max_seqlen_q, page_size;
  int32_t head_dim_qk, head_dim_v;
  int32_t q_dtype, kv_dtype;
  int32_t num_splits;  // -1: free
  int8_t route;        // of Choice
  int8_t batch_invariant, planned, reserved[3];
  int16_t tile_rows;  // 0: free
};
static_assert(sizeof(RouteKey) == 3 * 8 + 10 * 4 + 8);

/// What to launch for a key.
struct RouteEntry {
  const runtime::Kernel* decode = nullptr;
  const runtime::Kernel* reduce = nullptr;  // persistent only
  int64_t num_splits = 1;
};

/// Routes that Python has found for this process, forgotten with the kernels.
/// @returns nothing for a new key
std::optional<RouteEntry> find_route(const RouteKey& key);
void keep_route(const RouteKey& key, const RouteEntry& entry);

}  // namespace hipdecode::torch_ops
