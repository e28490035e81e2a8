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
  using Tile = MlaTile<Shape>;
  static constexpr int64_t kMinSplitTokens = 64;

  struct Shared {
    typename Tile::Shared tile;
    float merged[Shape::kHeadDimV];
  };

  static TILE_FN int64_t context_tokens(const Params& p, int64_t request) {
    const int64_t pages =
        clamp(int64_t{p.kv_indptr[request + 1]} - p.kv_indptr[request], 0, p.num_kv_indices);
    if (pages == 0 || p.page_size == 1 || p.kv_last_page_lens == nullptr)
      return pages * p.page_size;
    return (pages - 1) * p.page_size + clamp(p.kv_last_page_lens[request], 0, p.page_size);
  }

  static TILE_FN void run(const Params& p, tile::Block block, Shared& shared) {
    clear_unowned_rows(p, Shape::kHeadDimV, block);
    // stage 0: which request, rows and keys
    const int64_t split = block.index() % p.num_splits;
    const int64_t tile_index = block.index() / p.num_splits;
    const int64_t request = tile_index / p.row_tiles, row_tile = tile_index % p.row_tiles;
    if (request >= p.batch) return;
    const int64_t first_row = clamp(p.qo_indptr[request], 0, p.rows_q);
    const int64_t q_len = clamp(p.qo_indptr[request + 1], first_row, p.rows_q) - first_row;
    const int64_t packed = q_len * p.nhead, stride = int64_t{p.row_tiles} * Tile::Tiles::kRows;
    const int64_t tokens = context_tokens(p, request);
    const int64_t even = (tokens + p.num_splits - 1) / p.num_splits;
    const int64_t chunk = (even > 1 ? even + kMinSplitTokens - 1 : kMinSplitTokens) /
                          kMinSplitTokens * kMinSplitTokens;
    const int64_t used = tokens > 0 ? (tokens + chunk - 1) / chunk : 1;
    if (split >= used || row_tile * Tile::Tiles::kRows >= packed) return;
    const KeySpan keys{.first_index = p.kv_indptr[request],
                       .begin = split * chunk,
                       .end = (split + 1) * chunk < tokens ? (split + 1) * chunk : tokens,
                       .causal_end = tokens};
    const Destination to = used == 1
                               ? Destination{false, first_row, 1}
                               : Destination{true, first_row * p.num_splits + split, p.num_splits};
    // stage 1: attend; a tile has one pass unless a request is longer than max_seqlen_q
    for (int64_t begin = row_tile * Tile::Tiles::kRows; begin < packed; begin += stride) {
      const int64_t end = begin + Tile::Tiles::kRows < packed ? begin + Tile::Tiles::kRows : packed;
      Tile::run(p, {first_row, 0, q_len, begin, end}, keys, to, shared.tile);
    }
    if (used == 1 || tile::arrive(p.arrivals + tile_index, static_cast<int32_t>(used)) != used - 1)
      return;
    // stage 2: the last arriver merges
    for (int64_t begin = row_tile * Tile::Tiles::kRows; begin < packed; begin += stride)
      for (int64_t r = begin; r < begin + Tile::Tiles::kRows && r < packed; ++r)
        merge_row(p, first_row + r / p.nhead, r % p.nhead, used, shared);
  }

  static TILE_FN void merge_row(const Params& p, int64_t row, int64_t head, int64_t used,
                                Shared& shared) {
    const float lse =
        merge_partials(shared.merged, p.partial_o, p.partial_lse, used, Shape::kHeadDimV,
                       [&](int64_t k) { return (row * p.num_splits + k) * p.nhead + head; });
    auto* o = static_cast<uint16_t*>(p.o) + row * p.o_stride_row + head * p.o_stride_head;
    tile::write_row(o, shared.merged, 1.0f, Shape::kHeadDimV, p.o_dtype);
    if (p.lse != nullptr) p.lse[row * p.nhead + head] = lse;
  }
};

}  // namespace hipdecode::kernels
