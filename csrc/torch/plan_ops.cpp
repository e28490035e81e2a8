// SPDX-License-Identifier: MIT
#include "ops.h"
#include "plan_params.h"

namespace hipdecode::torch_ops {

abi::MlaPlanParams checked_plan_params(const Tensor& qo_indptr, const Tensor& kv_indptr,
                                       const OptionalTensor& kv_last_page_lens,
                                       const PlanMemory& to, const PlanNumbers& numbers) {
  const int64_t batch = qo_indptr.numel() - 1;
  HIPDECODE_CHECK(batch >= 0, "qo_indptr: expected batch + 1 elements, got none");
  HIPDECODE_CHECK(numbers.nhead >= 1 && numbers.page_size >= 1 && numbers.kv_granularity >= 1,
                  "nhead, page_size, kv_granularity: expected at least 1, got ", numbers.nhead,
                  ", ", numbers.page_size, ", ", numbers.kv_granularity);
  HIPDECODE_CHECK(to.work_metadata.scalar_type() == ScalarType::UInt64 &&
                      to.work_metadata.numel() >= 2 && to.work_metadata.is_contiguous(),
                  "work_metadata: expected two uint64 elements, got shape ",
                  shape_text(to.work_metadata));
  for (const Tensor* t : {&kv_indptr, &to.work_metadata, &to.work_info_set, &to.work_indptr,
                          &to.reduce_indptr, &to.reduce_final_map, &to.reduce_partial_map})
    check_same_device("arguments", *t, qo_indptr);
  if (kv_last_page_lens) check_same_device("kv_last_page_lens", *kv_last_page_lens, qo_indptr);
  abi::MlaPlanParams p{};
  p.qo_indptr = int32_data("qo_indptr", qo_indptr, 1);
  p.kv_indptr = int32_data("kv_indptr", kv_indptr, batch + 1);
  p.kv_last_page_lens =
      kv_last_page_lens ? int32_data("kv_last_page_lens", *kv_last_page_lens, batch) : nullptr;
  p.work_metadata = static_cast<uint64_t*>(address_of(to.work_metadata));
  p.work_info =
      reinterpret_cast<abi::WorkItem*>(mutable_int32_data("work_info_set", to.work_info_set, 0));
  p.work_indptr = mutable_int32_data("work_indptr", to.work_indptr, 1);
  p.reduce_indptr = mutable_int32_data("reduce_indptr", to.reduce_indptr, 0);
  p.reduce_final_map = mutable_int32_data("reduce_final_map", to.reduce_final_map, 0);
  p.reduce_partial_map = mutable_int32_data("reduce_partial_map", to.reduce_partial_map, 0);
  p.work_metadata_size = to.work_metadata.numel();
  p.work_info_size = to.work_info_set.numel() / 8;
  p.work_indptr_size = to.work_indptr.numel();
  p.reduce_indptr_size = to.reduce_indptr.numel();
  p.reduce_final_map_size = to.reduce_final_map.numel() / 2;
  p.reduce_partial_map_size = to.reduce_partial_map.numel();
  p.batch = static_cast<int32_t>(batch);
  p.nhead = static_cast<int32_t>(numbers.nhead);
  p.page_size = static_cast<int32_t>(numbers.page_size);
  p.kv_granularity = static_cast<int32_t>(numbers.kv_granularity);
  p.max_seqlen_qo = static_cast<int32_t>(numbers.max_seqlen_qo);
  p.uni_seqlen_qo = static_cast<int32_t>(numbers.uni_seqlen_qo);
  p.topk = static_cast<int32_t>(numbers.topk);
  p.max_split_per_batch = static_cast<int32_t>(numbers.max_split_per_batch);
  p.causal = numbers.causal;
  p.intra_batch_mode = numbers.intra_batch_mode;
  p.num_kv_splits = static_cast<int32_t>(numbers.num_kv_splits);
  return p;
}

void launch_plan(const abi::MlaPlanParams& p, const runtime::Place& place) {
  thread_local runtime::KernelMemo memo;
  launch(memo.find(place, 0, [] { return "mla_plan"; }), p, 1, place);
}

void mla_plan(Tensor qo_indptr, Tensor kv_indptr, OptionalTensor kv_last_page_lens,
              Tensor work_metadata, Tensor work_info_set, Tensor work_indptr, Tensor reduce_indptr,
              Tensor reduce_final_map, Tensor reduce_partial_map, int64_t nhead, int64_t page_size,
              int64_t kv_granularity, int64_t max_seqlen_qo, int64_t uni_seqlen_qo, int64_t topk,
              int64_t max_split_per_batch, bool causal, bool intra_batch_mode,
              int64_t num_kv_splits) {
  const runtime::Place place = begin_call(qo_indptr);
  launch_plan(
      checked_plan_params(qo_indptr, kv_indptr, kv_last_page_lens,
                          {work_metadata, work_info_set, work_indptr, reduce_indptr,
                           reduce_final_map, reduce_partial_map},
                          {nhead, page_size, kv_granularity, max_seqlen_qo, uni_seqlen_qo, topk,
                           max_split_per_batch, causal, intra_batch_mode, num_kv_splits}),
      place);
}

}  // namespace hipdecode::torch_ops
