// SPDX-License-Identifier: MIT
#pragma once

#include "../abi/mla_plan_params.h"
#include "tensor_checks.h"

namespace hipdecode::torch_ops {

/// The lists that a plan consists of.
struct PlanMemory {
  const Tensor &work_metadata, &work_info_set, &work_indptr;
  const Tensor &reduce_indptr, &reduce_final_map, &reduce_partial_map;
};

/// Numbers of the caller, in the order of the schema.
struct PlanNumbers {
  int64_t nhead, page_size, kv_granularity, max_seqlen_qo, uni_seqlen_qo, topk;
  int64_t max_split_per_batch;
  bool causal, intra_batch_mode;
  int64_t num_kv_splits;
};

/// The kernel's parameters, after checking all that the host can know.
/// @throws runtime::Error naming the argument
abi::MlaPlanParams checked_plan_params(const Tensor& qo_indptr, const Tensor& kv_indptr,
                                       const OptionalTensor& kv_last_page_lens,
                                       const PlanMemory& to, const PlanNumbers& numbers);

/// A checked call of mla_plan, as the short way keeps it; the lengths come with each call.
struct Planning {
  abi::MlaPlanParams p;
  int64_t on_cpu, index;
};

void launch_plan(const abi::MlaPlanParams& p, const runtime::Place& place);

}  // namespace hipdecode::torch_ops
