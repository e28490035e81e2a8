// SPDX-License-Identifier: MIT
#include <algorithm>
#include <bit>
#include <cmath>

#include "../abi/mla_decode_params.h"
#include "ops.h"

namespace hipdecode::torch_ops {
namespace {

constexpr int64_t kCacheAlignment = 16;  // bytes; what vector loads and direct-to-LDS copies need
constexpr int64_t kMaxPackedRows = int64_t{1} << 30;
constexpr int64_t kMaxBlocks = 0x7fffffff;  // of a launch

/// Query rows of the tile that a call asks for, as registry.wanted_rows() in Python: the smallest
/// that holds them all. What it gets is in KernelInfo::rows, since a target need not have them all.
int64_t wanted_rows(runtime::DeviceKind device, int64_t packed) {
  constexpr int64_t kLeast = 16, kMost = 128;
  if (device == runtime::DeviceKind::cpu) return kMost;
  return std::clamp<int64_t>(std::bit_ceil(static_cast<uint64_t>(packed)), kLeast, kMost);
}

/// Finds `module/qk-v-q-kv-rows` and cuts the call into tiles of its rows.
const runtime::Kernel& decode_kernel(runtime::KernelMemo& memo, const runtime::Place& place,
                                     const char* module, const Tensor& q, const Tensor& kv_buffer,
                                     int64_t head_dim_v, abi::MlaDecodeParams& p) {
  const abi::DType q_dtype = dtype_of("q", q), kv_dtype = dtype_of("kv_buffer", kv_buffer);
  const int64_t packed = int64_t{p.max_seqlen_q} * p.nhead;
  const int64_t wanted = wanted_rows(place.device.kind, packed);
  const auto key = static_cast<uint64_t>(q.size(2)) << 32 |
                   static_cast<uint64_t>(head_dim_v) << 16 | static_cast<uint64_t>(wanted) << 8 |
                   static_cast<uint64_t>(q_dtype) << 4 | static_cast<uint64_t>(kv_dtype);
  const runtime::Kernel& kernel = memo.find(place, key, [&] {
    return runtime::join(module, "/", q.size(2), "-", head_dim_v, "-", dtype_name(q_dtype), "-",
                         dtype_name(kv_dtype), "-", wanted);
  });
  const int64_t rows = std::max(kernel.info().rows, 1);
  p.row_tiles = static_cast<int32_t>((packed + rows - 1) / rows);
  return kernel;
}

void check_cache(const Tensor& kv, abi::DType type) {
  const int64_t bytes = abi::element_bytes(type);
  const auto address = reinterpret_cast<uintptr_t>(kv.const_data_ptr());
  HIPDECODE_CHECK(kv.stride(3) == 1 && kv.stride(0) >= 0 && kv.stride(1) >= 0,
                  "kv_buffer: expected a contiguous last dimension");
  HIPDECODE_CHECK(address % kCacheAlignment == 0 && kv.stride(0) * bytes % kCacheAlignment == 0 &&
                      kv.stride(1) * bytes % kCacheAlignment == 0,
                  "kv_buffer: expected address and strides that are multiples of ", kCacheAlignment,
                  " bytes");
  constexpr int64_t kMostStride = 0xffffffff;  // kernels multiply page ids by 32 bits
  HIPDECODE_CHECK(kv.stride(0) <= kMostStride && kv.stride(1) <= kMostStride,
                  "kv_buffer: expected strides below 2^32 elements, got ", kv.stride(0), " and ",
                  kv.stride(1));
}

struct Inputs {
  const Tensor &q, &kv_buffer, &o;
  const OptionalTensor& lse;
  const Tensor &qo_indptr, &kv_indptr, &kv_indices;
  const OptionalTensor &kv_last_page_lens, &q_scale, &kv_scale;
  int64_t max_seqlen_q;
  double sm_scale;
  bool causal;
};

abi::MlaDecodeParams checked_params(const Inputs& in) {
  check_dim("q", in.q, 3);
  check_dim("kv_buffer", in.kv_buffer, 4);
  const int64_t rows = in.q.size(0), nhead = in.q.size(1), head_dim_qk = in.q.size(2);
  const int64_t batch = in.qo_indptr.numel() - 1;
  HIPDECODE_CHECK(in.q.stride(2) == 1, "q: expected a contiguous last dimension");
  HIPDECODE_CHECK(nhead >= 1 && nhead <= 128, "q: expected 1 to 128 heads, got shape ",
                  shape_text(in.q));
  HIPDECODE_CHECK(in.kv_buffer.size(2) == 1 && in.kv_buffer.size(3) == head_dim_qk,
                  "kv_buffer: expected [num_pages, page_size, 1, ", head_dim_qk, "], got shape ",
                  shape_text(in.kv_buffer));
  check_dim("qo_indptr", in.qo_indptr, 1);
  HIPDECODE_CHECK(batch >= 0, "qo_indptr: expected batch + 1 elements, got none");
  HIPDECODE_CHECK(std::isfinite(in.sm_scale) && in.sm_scale >= 0,
                  "sm_scale: expected a finite number of 0 or more, got ", in.sm_scale);
  HIPDECODE_CHECK(in.max_seqlen_q >= 1 && in.max_seqlen_q <= kMaxPackedRows / nhead,
                  "max_seqlen_q: expected 1 to ", kMaxPackedRows / nhead, ", got ",
                  in.max_seqlen_q);
  const int64_t page_size = in.kv_buffer.size(1);
  HIPDECODE_CHECK(page_size >= 1 && std::has_single_bit(static_cast<uint64_t>(page_size)),
                  "kv_buffer: expected a page size that is a power of two, got shape ",
                  shape_text(in.kv_buffer));
  const abi::DType o_dtype = check_output("o", in.o, nhead);
  HIPDECODE_CHECK(in.o.size(0) == rows, "o: expected ", rows, " rows, got shape ",
                  shape_text(in.o));
  for (const Tensor* t : {&in.kv_buffer, &in.o, &in.qo_indptr, &in.kv_indptr, &in.kv_indices})
    check_same_device("arguments", *t, in.q);
  check_cache(in.kv_buffer, dtype_of("kv_buffer", in.kv_buffer));
  abi::MlaDecodeParams p{};
  p.q = const_address_of(in.q);
  p.kv = const_address_of(in.kv_buffer);
  p.o = address_of(in.o);
  if (in.lse) {
    check_same_device("lse", *in.lse, in.q);
    HIPDECODE_CHECK(in.lse->numel() == rows * nhead, "lse: expected [", rows, ", ", nhead,
                    "], got shape ", shape_text(*in.lse));
    p.lse = float_data("lse", *in.lse, rows * nhead);
  }
  p.qo_indptr = int32_data("qo_indptr", in.qo_indptr, 1);
  p.kv_indptr = int32_data("kv_indptr", in.kv_indptr, batch + 1);
  p.kv_indices = int32_data("kv_indices", in.kv_indices, 0);
  if (in.kv_last_page_lens) check_same_device("kv_last_page_lens", *in.kv_last_page_lens, in.q);
  p.kv_last_page_lens = in.kv_last_page_lens
                            ? int32_data("kv_last_page_lens", *in.kv_last_page_lens, batch)
                            : nullptr;
  p.q_scale = scale_data("q_scale", in.q_scale, in.q);
  p.kv_scale = scale_data("kv_scale", in.kv_scale, in.q);
  p.q_stride_row = in.q.stride(0);
  p.q_stride_head = in.q.stride(1);
  p.kv_stride_page = in.kv_buffer.stride(0);
  p.kv_stride_token = in.kv_buffer.stride(1);
  p.o_stride_row = in.o.stride(0);
  p.o_stride_head = in.o.stride(1);
  p.num_pages = in.kv_buffer.size(0);
  p.num_kv_indices = in.kv_indices.numel();
  p.rows_q = rows;
  p.batch = static_cast<int32_t>(batch);
  p.nhead = static_cast<int32_t>(nhead);
  p.max_seqlen_q = static_cast<int32_t>(in.max_seqlen_q);
  p.page_size = static_cast<int32_t>(page_size);
  p.page_bits = std::countr_zero(static_cast<uint32_t>(page_size));
  p.num_splits = 1;
  p.causal = in.causal;
  p.o_dtype = o_dtype;
  p.sm_scale = static_cast<float>(in.sm_scale);
  return p;
}

}  // namespace

void mla_decode_hk(Tensor q, Tensor kv_buffer, Tensor o, OptionalTensor lse, Tensor qo_indptr,
                   Tensor kv_indptr, Tensor kv_indices, OptionalTensor kv_last_page_lens,
                   OptionalTensor partial_output, OptionalTensor partial_lse,
                   OptionalTensor arrivals, OptionalTensor q_scale, OptionalTensor kv_scale,
                   int64_t max_seqlen_q, int64_t num_splits, double sm_scale, bool causal) {
  const runtime::Place place = begin_call(q);
  abi::MlaDecodeParams p =
      checked_params({q, kv_buffer, o, lse, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens,
                      q_scale, kv_scale, max_seqlen_q, sm_scale, causal});
  HIPDECODE_CHECK(num_splits >= 1 && num_splits <= 1024, "num_splits: expected 1 to 1024, got ",
                  num_splits);
  p.num_splits = static_cast<int32_t>(num_splits);
  thread_local runtime::KernelMemo memo;
  const runtime::Kernel& kernel =
      decode_kernel(memo, place, "mla_decode_hk", q, kv_buffer, o.size(2), p);
  if (num_splits > 1) {
    HIPDECODE_CHECK(
        partial_output && partial_lse && arrivals,
        "partial_output, partial_lse, arrivals: expected tensors when num_splits > 1, got none");
    p.partial_rows = p.rows_q * num_splits;
    p.partial_o =
        float_data("partial_output", *partial_output, p.partial_rows * p.nhead * o.size(2));
    p.partial_lse = float_data("partial_lse", *partial_lse, p.partial_rows * p.nhead);
    p.arrivals = mutable_int32_data("arrivals", *arrivals, int64_t{p.batch} * p.row_tiles);
  }
  // an empty batch still clears the rows of o that nobody owns
  const int64_t blocks = std::max<int64_t>(int64_t{p.batch} * p.row_tiles * num_splits, 1);
  HIPDECODE_CHECK(blocks <= kMaxBlocks, "batch, max_seqlen_q, num_splits: expected at most ",
                  kMaxBlocks, " tiles of query rows x splits, got ", blocks);
  launch(kernel, p, blocks, place);
}

void mla_decode_persistent(Tensor q, Tensor kv_buffer, Tensor o, OptionalTensor lse,
                           Tensor qo_indptr, Tensor kv_indptr, Tensor kv_indices,
                           OptionalTensor kv_last_page_lens, Tensor work_indptr,
                           Tensor work_info_set, Tensor partial_output, Tensor partial_lse,
                           OptionalTensor q_scale, OptionalTensor kv_scale, int64_t max_seqlen_q,
                           double sm_scale, bool causal) {
  const runtime::Place place = begin_call(q);
  abi::MlaDecodeParams p =
      checked_params({q, kv_buffer, o, lse, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens,
                      q_scale, kv_scale, max_seqlen_q, sm_scale, causal});
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
      decode_kernel(memo, place, "mla_decode_persistent", q, kv_buffer, o.size(2), p);
  launch(kernel, p, clusters, place);
}

}  // namespace hipdecode::torch_ops
