// SPDX-License-Identifier: MIT
#pragma once

#include "parts/mla_tile.h"
#include "parts/split_range.h"

namespace hipdecode::kernels {

/// The first half of a decode that `mla_decode_reduce` ends: one block per (request, tile of heads,
/// split of its keys); requests have one query row at most. Every split that has keys becomes a
/// partial, one alone as well; splits without keys write nothing.
template <class Shape>
struct MlaDecodeSplit {
  using Params = abi::MlaDecodeParams;
  using Tile = MlaTile<Shape, tile::Schedule::hk>;
  using Tiles = typename Tile::Tiles;
  using Shared = typename Tiles::Shared;
  static constexpr int kWaves = Tiles::kWaves, kRows = Tiles::kRows;

  static TILE_FN void run(const Params& p, tile::Block block, Shared& shared) {
    attend(p, block, shared);
    clear_unowned_rows<Shape::kHeadDimV>(tile::reread(p), block);
  }

  static TILE_FN void attend(const Params& p, tile::Block block, Shared& shared) {
    // stage 0: which request, heads and keys
    const int32_t tile_index = quotient(block.index(), p.num_splits);
    const int32_t split = block.index() - tile_index * p.num_splits;
    const int32_t request = quotient(tile_index, p.row_tiles);
    if (request >= p.batch) return;
    const int32_t row = p.qo_indptr[request], end_row = p.qo_indptr[request + 1];
    const int32_t first_page = p.kv_indptr[request], end_page = p.kv_indptr[request + 1];
    if (end_row <= row || row < 0 || row >= p.rows_q) return;
    const int32_t tokens = tokens_of(p, first_page, end_page, last_page(p, request));
    const SplitRange part = dealt_range(tokens, p.num_splits, split);
    if (split >= part.used) return;
    const int32_t head = (tile_index - request * p.row_tiles) * kRows;
    const int32_t end_head = head + kRows < p.nhead ? head + kRows : p.nhead;
    // stage 1: attend and write the partial
    Tiles tiles(shared, block);
    Tile::run(
        p, {row, 0, 1, head, end_head},
        {.first_index = first_page, .begin = part.begin, .end = part.end, .causal_end = tokens},
        {true, int64_t{row} * p.num_splits + split, p.num_splits}, tiles);
  }
};

}  // namespace hipdecode::kernels
