// SPDX-License-Identifier: MIT
#pragma once

#include "call.h"

namespace hipdecode::torch_ops {

/// The arguments of the operator sparse_mla_decode, in its order.
struct SparseArguments {
  Tensor q, cache, indices;
  OptionalTensor indptr, lengths, extra_cache, extra_indices, extra_indptr, extra_lengths;
  OptionalTensor attn_sink;
  Tensor o;
  OptionalTensor lse, partial_output, partial_lse, arrivals;
  int64_t num_splits;
  double sm_scale;
  bool fnuz, extra_fnuz;
};

/// Checks them all, then launches: behind the operator and behind the short way alike.
/// @throws runtime::Error where an argument is wrong; nothing was written
void launch_sparse(const SparseArguments& a, const runtime::Place& place);

}  // namespace hipdecode::torch_ops
