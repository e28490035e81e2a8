// SPDX-License-Identifier: MIT
#include "../abi/mla_plan_params.h"
#include "ops.h"

namespace hipdecode::torch_ops {

void mla_plan(Tensor qo_indptr, Tensor kv_indptr, OptionalTensor kv_last_page_lens,
              Tensor work_metadata, Tensor work_info_set, Tensor work_indptr, Tensor reduce_indptr,
              Tensor reduce_final_map, Tensor reduce_partial_map, int64_t nhead, int64_t page_size,
              int64_t kv_granularity, int64_t max_seqlen_qo, int64_t uni_seqlen_qo, int64_t topk,
              int64_t max_split_per_batch, bool causal, bool intra_batch_mode,
              int64_t num_kv_splits) {
  const runtime::Place place = begin_call(qo_indptr);
  const int64_t batch = qo_indptr.numel() - 1;
  HIPDECODE_CHECK(batch >= 0, "qo_indptr: expected batch + 1 elements, got none");
  HIPDECODE_CHECK(nhead >= 1 && page_size >= 1 && kv_granularity >= 1,
                  "nhead, page_size, kv_granularity: expected at least 1, got ", nhead, ", ",
                  page_size, ", ", kv_granularity);
  HIPDECODE_CHECK(work_metadata.scalar_type() == ScalarType::UInt64 && work_metadata.numel() >= 2 &&
                      work_metadata.is_contiguous(),
                  "work_metadata: expected two uint64 elements, got shape ",
                  shape_text(work_metadata));
  for (const Tensor* t : {&kv_indptr, &work_metadata, &work_info_set, &work_indptr, &reduce_indptr,
                          &reduce_final_map, &reduce_partial_map})
    check_same_device("arguments", *t, qo_indptr);
  abi::MlaPlanParams p{};
  p.qo_indptr = int32_data("qo_indptr", qo_indptr, 1);
  p.kv_indptr = int32_data("kv_indptr", kv_indptr, batch + 1);
  p.kv_last_page_lens =
      kv_last_page_lens ? int32_data("kv_last_page_lens", *kv_last_page_lens, batch) : nullptr;
  p.work_metadata = static_cast<uint64_t*>(address_of(work_metadata));
  p.work_info =
      reinterpret_cast<abi::WorkItem*>(mutable_int32_data("work_info_set", work_info_set, 0));
  p.work_indptr = mutable_int32_data("work_indptr", work_indptr, 1);
  p.reduce_indptr = mutable_int32_data("reduce_indptr", reduce_indptr, 0);
  p.reduce_final_map = mutable_int32_data("reduce_final_map", reduce_final_map, 0);
  p.reduce_partial_map = mutable_int32_data("reduce_partial_map", reduce_partial_map, 0);
  p.work_metadata_size = work_metadata.numel();
  p.work_info_size = work_info_set.numel() / 8;
  p.work_indptr_size = work_indptr.numel();
  p.reduce_indptr_size = reduce_indptr.numel();
  p.reduce_final_map_size = reduce_final_map.numel() / 2;
  p.reduce_partial_map_size = reduce_partial_map.numel();
  p.batch = static_cast<int32_t>(batch);
  p.nhead = static_cast<int32_t>(nhead);
  p.page_size = static_cast<int32_t>(page_size);
  p.kv_granularity = static_cast<int32_t>(kv_granularity);
  p.max_seqlen_qo = static_cast<int32_t>(max_seqlen_qo);
  p.uni_seqlen_qo = static_cast<int32_t>(uni_seqlen_qo);
  p.topk = static_cast<int32_t>(topk);
  p.max_split_per_batch = static_cast<int32_t>(max_split_per_batch);
  p.causal = causal;
  p.intra_batch_mode = intra_batch_mode;
  p.num_kv_splits = static_cast<int32_t>(num_kv_splits);
  thread_local runtime::KernelMemo memo;
  launch(memo.find(place, 0, [] { return "mla_plan"; }), p, 1, place);
}

}  // namespace hipdecode::torch_ops
