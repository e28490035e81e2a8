// SPDX-License-Identifier: MIT
#include "decode_params.h"

#include <bit>
#include <cmath>

namespace hipdecode::torch_ops {
namespace {

constexpr int64_t kCacheAlignment = 16;  // bytes; what vector loads and direct-to-LDS copies need
constexpr int64_t kMaxPackedRows = int64_t{1} << 30;
constexpr int64_t kMaxRound = int64_t{1} << 30;  // tokens dealt to all ranks in turn

void check_cache(const Tensor& kv, abi::DType type) {
  const int64_t bytes = abi::element_bytes(type);
  const auto address = reinterpret_cast<uintptr_t>(kv.data());
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

/// Without lengths over all ranks a causal mask of several rows is unknown.
void add_shard(const Shard& shard, const Tensor& q, abi::MlaDecodeParams& p) {
  const auto [lengths, ranks, rank, group] = shard;
  HIPDECODE_CHECK(ranks >= 1 && rank >= 0 && rank < ranks,
                  "cp_world_size, cp_rank: expected 1 or more ranks and one of them, got ", ranks,
                  " and ", rank);
  HIPDECODE_CHECK(group >= 1 && ranks <= kMaxRound / group, "kv_interleave: expected 1 to ",
                  kMaxRound / ranks, " for ", ranks, " ranks, got ", group);
  if (lengths) check_same_device("g_kv_indptr", *lengths, q);
  const int32_t* data =
      lengths ? int32_data("g_kv_indptr", *lengths, int64_t{p.batch} + 1) : nullptr;
  if (ranks == 1) return;
  HIPDECODE_CHECK(data != nullptr || p.causal == 0 || p.max_seqlen_q == 1,
                  "g_kv_indptr: expected lengths over all ranks where causal masks ",
                  p.max_seqlen_q, " query rows and cp_world_size is ", ranks, ", got none");
  if (data == nullptr) return;
  p.g_kv_indptr = data;
  p.group = static_cast<int32_t>(group);
  p.round = static_cast<int32_t>(ranks * group);
  p.group_begin = static_cast<int32_t>(rank * group);
  const int bits = std::bit_width(static_cast<uint32_t>(p.round - 1));  // round is 2 or more
  constexpr int kTokenBits = 31;
  p.round_factor = static_cast<uint32_t>((uint64_t{1} << (kTokenBits + bits)) / p.round + 1);
  p.round_shift = bits - 1;
}

}  // namespace

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
  p.sm_scale = score_scale(in.sm_scale);
  if (in.shard != nullptr) add_shard(*in.shard, in.q, p);
  return p;
}

}  // namespace hipdecode::torch_ops
