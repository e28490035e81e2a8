// SPDX-License-Identifier: MIT
#include <algorithm>
#include <string>

#include "launches.h"
#include "ops.h"

namespace hipdecode::torch_ops {
namespace {

constexpr int64_t kMaxBlocks = 0x7fffffff;  // of a launch

std::string kernel_name(const runtime::Place& place, const char* module, const Tensor& q,
                        const Tensor& kv_buffer, int64_t head_dim_v, const abi::MlaDecodeParams& p,
                        int64_t tile_rows) {
  return runtime::join(
      module, "/", q.size(2), "-", head_dim_v, "-", dtype_name(dtype_of("q", q)), "-",
      dtype_name(dtype_of("kv_buffer", kv_buffer)), "-",
      wanted_rows(place.device.kind, int64_t{p.max_seqlen_q} * p.nhead, tile_rows));
}

void check_tile_rows(int64_t rows) {
  HIPDECODE_CHECK(rows == 0 || rows == 16 || rows == 32 || rows == 64 || rows == 128,
                  "tile_rows: expected 16, 32, 64, 128 or 0 for any, got ", rows);
}

/// Cuts the call into tiles of the kernel's rows.
void cut_into_tiles(const runtime::Kernel& kernel, abi::MlaDecodeParams& p) {
  const int64_t packed = int64_t{p.max_seqlen_q} * p.nhead;
  const int64_t rows = std::max(kernel.info().rows, 1);
  p.row_tiles = static_cast<int32_t>((packed + rows - 1) / rows);
}

/// The kernel that the last calls of one operator used, or another that is looked up by its name.
const runtime::Kernel& remembered_kernel(runtime::KernelMemo& memo, const runtime::Place& place,
                                         const char* module, const Tensor& q,
                                         const Tensor& kv_buffer, int64_t head_dim_v,
                                         const abi::MlaDecodeParams& p, int64_t tile_rows = 0) {
  const auto wanted = wanted_rows(place.device.kind, int64_t{p.max_seqlen_q} * p.nhead, tile_rows);
  const auto key = static_cast<uint64_t>(q.size(2)) << 32 |
                   static_cast<uint64_t>(head_dim_v) << 16 | static_cast<uint64_t>(wanted) << 8 |
                   static_cast<uint64_t>(dtype_of("q", q)) << 4 |
                   static_cast<uint64_t>(dtype_of("kv_buffer", kv_buffer));
  return memo.find(place, key, [&] {
    return kernel_name(place, module, q, kv_buffer, head_dim_v, p, tile_rows);
  });
}

}  // namespace

const runtime::Kernel& decode_kernel(const runtime::Place& place, const char* module,
                                     const Tensor& q, const Tensor& kv_buffer, int64_t head_dim_v,
                                     const abi::MlaDecodeParams& p, int64_t tile_rows) {
  return runtime::find_kernel(place,
                              kernel_name(place, module, q, kv_buffer, head_dim_v, p, tile_rows));
}

void launch_hk(const runtime::Kernel& kernel, abi::MlaDecodeParams& p, const SplitMemory& memory,
               int64_t head_dim_v, const runtime::Place& place) {
  cut_into_tiles(kernel, p);
  if (p.num_splits > 1) {
    p.partial_rows = p.rows_q * p.num_splits;
    const int64_t partials = p.partial_rows * p.nhead;
    const int64_t counters = int64_t{p.batch} * p.row_tiles;
    HIPDECODE_CHECK(memory.outputs >= partials * head_dim_v && memory.lses >= partials &&
                        memory.counters >= counters,
                    "partial_output, partial_lse, arrivals: expected at least ",
                    partials * head_dim_v, ", ", partials, " and ", counters,
                    " elements when num_splits is ", p.num_splits, ", got ", memory.outputs, ", ",
                    memory.lses, " and ", memory.counters);
    constexpr uintptr_t kAlignment = 16;  // elements are read four at a time
    HIPDECODE_CHECK(reinterpret_cast<uintptr_t>(memory.partial_o) % kAlignment == 0,
                    "partial_output: expected an address divisible by ", kAlignment, ", got ",
                    memory.partial_o, "; pass a tensor of its own");
    p.partial_o = memory.partial_o;
    p.partial_lse = memory.partial_lse;
    p.arrivals = memory.arrivals;
  }
  // an empty batch still clears the rows of o that nobody owns
  const int64_t blocks = std::max<int64_t>(int64_t{p.batch} * p.row_tiles * p.num_splits, 1);
  HIPDECODE_CHECK(blocks <= kMaxBlocks, "batch, max_seqlen_q, num_splits: expected at most ",
                  kMaxBlocks, " tiles of query rows x splits, got ", blocks);
  p.together = p.num_splits > 1 && blocks <= kernel.most_together();
  launch(kernel, p, blocks, place, p.together != 0);
}

void launch_persistent(const runtime::Kernel& kernel, abi::MlaDecodeParams& p, int64_t clusters,
                       const runtime::Place& place) {
  cut_into_tiles(kernel, p);
  const bool gpu = place.device.kind == runtime::DeviceKind::cuda;
  const int32_t tiles_of_a_work = abi::kWorkRows / std::max(kernel.info().rows, 1);
  p.row_tiles = gpu ? std::clamp(p.row_tiles, 1, std::max(tiles_of_a_work, 1)) : 1;
  if (clusters > 0) launch(kernel, p, clusters * p.row_tiles, place);
}

void mla_decode_hk(Tensor q, Tensor kv_buffer, Tensor o, OptionalTensor lse, Tensor qo_indptr,
                   Tensor kv_indptr, Tensor kv_indices, OptionalTensor kv_last_page_lens,
                   OptionalTensor partial_output, OptionalTensor partial_lse,
                   OptionalTensor arrivals, OptionalTensor q_scale, OptionalTensor kv_scale,
                   int64_t max_seqlen_q, int64_t num_splits, double sm_scale, bool causal,
                   int64_t tile_rows, OptionalTensor g_kv_indptr, int64_t cp_world_size,
                   int64_t cp_rank, int64_t kv_interleave) {
  const runtime::Place place = begin_call(q);
  const Shard shard{g_kv_indptr, cp_world_size, cp_rank, kv_interleave};
  abi::MlaDecodeParams p =
      checked_params({q, kv_buffer, o, lse, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens,
                      q_scale, kv_scale, max_seqlen_q, sm_scale, causal, &shard});
  constexpr int64_t kMostSplits = 1024;
  HIPDECODE_CHECK(num_splits >= 1 && num_splits <= kMostSplits, "num_splits: expected 1 to ",
                  kMostSplits, ", got ", num_splits);
  p.num_splits = static_cast<int32_t>(num_splits);
  check_tile_rows(tile_rows);
  thread_local runtime::KernelMemo memo;
  const runtime::Kernel& kernel =
      remembered_kernel(memo, place, "mla_decode_hk", q, kv_buffer, o.size(2), p, tile_rows);
  SplitMemory memory;
  if (num_splits > 1) {
    HIPDECODE_CHECK(
        partial_output && partial_lse && arrivals,
        "partial_output, partial_lse, arrivals: expected tensors when num_splits > 1, got none");
    for (const OptionalTensor* t : {&partial_output, &partial_lse, &arrivals})
      check_same_device("partial_output, partial_lse, arrivals", **t, q);
    memory = {.partial_o = float_data("partial_output", *partial_output, 0),
              .partial_lse = float_data("partial_lse", *partial_lse, 0),
              .arrivals = mutable_int32_data("arrivals", *arrivals, 0),
              .outputs = partial_output->numel(),
              .lses = partial_lse->numel(),
              .counters = arrivals->numel()};
  }
  launch_hk(kernel, p, memory, o.size(2), place);
}

void mla_decode_persistent(Tensor q, Tensor kv_buffer, Tensor o, OptionalTensor lse,
                           Tensor qo_indptr, Tensor kv_indptr, Tensor kv_indices,
                           OptionalTensor kv_last_page_lens, Tensor work_indptr,
                           Tensor work_info_set, Tensor partial_output, Tensor partial_lse,
                           OptionalTensor q_scale, OptionalTensor kv_scale, int64_t max_seqlen_q,
                           double sm_scale, bool causal, OptionalTensor g_kv_indptr,
                           int64_t cp_world_size, int64_t cp_rank, int64_t kv_interleave) {
  const runtime::Place place = begin_call(q);
  const Shard shard{g_kv_indptr, cp_world_size, cp_rank, kv_interleave};
  abi::MlaDecodeParams p =
      checked_params({q, kv_buffer, o, lse, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens,
                      q_scale, kv_scale, max_seqlen_q, sm_scale, causal, &shard});
  for (const Tensor* t : {&work_indptr, &work_info_set, &partial_output, &partial_lse})
    check_same_device("plan", *t, q);
  check_dim("work_info_set", work_info_set, 2);
  HIPDECODE_CHECK(work_info_set.size(1) == 8, "work_info_set: expected [works, 8], got shape ",
                  shape_text(work_info_set));
  p.work_indptr = int32_data("work_indptr", work_indptr, 1);
  p.work_info =
      reinterpret_cast<const abi::WorkItem*>(int32_data("work_info_set", work_info_set, 0));
  p.num_works = work_info_set.size(0);
  const int64_t row = int64_t{p.nhead} * o.size(2);
  p.partial_o = float_data("partial_output", partial_output, 0);
  p.partial_rows = partial_output.numel() / row;
  p.partial_lse = float_data("partial_lse", partial_lse, p.partial_rows * p.nhead);
  const int64_t clusters = work_indptr.numel() - 1;
  if (clusters == 0) return;
  thread_local runtime::KernelMemo memo;
  const runtime::Kernel& kernel =
      remembered_kernel(memo, place, "mla_decode_persistent", q, kv_buffer, o.size(2), p);
  launch_persistent(kernel, p, clusters, place);
}

void mla_reduce_decode(Tensor q, Tensor kv_buffer, Tensor o, OptionalTensor lse, Tensor qo_indptr,
                       Tensor kv_indptr, Tensor kv_indices, OptionalTensor kv_last_page_lens,
                       Tensor partial_output, Tensor partial_lse, OptionalTensor q_scale,
                       OptionalTensor kv_scale, int64_t batch, int64_t vec, int64_t num_splits,
                       double sm_scale) {
  const runtime::Place place = begin_call(q);
  abi::MlaDecodeParams p =
      checked_params({q, kv_buffer, o, lse, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens,
                      q_scale, kv_scale, 1, sm_scale, true});
  HIPDECODE_CHECK(p.page_size == 1, "kv_buffer: expected pages of one token, got shape ",
                  shape_text(kv_buffer));
  for (const Tensor* t : {&partial_output, &partial_lse})
    check_same_device("partial_output, partial_lse", *t, q);
  const ReduceShape merge{num_splits, batch, vec};
  check_reduce_shape(merge);
  p.num_splits = static_cast<int32_t>(num_splits);
  p.partial_rows = p.rows_q * p.num_splits;
  const int64_t partials = p.partial_rows * p.nhead;
  p.partial_o = float_data("partial_output", partial_output, partials * o.size(2));
  p.partial_lse = float_data("partial_lse", partial_lse, partials);
  thread_local runtime::KernelMemo memo;
  const runtime::Kernel& kernel =
      remembered_kernel(memo, place, "mla_decode_split", q, kv_buffer, o.size(2), p);
  cut_into_tiles(kernel, p);
  const int64_t blocks = std::max<int64_t>(int64_t{p.batch} * p.row_tiles * p.num_splits, 1);
  HIPDECODE_CHECK(blocks <= kMaxBlocks, "kv_indptr, num_splits: expected at most ", kMaxBlocks,
                  " tiles of heads x splits, got ", blocks);
  launch(kernel, p, blocks, place);
  launch_decode_reduce({.partial_o = p.partial_o,
                        .partial_lse = p.partial_lse,
                        .qo_indptr = p.qo_indptr,
                        .kv_indptr = p.kv_indptr,
                        .o = p.o,
                        .lse = p.lse,
                        .o_stride_row = p.o_stride_row,
                        .o_stride_head = p.o_stride_head,
                        .rows = static_cast<int32_t>(p.rows_q),
                        .batch = p.batch,
                        .nhead = p.nhead,
                        .head_dim_v = static_cast<int32_t>(o.size(2)),
                        .o_dtype = p.o_dtype,
                        .reserved = 0},
                       merge, place);
}

}  // namespace hipdecode::torch_ops
