// SPDX-License-Identifier: MIT
#pragma once

#include "parts/lse_merge.h"
#include "parts/mla_tile.h"

namespace hipdecode::kernels {

/// MLA decode without a plan: one block per (request, tile of query rows, split of its keys), one
/// launch. The split points follow from the request's own length and num_splits, so its bits do not
/// depend on its neighbours. The last block of a tile to finish merges the splits, in order.
template <class Shape>
struct MlaDecodeHk {
  using Params = abi::MlaDecodeParams;
  using Tile = MlaTile<Shape, tile::Schedule::hk>;
  using Shared = typename Tile::Tiles::Shared;
  static constexpr int kWaves = Tile::Tiles::kWaves, kRows = Tile::Tiles::kRows;
  static constexpr int32_t kMinSplitTokens = 64;

  static TILE_FN int32_t context_tokens(const Params& p, int64_t request) {
    const int64_t pages =
        clamp(int64_t{p.kv_indptr[request + 1]} - p.kv_indptr[request], 0, p.num_kv_indices);
    return tokens_of(p, pages, pages > 0 ? last_page(p, request) : p.page_size);
  }

  static TILE_FN void run(const Params& p, tile::Block block, Shared& shared) {
    clear_unowned_rows<Shape::kHeadDimV>(p, block);
    // stage 0: which request, rows and keys
    const int32_t split = block.index() % p.num_splits, tile_index = block.index() / p.num_splits;
    const int32_t request = tile_index / p.row_tiles, row_tile = tile_index % p.row_tiles;
    if (request >= p.batch) return;
    const int64_t first_row = clamp(p.qo_indptr[request], 0, p.rows_q);
    const int64_t q_len = clamp(p.qo_indptr[request + 1], first_row, p.rows_q) - first_row;
    const int32_t packed = packed_rows(p, q_len), stride = p.row_tiles * kRows;
    const int32_t tokens = context_tokens(p, request);
    const int32_t even = tokens / p.num_splits + (tokens % p.num_splits != 0);
    const int32_t chunk = (even > 1 ? even + kMinSplitTokens - 1 : kMinSplitTokens) /
                          kMinSplitTokens * kMinSplitTokens;
    const int32_t used = tokens > 0 ? (tokens + chunk - 1) / chunk : 1;
    if (split >= used || row_tile * kRows >= packed) return;
    const KeySpan keys{.first_index = p.kv_indptr[request],
                       .begin = split * chunk,
                       .end = split + 1 < used ? (split + 1) * chunk : tokens,
                       .causal_end = tokens};
    const Destination to = used == 1
                               ? Destination{false, first_row, 1}
                               : Destination{true, first_row * p.num_splits + split, p.num_splits};
    // stage 1: attend; a tile has one pass unless a request is longer than max_seqlen_q
    typename Tile::Tiles tiles(shared, block);
    for (int32_t begin = row_tile * kRows; begin < packed; begin += stride) {
      const int32_t end = begin + kRows < packed ? begin + kRows : packed;
      Tile::run(p, {first_row, 0, q_len, begin, end}, keys, to, tiles);
    }
    if (used == 1 || tile::arrive(tile::reread(p).arrivals + tile_index, used, block) != used - 1)
      return;
    // stage 2: the last arriver merges, a wave for each row
    for (int32_t begin = row_tile * kRows; begin < packed; begin += stride)
      for (int32_t r = begin + block.wave(); r < begin + kRows && r < packed; r += block.waves())
        merge_row(tile::reread(p), first_row + r / p.nhead, r % p.nhead, used);
  }

  static TILE_FN void merge_row(const Params& p, int64_t row, int32_t head, int32_t used) {
    auto* o = static_cast<uint16_t*>(p.o) + row * p.o_stride_row + head * p.o_stride_head;
    float* lse = p.lse == nullptr ? nullptr : p.lse + row * p.nhead + head;
    merge_partials<Shape::kHeadDimV>(
        {o, lse, p.o_dtype}, p.partial_o, p.partial_lse, used, Shape::kHeadDimV,
        [&](int32_t k) { return (row * p.num_splits + k) * p.nhead + head; });
  }
};

}  // namespace hipdecode::kernels
