// SPDX-License-Identifier: MIT
#include <algorithm>
#include <bit>

#include "../runtime/driver.h"
#include "launches.h"
#include "ops.h"

namespace hipdecode::torch_ops {
namespace {

constexpr int64_t kWaves = 4;  // of a block of either kernel, on a GPU

}  // namespace

void launch_reduce(const runtime::Kernel& kernel, const abi::MlaReduceParams& p,
                   int64_t max_seqlen_q, const runtime::Place& place) {
  if (p.tiles == 0 || p.rows_o == 0) return;
  const int64_t units = runtime::driver(place.device.kind).compute_units(place.device.index);
  const int64_t rows = p.tiles * max_seqlen_q * p.nhead;
  // the CPU deals tiles to its threads, a GPU has a wave for each row and head, or several where it
  // has waves to spare: some more than others cost an H100 half a microsecond
  const int64_t whole = std::max<int64_t>((rows + kWaves - 1) / kWaves, 1);
  const int64_t blocks =
      place.device.kind == runtime::DeviceKind::cpu
          ? std::max<int64_t>(4 * units, p.tiles)
          : std::min(16 * units, whole * std::clamp<int64_t>(units / whole, 1, kWaves));
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

namespace {

constexpr int64_t kMostVec = 4, kMostAhead = 8, kMostDecodeSplits = 16;

bool is_power_of_two(int64_t value, int64_t most) {
  return value >= 1 && value <= most && std::has_single_bit(static_cast<uint64_t>(value));
}

/// The largest power of two up to kMostVec that vectors of both sides may have.
int64_t most_vec(const abi::MlaDecodeReduceParams& p) {
  const auto from = reinterpret_cast<uintptr_t>(p.partial_o) / sizeof(float);
  const auto to = reinterpret_cast<uintptr_t>(p.o) / sizeof(uint16_t);
  const auto strides = static_cast<uint64_t>(p.o_stride_row | p.o_stride_head);
  const uint64_t bits = from | to | strides | static_cast<uint64_t>(p.head_dim_v) | kMostVec;
  return int64_t{1} << std::countr_zero(bits);
}

}  // namespace

void check_reduce_shape(const ReduceShape& wanted) {
  const auto [num_splits, batch, vec] = wanted;
  HIPDECODE_CHECK(is_power_of_two(num_splits, kMostDecodeSplits),
                  "num_splits: expected 1, 2, 4, 8 or 16, got ", num_splits);
  HIPDECODE_CHECK(is_power_of_two(batch, kMostAhead), "batch: expected 1, 2, 4 or 8, got ", batch);
  HIPDECODE_CHECK(is_power_of_two(vec, kMostVec), "vec: expected 1, 2 or 4, got ", vec);
}

void launch_decode_reduce(abi::MlaDecodeReduceParams p, ReduceShape wanted,
                          const runtime::Place& place) {
  check_reduce_shape(wanted);
  const auto [num_splits, batch, vec] = wanted;
  if (p.batch == 0 || p.rows == 0) return;
  const int64_t ahead = std::min(batch, num_splits), width = std::min(vec, most_vec(p));
  thread_local runtime::KernelMemo memo;
  const auto key = static_cast<uint64_t>(num_splits << 16 | ahead << 8 | width);
  const runtime::Kernel& kernel = memo.find(place, key, [&] {
    return runtime::join("mla_decode_reduce/", num_splits, "-", ahead, "-", width);
  });
  // of a wave, as csrc/tile/target/*/strip.h has it: another number of blocks would be slower, not
  // wrong
  const bool cpu = place.device.kind == runtime::DeviceKind::cpu;
  const bool short_waves = cpu || place.device.kind == runtime::DeviceKind::cuda;
  const int64_t columns = (short_waves ? 128 : 64) * width;
  const int64_t units = int64_t{p.batch} * p.nhead * ((p.head_dim_v + columns - 1) / columns);
  constexpr int64_t kMostUnits = 0x7fffffff;
  HIPDECODE_CHECK(units <= kMostUnits, "kv_indptr: expected at most ", kMostUnits,
                  " requests x heads x parts of a row, got ", units);
  const int64_t most = 4 * runtime::driver(place.device.kind).compute_units(place.device.index);
  launch(kernel, p, cpu ? std::min(units, most) : (units + kWaves - 1) / kWaves, place);
}

void mla_decode_reduce(Tensor partial_output, Tensor partial_lse, Tensor reduced, Tensor kv_indptr,
                       int64_t rows, int64_t batch, int64_t vec, int64_t num_splits) {
  const runtime::Place place = begin_call(partial_output);
  HIPDECODE_CHECK(partial_output.dim() >= 3,
                  "partial_output: expected [T * num_splits, nhead, head_dim_v], got shape ",
                  shape_text(partial_output));
  const int64_t nhead = partial_output.size(partial_output.dim() - 2);
  const int64_t head_dim_v = partial_output.size(partial_output.dim() - 1);
  constexpr int64_t kMost = 0x7fffffff;
  HIPDECODE_CHECK(rows >= 0 && rows <= kMost && num_splits >= 0 && num_splits <= kMost,
                  "T, num_splits: expected 0 to ", kMost, ", got ", rows, " and ", num_splits);
  HIPDECODE_CHECK(nhead >= 1 && nhead <= kMost && head_dim_v >= 1 && head_dim_v <= kMost,
                  "partial_output: expected 1 to ", kMost, " heads and columns, got shape ",
                  shape_text(partial_output));
  constexpr int64_t kMostRow = int64_t{1} << 30;  // kernels count its bytes with 32 bits
  HIPDECODE_CHECK(nhead * head_dim_v < kMostRow, "partial_output: expected rows of less than ",
                  kMostRow, " elements, got shape ", shape_text(partial_output));
  abi::MlaDecodeReduceParams p{};
  p.o_dtype = check_output("reduced", reduced, nhead);
  HIPDECODE_CHECK(reduced.size(0) >= rows && reduced.size(2) == head_dim_v,
                  "reduced: expected at least ", rows, " rows and head_dim_v ", head_dim_v,
                  ", got shape ", shape_text(reduced));
  for (const Tensor* t : {&partial_lse, &reduced, &kv_indptr})
    check_same_device("arguments", *t, partial_output);
  const int64_t partials = rows * num_splits;
  HIPDECODE_CHECK(partial_output.numel() / (nhead * head_dim_v) >= partials,
                  "partial_output: expected at least T * num_splits = ", partials,
                  " rows, got shape ", shape_text(partial_output));
  p.partial_o = float_data("partial_output", partial_output, 0);
  p.partial_lse = float_data("partial_lse", partial_lse, partials * nhead);
  p.kv_indptr = int32_data("kv_indptr", kv_indptr, rows + 1);
  p.o = address_of(reduced);
  p.o_stride_row = reduced.stride(0);
  p.o_stride_head = reduced.stride(1);
  p.rows = p.batch = static_cast<int32_t>(rows);
  p.nhead = static_cast<int32_t>(nhead);
  p.head_dim_v = static_cast<int32_t>(head_dim_v);
  launch_decode_reduce(p, {num_splits, batch, vec}, place);
}

}  // namespace hipdecode::torch_ops
