// SPDX-License-Identifier: MIT
#include <algorithm>
#include <bit>

#include "../abi/paged_attention_params.h"
#include "ops.h"

namespace hipdecode::torch_ops {
namespace {

constexpr int64_t kMostBlocks = 0x7fffffff;  // of a cache, and of a launch
constexpr int64_t kMostRows = int64_t{1} << 29, kMostSplits = 1024, kGroupTokens = 16;
constexpr int64_t kMostTileRows = 128;
constexpr int64_t kChunkBytes = 16;

/// What the shapes of both halves of the cache say, with x elements in a chunk.
struct CacheShape {
  abi::DType type;
  int64_t num_blocks, nhead_kv, block_size, head_dim, x;
};

/// uint8 storage is fp8 of the machine's own flavour.
abi::DType cache_type(const char* name, const Tensor& t, bool fnuz) {
  if (t.scalar_type() == ScalarType::Byte)
    return fnuz ? abi::DType::fp8_e4m3fnuz : abi::DType::fp8_e4m3fn;
  return dtype_of(name, t);
}

void check_chunks(const char* name, const Tensor& t, const abi::PagedTensor& half, int64_t x) {
  const auto address = reinterpret_cast<uintptr_t>(t.data());
  bool good = address % kChunkBytes == 0;
  for (const int64_t stride :
       {half.stride_block, half.stride_head, half.stride_chunk, half.stride_column})
    good &= stride >= 0 && stride % x == 0;
  HIPDECODE_CHECK(good, name, ": expected chunks of ", kChunkBytes,
                  " bytes at multiples of that, got shape ", shape_text(t),
                  "; pass a cache whose inner dimensions are contiguous");
}

CacheShape keys_of(const Tensor& k, int64_t head_dim, bool fnuz, abi::PagedTensor& half) {
  check_dim("key_cache", k, 5);
  CacheShape c{cache_type("key_cache", k, fnuz), k.size(0), k.size(1), k.size(3), head_dim, 0};
  c.x = kChunkBytes / abi::element_bytes(c.type);
  HIPDECODE_CHECK(k.size(4) == c.x && k.size(2) * c.x == head_dim && c.nhead_kv >= 1,
                  "key_cache: expected [num_blocks, nhead_kv, ", head_dim / c.x, ", block_size, ",
                  c.x, "], got shape ", shape_text(k));
  HIPDECODE_CHECK(
      c.block_size >= kGroupTokens && c.block_size % kGroupTokens == 0 && c.block_size <= kMostRows,
      "key_cache: expected a block size that is a multiple of ", kGroupTokens, ", got shape ",
      shape_text(k));
  HIPDECODE_CHECK(c.num_blocks <= kMostBlocks, "key_cache: expected fewer than 2^31 blocks");
  HIPDECODE_CHECK(k.stride(4) == 1 && k.stride(3) == c.x,
                  "key_cache: expected tokens that are neighbours, got shape ", shape_text(k));
  half.blocks = const_address_of(k);
  half.stride_block = k.stride(0);
  half.stride_head = k.stride(1);
  half.stride_chunk = k.stride(2);
  check_chunks("key_cache", k, half, c.x);
  return c;
}

/// @returns whether the values are shuffled: [num_blocks, nhead_kv, block_size / x, head_dim, x]
bool check_values(const Tensor& v, const CacheShape& c, bool fnuz, abi::PagedTensor& half) {
  const bool shuffled = v.dim() == 5;
  HIPDECODE_CHECK(cache_type("value_cache", v, fnuz) == c.type,
                  "value_cache: expected the dtype of key_cache, got another");
  HIPDECODE_CHECK(shuffled || v.dim() == 4, "value_cache: expected 4 or 5 dimensions, got shape ",
                  shape_text(v));
  const bool outer = v.size(0) == c.num_blocks && v.size(1) == c.nhead_kv;
  const bool inner = shuffled
                         ? v.size(2) * c.x == c.block_size && v.size(3) == c.head_dim &&
                               v.size(4) == c.x && v.stride(4) == 1
                         : v.size(2) == c.head_dim && v.size(3) == c.block_size && v.stride(3) == 1;
  HIPDECODE_CHECK(outer && inner, "value_cache: expected [", c.num_blocks, ", ", c.nhead_kv,
                  ", block_size / ", c.x, ", ", c.head_dim, ", ", c.x, "] or [", c.num_blocks, ", ",
                  c.nhead_kv, ", ", c.head_dim,
                  ", block_size] with a contiguous last dimension, got shape ", shape_text(v));
  half.blocks = const_address_of(v);
  half.stride_block = v.stride(0);
  half.stride_head = v.stride(1);
  half.stride_chunk = shuffled ? v.stride(2) : c.x;
  half.stride_column = shuffled ? v.stride(3) : v.stride(2);
  check_chunks("value_cache", v, half, c.x);
  return shuffled;
}

/// @returns whether there is a scale a token
bool check_scale(const char* name, const OptionalTensor& scale, const CacheShape& c,
                 const Tensor& q, abi::PagedTensor& half) {
  if (!scale) return false;
  check_same_device(name, *scale, q);
  HIPDECODE_CHECK(scale->scalar_type() == ScalarType::Float, name,
                  ": expected float32, got another dtype");
  half.scale = static_cast<const float*>(const_address_of(*scale));
  if (scale->numel() == 1) return false;
  const bool blocks = scale->dim() == 3 || (scale->dim() == 4 && scale->size(3) == 1);
  HIPDECODE_CHECK(blocks && scale->size(0) == c.num_blocks && scale->size(1) == c.nhead_kv &&
                      scale->size(2) == c.block_size && scale->stride(2) == 1 &&
                      scale->stride(0) >= 0 && scale->stride(1) >= 0,
                  name, ": expected one element, or [", c.num_blocks, ", ", c.nhead_kv, ", ",
                  c.block_size, "] with tokens that are neighbours, got shape ",
                  shape_text(*scale));
  HIPDECODE_CHECK(c.type == abi::DType::fp8_e4m3fn || c.type == abi::DType::fp8_e4m3fnuz, name,
                  ": expected a scale for each token beside fp8 keys alone, got 16-bit keys");
  half.scale_stride_block = scale->stride(0);
  half.scale_stride_head = scale->stride(1);
  return true;
}

void check_rows(const Tensor& q, const Tensor& o, const OptionalTensor& lse, bool fnuz,
                abi::PagedAttentionParams& p) {
  check_dim("q", q, 3);
  check_dim("o", o, 3);
  const abi::DType type = dtype_of("q", q);
  const int64_t rows = q.size(0), nhead = q.size(1), head_dim = q.size(2);
  HIPDECODE_CHECK(type == abi::DType::bf16 || type == abi::DType::fp16,
                  "q: expected bfloat16 or float16, got another dtype");
  HIPDECODE_CHECK(
      nhead >= 1 && nhead <= kMostRows && q.stride(2) == 1,
      "q: expected [rows, nhead, head_dim] with a contiguous last dimension, got shape ",
      shape_text(q));
  p.o_dtype = cache_type("o", o, fnuz);
  HIPDECODE_CHECK(o.size(0) == rows && o.size(1) == nhead && o.size(2) == head_dim &&
                      o.stride(2) == 1 && (nhead == 1 || o.stride(1) >= head_dim) &&
                      (rows <= 1 || o.stride(0) >= head_dim),
                  "o: expected ", shape_text(q),
                  " with a contiguous last dimension and rows apart, got shape ", shape_text(o));
  check_same_device("o", o, q);
  p.q = const_address_of(q);
  p.o = address_of(o);
  if (lse) {
    check_same_device("lse", *lse, q);
    HIPDECODE_CHECK(lse->numel() == rows * nhead, "lse: expected [", rows, ", ", nhead,
                    "], got shape ", shape_text(*lse));
    p.lse = float_data("lse", *lse, rows * nhead);
  }
  p.q_stride_row = q.stride(0);
  p.q_stride_head = q.stride(1);
  p.o_stride_row = o.stride(0);
  p.o_stride_head = o.stride(1);
  p.rows_q = rows;
  p.nhead = static_cast<int32_t>(nhead);
}

void check_requests(const Tensor& q, const Tensor& block_tables, const Tensor& context_lens,
                    const OptionalTensor& qo_indptr, int64_t max_seqlen_q,
                    abi::PagedAttentionParams& p) {
  check_dim("block_tables", block_tables, 2);
  check_same_device("block_tables", block_tables, q);
  check_same_device("context_lens", context_lens, q);
  const int64_t batch = block_tables.size(0), columns = block_tables.size(1);
  HIPDECODE_CHECK(
      block_tables.scalar_type() == ScalarType::Int &&
          (columns <= 1 || block_tables.stride(1) == 1) && block_tables.stride(0) >= 0 &&
          columns <= kMostBlocks && batch <= kMostBlocks,
      "block_tables: expected [batch, max_blocks] int32 with contiguous rows, got shape ",
      shape_text(block_tables));
  HIPDECODE_CHECK(max_seqlen_q >= 1 && max_seqlen_q <= kMostRows / p.nhead,
                  "max_seqlen_q: expected 1 to ", kMostRows / p.nhead, ", got ", max_seqlen_q);
  p.block_tables = static_cast<const int32_t*>(const_address_of(block_tables));
  p.context_lens = int32_data("context_lens", context_lens, batch);
  p.table_stride = block_tables.stride(0);
  p.batch = static_cast<int32_t>(batch);
  p.max_blocks = static_cast<int32_t>(columns);
  p.max_seqlen_q = static_cast<int32_t>(max_seqlen_q);
  if (qo_indptr) {
    check_same_device("qo_indptr", *qo_indptr, q);
    p.qo_indptr = int32_data("qo_indptr", *qo_indptr, batch + 1);
    return;
  }
  HIPDECODE_CHECK(p.rows_q == batch * max_seqlen_q, "q: expected ", batch, " requests x ",
                  max_seqlen_q, " tokens without qo_indptr, got shape ", shape_text(q));
}

/// Group g of 16 tokens is in column g * multiplier >> shift of a table, for g below 2^31.
void divide_by_block(const CacheShape& c, abi::PagedAttentionParams& p) {
  const auto groups = static_cast<uint64_t>(c.block_size / kGroupTokens);
  const int bits = std::bit_width(groups - 1);
  p.group_shift = 31 + bits;
  p.group_multiplier =
      static_cast<uint32_t>(((uint64_t{1} << p.group_shift) + groups - 1) / groups);
}

/// Whether blocks are of 16 tokens, and offsets within them those of a dense, shuffled cache.
bool is_block16(const CacheShape& c, const abi::PagedAttentionParams& p) {
  return c.block_size == kGroupTokens && p.k.stride_chunk == kGroupTokens * c.x &&
         p.v.stride_column == c.x && (c.x == kGroupTokens || p.v.stride_chunk == c.head_dim * c.x);
}

const runtime::Kernel& paged_kernel(const runtime::Place& place, const Tensor& q,
                                    const CacheShape& c, bool token_scales, bool fast,
                                    int64_t rows) {
  thread_local runtime::KernelMemo memo;
  const abi::DType type = dtype_of("q", q);
  const auto key = static_cast<uint64_t>(rows) << 32 | static_cast<uint64_t>(c.head_dim) << 16 |
                   static_cast<uint64_t>(type) << 8 | static_cast<uint64_t>(c.type) << 4 |
                   static_cast<uint64_t>(token_scales) << 1 | static_cast<uint64_t>(fast);
  return memo.find(place, key, [&] {
    return runtime::join("paged_attention/", c.head_dim, "-", dtype_name(type), "-",
                         dtype_name(c.type), "-", token_scales ? "token" : "tensor", "-",
                         fast ? "block16" : "any", "-", rows);
  });
}

void give_scratch(const OptionalTensor& partial_output, const OptionalTensor& partial_lse,
                  const OptionalTensor& arrivals, int64_t head_dim, const Tensor& q,
                  abi::PagedAttentionParams& p) {
  HIPDECODE_CHECK(
      partial_output && partial_lse && arrivals,
      "partial_output, partial_lse, arrivals: expected tensors when num_splits > 1, got none");
  for (const OptionalTensor* t : {&partial_output, &partial_lse, &arrivals})
    check_same_device("partial_output, partial_lse, arrivals", **t, q);
  const int64_t partials = p.rows_q * p.num_splits * p.nhead;
  p.partial_o = float_data("partial_output", *partial_output, partials * head_dim);
  p.partial_lse = float_data("partial_lse", *partial_lse, partials);
  p.arrivals =
      mutable_int32_data("arrivals", *arrivals, int64_t{p.batch} * p.nhead_kv * p.row_tiles);
}

}  // namespace

void paged_attention(Tensor q, Tensor key_cache, Tensor value_cache, Tensor o, OptionalTensor lse,
                     Tensor block_tables, Tensor context_lens, OptionalTensor qo_indptr,
                     OptionalTensor k_scale, OptionalTensor v_scale, OptionalTensor out_scale,
                     OptionalTensor partial_output, OptionalTensor partial_lse,
                     OptionalTensor arrivals, int64_t max_seqlen_q, int64_t num_splits,
                     double sm_scale, bool fast, bool fnuz, int64_t tile_rows) {
  const runtime::Place place = begin_call(q);
  abi::PagedAttentionParams p{};
  check_rows(q, o, lse, fnuz, p);
  check_same_device("key_cache", key_cache, q);
  check_same_device("value_cache", value_cache, q);
  const CacheShape c = keys_of(key_cache, q.size(2), fnuz, p.k);
  check_values(value_cache, c, fnuz, p.v);
  const bool token_scales = check_scale("k_scale", k_scale, c, q, p.k);
  HIPDECODE_CHECK(check_scale("v_scale", v_scale, c, q, p.v) == token_scales,
                  "k_scale, v_scale: expected both for each token or neither, got one");
  check_requests(q, block_tables, context_lens, qo_indptr, max_seqlen_q, p);
  HIPDECODE_CHECK(p.nhead % c.nhead_kv == 0, "q: expected a multiple of ", c.nhead_kv,
                  " heads, got shape ", shape_text(q));
  HIPDECODE_CHECK(!fast || is_block16(c, p),
                  "fast: expected blocks of 16 tokens without gaps, got shape ",
                  shape_text(key_cache));
  HIPDECODE_CHECK(num_splits >= 1 && num_splits <= kMostSplits, "num_splits: expected 1 to ",
                  kMostSplits, ", got ", num_splits);
  HIPDECODE_CHECK(tile_rows >= 0 && tile_rows <= kMostTileRows, "tile_rows: expected 0 to ",
                  kMostTileRows, ", got ", tile_rows);
  p.out_scale = scale_data("out_scale", out_scale, q);
  divide_by_block(c, p);
  p.num_blocks = c.num_blocks;
  p.nhead_kv = static_cast<int32_t>(c.nhead_kv);
  p.gqa = p.nhead / p.nhead_kv;
  p.block_size = static_cast<int32_t>(c.block_size);
  p.num_splits = static_cast<int32_t>(num_splits);
  p.sm_scale = score_scale(sm_scale);
  const int64_t packed = max_seqlen_q * p.gqa;
  const int64_t wanted = wanted_rows(place.device.kind, packed, tile_rows);
  const runtime::Kernel& kernel = paged_kernel(place, q, c, token_scales, fast, wanted);
  const int64_t rows = std::max(kernel.info().rows, 1);
  p.row_tiles = static_cast<int32_t>((packed + rows - 1) / rows);
  if (num_splits > 1) give_scratch(partial_output, partial_lse, arrivals, c.head_dim, q, p);
  if (p.rows_q == 0) return;
  // an empty batch still clears the rows of o that nobody owns
  const int64_t tiles = int64_t{p.batch} * p.nhead_kv * p.row_tiles;
  HIPDECODE_CHECK(tiles <= kMostBlocks / num_splits,
                  "batch, max_seqlen_q, num_splits: expected at most ", kMostBlocks,
                  " tiles of query rows x splits, got ", tiles, " x ", num_splits);
  const int64_t blocks = std::max<int64_t>(tiles * num_splits, 1);
  p.together = p.num_splits > 1 && blocks <= kernel.most_together();
  launch(kernel, p, blocks, place, p.together != 0);
}

}  // namespace hipdecode::torch_ops
