// SPDX-License-Identifier: MIT
#include <algorithm>
#include <bit>
#include <cmath>

#include "../abi/sparse_mla_params.h"
#include "ops.h"
#include "sparse_call.h"

namespace hipdecode::torch_ops {
namespace {

constexpr int64_t kMostSlots = 0x7fffffff, kMostList = int64_t{1} << 24;
constexpr int64_t kMostBlocks = 0x7fffffff;  // of a launch
constexpr int64_t kBlockAlignment = 16;      // bytes; what vector loads and bulk copies need

/// What tells the formats apart: the bytes of a token, the last dimension of a cache.
struct Format {
  const char* name;
  int64_t token_bytes, head_dim_qk, head_dim_v;
};
constexpr Format kFormats[] = {{"v32", 656, 576, 512}, {"v4", 584, 512, 512}};

const Format& format_of(const char* name, const Tensor& cache) {
  const bool paged = cache.dim() == 3 || (cache.dim() == 4 && cache.size(2) == 1);
  for (const Format& format : kFormats)
    if (paged && cache.size(cache.dim() - 1) == format.token_bytes) return format;
  throw runtime::Error(runtime::join(
      name,
      ": expected [num_blocks, block_size, bytes] with 656 (v32) or 584 (v4) bytes, got shape ",
      shape_text(cache), "; make it with new_sparse_cache"));
}

void check_blocks(const char* name, const Tensor& cache, const Format& format) {
  const int64_t size = cache.size(1), step = cache.stride(0);
  HIPDECODE_CHECK(cache.element_size() == 1 && cache.stride(cache.dim() - 1) == 1 &&
                      (size == 1 || cache.stride(1) == format.token_bytes),
                  name, ": expected bytes that are dense within a block, got shape ",
                  shape_text(cache));
  HIPDECODE_CHECK(size >= 1 && std::has_single_bit(static_cast<uint64_t>(size)), name,
                  ": expected a block size that is a power of two, got shape ", shape_text(cache));
  const auto address = reinterpret_cast<uintptr_t>(cache.data());
  const bool apart = step >= size * format.token_bytes && step % kBlockAlignment == 0;
  HIPDECODE_CHECK(address % kBlockAlignment == 0 && (cache.size(0) <= 1 || apart), name,
                  ": expected blocks apart, at multiples of ", kBlockAlignment,
                  " bytes, got a stride of ", step);
}

/// Of a cache and its lists; the names are for messages.
struct CacheArguments {
  const char *cache_name, *indices_name, *indptr_name, *lengths_name;
  const OptionalTensor &cache, &indices, &indptr, &lengths;
};

/// @param tokens rows of q
abi::SparseCache checked_cache(const CacheArguments& in, const Format& format, int64_t tokens,
                               const Tensor& q) {
  if (!in.cache) {
    HIPDECODE_CHECK(!in.indices && !in.indptr && !in.lengths, in.cache_name,
                    ": expected a tensor beside its lists, got none");
    return {};
  }
  HIPDECODE_CHECK(in.indices, in.indices_name, ": expected a tensor beside ", in.cache_name,
                  ", got none");
  const Tensor &cache = *in.cache, &indices = *in.indices;
  HIPDECODE_CHECK(&format_of(in.cache_name, cache) == &format, in.cache_name, ": expected ",
                  format.token_bytes, " bytes a token, got shape ", shape_text(cache));
  check_same_device(in.cache_name, cache, q);
  check_same_device(in.indices_name, indices, q);
  check_blocks(in.cache_name, cache, format);
  abi::SparseCache c{};
  c.indices = int32_data(in.indices_name, indices, 0);
  c.num_indices = indices.numel();
  c.block_bits = std::countr_zero(static_cast<uint64_t>(cache.size(1)));
  c.num_slots = std::min(cache.size(0), kMostSlots >> c.block_bits) << c.block_bits;
  c.stride_block = cache.stride(0);
  c.tokens_per_length = 1;
  // an empty pool has no address, and is a cache all the same
  c.blocks = static_cast<const uint8_t*>(const_address_of(cache));
  if (in.indptr) {
    HIPDECODE_CHECK(!in.lengths, in.lengths_name, ": expected none beside ", in.indptr_name);
    check_same_device(in.indptr_name, *in.indptr, q);
    c.indptr = int32_data(in.indptr_name, *in.indptr, tokens + 1);
    return c;
  }
  const int64_t topk = indices.dim() == 0 ? 0 : indices.size(indices.dim() - 1);
  HIPDECODE_CHECK(topk <= kMostList && c.num_indices == tokens * topk, in.indices_name,
                  ": expected [", tokens, ", topk] with topk up to ", kMostList, ", got shape ",
                  shape_text(indices), "; or pass ", in.indptr_name);
  c.topk = static_cast<int32_t>(topk);
  if (!in.lengths) return c;
  check_same_device(in.lengths_name, *in.lengths, q);
  const int64_t lengths = in.lengths->numel();
  HIPDECODE_CHECK(lengths == tokens || (lengths > 0 && tokens % lengths == 0), in.lengths_name,
                  ": expected ", tokens, " elements or a divisor of it, got ", lengths);
  c.lengths = int32_data(in.lengths_name, *in.lengths, 0);
  c.tokens_per_length =
      static_cast<int32_t>(std::max<int64_t>(tokens / std::max<int64_t>(lengths, 1), 1));
  return c;
}

abi::SparseMlaParams checked_rows(const Tensor& q, const Tensor& o, const OptionalTensor& lse,
                                  const OptionalTensor& attn_sink, const Format& format,
                                  double sm_scale) {
  check_dim("q", q, 3);
  const int64_t tokens = q.size(0), nhead = q.size(1);
  HIPDECODE_CHECK(dtype_of("q", q) == abi::DType::bf16, "q: expected bfloat16");
  HIPDECODE_CHECK(nhead >= 1 && nhead <= 128 && q.size(2) == format.head_dim_qk && q.stride(2) == 1,
                  "q: expected [tokens, nhead 1..128, ", format.head_dim_qk,
                  "] with a contiguous last dimension, got shape ", shape_text(q));
  abi::SparseMlaParams p{};
  p.o_dtype = check_output("o", o, nhead);
  HIPDECODE_CHECK(o.size(0) == tokens && o.size(2) == format.head_dim_v, "o: expected [", tokens,
                  ", ", nhead, ", ", format.head_dim_v, "], got shape ", shape_text(o));
  check_same_device("o", o, q);
  p.q = const_address_of(q);
  p.o = address_of(o);
  if (lse) {
    check_same_device("lse", *lse, q);
    p.lse = float_data("lse", *lse, tokens * nhead);
  }
  if (attn_sink) {
    check_same_device("attn_sink", *attn_sink, q);
    p.attn_sink = float_data("attn_sink", *attn_sink, nhead);
  }
  p.q_stride_row = q.stride(0);
  p.q_stride_head = q.stride(1);
  p.o_stride_row = o.stride(0);
  p.o_stride_head = o.stride(1);
  p.tokens = static_cast<int32_t>(tokens);
  p.nhead = static_cast<int32_t>(nhead);
  p.sm_scale = score_scale(sm_scale);
  return p;
}

const runtime::Kernel& sparse_kernel(const runtime::Place& place, const Format& format, bool fnuz,
                                     bool extra_fnuz, int64_t nhead) {
  using abi::DType;
  thread_local runtime::KernelMemo memo;
  const int64_t rows = wanted_rows(place.device.kind, nhead);
  const auto key = static_cast<uint64_t>(rows) << 32 |
                   static_cast<uint64_t>(&format - kFormats) << 2 |
                   static_cast<uint64_t>(fnuz) << 1 | static_cast<uint64_t>(extra_fnuz);
  const auto flavour = [](bool nuz) {
    return dtype_name(nuz ? DType::fp8_e4m3fnuz : DType::fp8_e4m3fn);
  };
  return memo.find(place, key, [&] {
    return runtime::join("sparse_mla_decode/", format.name, "-bf16-", flavour(fnuz), "-",
                         flavour(extra_fnuz), "-", rows);
  });
}

/// Heads of a tile whose splits are a cluster: fewer than a tile has room for while the clusters of
/// all tiles run at the same time, so that a block has less to add up.
int32_t clustered_heads(const abi::SparseMlaParams& p, int32_t rows, const runtime::Place& place) {
  constexpr int32_t kLeast = 16, kSmallCluster = 8;
  const int64_t units = runtime::driver(place.device.kind).compute_units(place.device.index);
  // of an H100's 132 units: 6 large clusters, or four fifths of what small ones would fill
  const int64_t at_once = p.num_splits > kSmallCluster ? units / 22 : units * 4 / 5 / p.num_splits;
  int32_t heads = rows;
  while (p.num_splits > 1 && heads > kLeast &&
         int64_t{p.tokens} * ((p.nhead + heads / 2 - 1) / (heads / 2)) <= at_once)
    heads /= 2;
  return heads;
}

}  // namespace

void launch_sparse(const SparseArguments& a, const runtime::Place& place) {
  const Format& format = format_of("cache", a.cache);
  abi::SparseMlaParams p = checked_rows(a.q, a.o, a.lse, a.attn_sink, format, a.sm_scale);
  p.main = checked_cache(
      {"cache", "indices", "indptr", "lengths", a.cache, a.indices, a.indptr, a.lengths}, format,
      p.tokens, a.q);
  p.extra = checked_cache({"extra_cache", "extra_indices", "extra_indptr", "extra_lengths",
                           a.extra_cache, a.extra_indices, a.extra_indptr, a.extra_lengths},
                          format, p.tokens, a.q);
  const int64_t num_splits = a.num_splits;
  HIPDECODE_CHECK(num_splits >= 1 && num_splits <= 1024, "num_splits: expected 1 to 1024, got ",
                  num_splits);
  p.num_splits = static_cast<int32_t>(num_splits);
  if (p.tokens == 0) return;
  const runtime::Kernel& kernel = sparse_kernel(place, format, a.fnuz, a.extra_fnuz, p.nhead);
  const int32_t rows = std::max(kernel.info().rows, 1);
  p.row_tiles = (p.nhead + rows - 1) / rows;
  p.tile_heads = rows;
  // blocks of a cluster need no memory to add up what they have
  const auto most_clustered = static_cast<int32_t>(kernel.most_clustered());
  if (most_clustered > 0) {
    p.num_splits = std::min(p.num_splits, most_clustered);
    p.tile_heads = clustered_heads(p, rows, place);
    p.row_tiles = (p.nhead + p.tile_heads - 1) / p.tile_heads;
    launch(kernel, p, int64_t{p.tokens} * p.row_tiles * p.num_splits, place, false, p.num_splits);
    return;
  }
  if (num_splits > 1) {
    HIPDECODE_CHECK(
        a.partial_output && a.partial_lse && a.arrivals,
        "partial_output, partial_lse, arrivals: expected tensors when num_splits > 1, got none");
    const int64_t partials = int64_t{p.tokens} * num_splits * p.nhead;
    p.partial_o = float_data("partial_output", *a.partial_output, partials * format.head_dim_v);
    p.partial_lse = float_data("partial_lse", *a.partial_lse, partials);
    p.arrivals = mutable_int32_data("arrivals", *a.arrivals, int64_t{p.tokens} * p.row_tiles);
  }
  const int64_t blocks = int64_t{p.tokens} * p.row_tiles * num_splits;
  HIPDECODE_CHECK(blocks <= kMostBlocks, "q, num_splits: expected at most ", kMostBlocks,
                  " tiles of heads x splits, got ", blocks);
  launch(kernel, p, blocks, place);
}

void sparse_mla_decode(Tensor q, Tensor cache, Tensor indices, OptionalTensor indptr,
                       OptionalTensor lengths, OptionalTensor extra_cache,
                       OptionalTensor extra_indices, OptionalTensor extra_indptr,
                       OptionalTensor extra_lengths, OptionalTensor attn_sink, Tensor o,
                       OptionalTensor lse, OptionalTensor partial_output,
                       OptionalTensor partial_lse, OptionalTensor arrivals, int64_t num_splits,
                       double sm_scale, bool fnuz, bool extra_fnuz) {
  launch_sparse({q, cache, indices, indptr, lengths, extra_cache, extra_indices, extra_indptr,
                 extra_lengths, attn_sink, o, lse, partial_output, partial_lse, arrivals,
                 num_splits, sm_scale, fnuz, extra_fnuz},
                begin_call(q));
}

}  // namespace hipdecode::torch_ops
