// SPDX-License-Identifier: MIT
#pragma once

#include "../abi/mla_decode_params.h"
#include "tensor_checks.h"

namespace hipdecode::torch_ops {

/// Which tokens of the requests the cache holds, where it is one rank's share.
struct Shard {
  OptionalTensor g_kv_indptr;
  int64_t cp_world_size = 1, cp_rank = 0, kv_interleave = 1;
};

/// What every decode operator takes.
struct Inputs {
  const Tensor &q, &kv_buffer, &o;
  const OptionalTensor& lse;
  const Tensor &qo_indptr, &kv_indptr, &kv_indices;
  const OptionalTensor &kv_last_page_lens, &q_scale, &kv_scale;
  int64_t max_seqlen_q;
  double sm_scale;
  bool causal;
  const Shard* shard = nullptr;  // null: all of them
};

/// The kernel's parameters for a call of one split, after checking all that the host can know.
/// @throws runtime::Error naming the argument
abi::MlaDecodeParams checked_params(const Inputs& in);

}  // namespace hipdecode::torch_ops
