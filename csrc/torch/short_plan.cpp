// SPDX-License-Identifier: MIT
#include "objects.h"
#include "plan_params.h"

// The short way of `hipdecode.plan_mla_decode` into a plan that was made before.
namespace hipdecode::torch_ops {
namespace {

Outcome run(PyObject* const* a) {
  const Planning* made = packed_of<Planning>(a[0]);
  if (made == nullptr) return Outcome::long_way;
  const Tensor qo_indptr = tensor_of(a[1]), kv_indptr = tensor_of(a[2]);
  const OptionalTensor last = optional_tensor_of(a[3]);
  const runtime::Place place = begin_call(qo_indptr);
  if (place.device.kind == runtime::DeviceKind::sim) return Outcome::long_way;
  abi::MlaPlanParams p = made->p;
  if (qo_indptr.is_cpu() != (made->on_cpu != 0) || qo_indptr.get_device_index() != made->index ||
      qo_indptr.dim() != 1 || kv_indptr.dim() != 1 || qo_indptr.numel() != int64_t{p.batch} + 1)
    return Outcome::long_way;
  check_same_device("kv_indptr", kv_indptr, qo_indptr);
  p.qo_indptr = int32_data("qo_indptr", qo_indptr, 1);
  p.kv_indptr = int32_data("kv_indptr", kv_indptr, int64_t{p.batch} + 1);
  p.kv_last_page_lens = nullptr;
  if (last) {
    check_same_device("kv_last_page_lens", *last, qo_indptr);
    check_dim("kv_last_page_lens", *last, 1);
    p.kv_last_page_lens = int32_data("kv_last_page_lens", *last, p.batch);
  }
  const PythonUnlocked unlocked;
  launch_plan(p, place);
  return Outcome::served;
}

PyObject* pack_arguments(PyObject* const* a) {
  const Tensor qo_indptr = tensor_of(a[0]), kv_indptr = tensor_of(a[1]);
  const OptionalTensor last = optional_tensor_of(a[2]);
  const Tensor metadata = tensor_of(a[3]), works = tensor_of(a[4]), work_indptr = tensor_of(a[5]);
  const Tensor indptr = tensor_of(a[6]), final_map = tensor_of(a[7]);
  const Tensor partial_map = tensor_of(a[8]);
  const PlanNumbers numbers{.nhead = int_of(a[9]),
                            .page_size = int_of(a[10]),
                            .kv_granularity = int_of(a[11]),
                            .max_seqlen_qo = int_of(a[12]),
                            .uni_seqlen_qo = int_of(a[13]),
                            .topk = int_of(a[14]),
                            .max_split_per_batch = int_of(a[15]),
                            .causal = bool_of(a[16]),
                            .intra_batch_mode = bool_of(a[17]),
                            .num_kv_splits = int_of(a[18])};
  return pack(Planning{.p = checked_plan_params(
                           qo_indptr, kv_indptr, last,
                           {metadata, works, work_indptr, indptr, final_map, partial_map}, numbers),
                       .on_cpu = qo_indptr.is_cpu(),
                       .index = qo_indptr.get_device_index()});
}

}  // namespace

PyObject* plan(PyObject*, PyObject* const* arguments, intptr_t count) {
  constexpr intptr_t kArguments = 4;
  PyObject* result = unless_unusual([&] {
    return python().new_int(
        static_cast<long>(count == kArguments ? run(arguments) : Outcome::long_way));
  });
  return result ? result : python().new_int(static_cast<long>(Outcome::long_way));
}

PyObject* pack_planning(PyObject*, PyObject* const* arguments, intptr_t count) {
  constexpr intptr_t kArguments = 19;
  return or_none(unless_unusual(
      [&]() -> PyObject* { return count == kArguments ? pack_arguments(arguments) : nullptr; }));
}

}  // namespace hipdecode::torch_ops
