// SPDX-License-Identifier: MIT
#include <algorithm>

#include "../runtime/driver.h"
#include "launches.h"
#include "ops.h"

namespace hipdecode::torch_ops {

void launch_reduce(const runtime::Kernel& kernel, const abi::MlaReduceParams& p,
                   int64_t max_seqlen_q, const runtime::Place& place) {
  if (p.tiles == 0 || p.rows_o == 0) return;
  const int64_t units = runtime::driver(place.device.kind).compute_units(place.device.index);
  // the CPU deals tiles to its threads, a GPU has a wave for each row and head
  const int64_t blocks = place.device.kind == runtime::DeviceKind::cpu
                             ? std::max<int64_t>(4 * units, p.tiles)
                             : std::min<int64_t>(16 * units, p.tiles * max_seqlen_q * p.nhead);
  launch(kernel, p, blocks, place);
}

void mla_reduce(Tensor partial_output, Tensor partial_lse, Tensor reduce_indptr,
                OptionalTensor reduce_final_map, Tensor reduce_partial_map, Tensor o,
                OptionalTensor lse, int64_t max_seqlen_q, int64_t num_kv_splits) {
  const runtime::Place place = begin_call(partial_output);
  HIPDECODE_CHECK(partial_output.dim() >= 3,
                  "partial_output: expected [rows, 1, nhead, head_dim_v] or [rows, nhead, "
                  "head_dim_v], got shape ",
                  shape_text(partial_output));
  HIPDECODE_CHECK(max_seqlen_q >= 1 && num_kv_splits >= 0,
                  "max_seqlen_q, num_kv_splits: expected at least 1 and 0, got ", max_seqlen_q,
                  " and ", num_kv_splits);
  const int64_t nhead = partial_output.size(partial_output.dim() - 2);
  const int64_t head_dim_v = partial_output.size(partial_output.dim() - 1);
  HIPDECODE_CHECK(head_dim_v >= 1 && head_dim_v <= 1024,
                  "partial_output: expected head_dim_v of 1 to 1024, got ", head_dim_v);
  abi::MlaReduceParams p{};
  p.o_dtype = check_output("o", o, nhead);
  HIPDECODE_CHECK(o.size(2) == head_dim_v, "o: expected head_dim_v ", head_dim_v, ", got shape ",
                  shape_text(o));
  for (const Tensor* t : {&partial_lse, &reduce_indptr, &reduce_partial_map, &o})
    check_same_device("arguments", *t, partial_output);
  p.partial_o = float_data("partial_output", partial_output, 0);
  p.partial_rows = partial_output.numel() / std::max<int64_t>(nhead * head_dim_v, 1);
  p.partial_lse = float_data("partial_lse", partial_lse, p.partial_rows * nhead);
  p.reduce_indptr = int32_data("reduce_indptr", reduce_indptr, 1);
  p.tiles = static_cast<int32_t>(reduce_indptr.numel() - 1);
  p.reduce_final_map = reduce_final_map
                           ? int32_data("reduce_final_map", *reduce_final_map, 2 * int64_t{p.tiles})
                           : nullptr;
  p.reduce_partial_map = int32_data("reduce_partial_map", reduce_partial_map, 0);
  p.num_partials = reduce_partial_map.numel();
  p.o = address_of(o);
  p.lse = lse ? float_data("lse", *lse, o.size(0) * nhead) : nullptr;
  p.o_stride_row = o.stride(0);
  p.o_stride_head = o.stride(1);
  p.rows_o = o.size(0);
  p.nhead = static_cast<int32_t>(nhead);
  p.head_dim_v = static_cast<int32_t>(head_dim_v);
  thread_local runtime::KernelMemo memo;
  launch_reduce(memo.find(place, 0, [] { return "mla_reduce"; }), p, max_seqlen_q, place);
}

}  // namespace hipdecode::torch_ops
