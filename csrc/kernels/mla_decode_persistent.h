// SPDX-License-Identifier: MIT
#pragma once

#include "parts/mla_tile.h"

namespace hipdecode::kernels {

/// MLA decode over a plan: cluster c walks the works [work_indptr[c], work_indptr[c + 1]) that
/// mla_plan dealt to it. A cluster is p.row_tiles blocks, which share the rows of each work and
/// come by its keys at the same time. A work that holds all keys of its rows writes the output, the
/// others write partials for mla_reduce.
template <class Shape>
struct MlaDecodePersistent {
  using Params = abi::MlaDecodeParams;
  using Tile = MlaTile<Shape, tile::Schedule::persistent>;
  using Shared = typename Tile::Tiles::Shared;
  static constexpr int kWaves = Tile::Tiles::kWaves, kRows = Tile::Tiles::kRows;

  /// Tokens of a work; the last page of a request may be part full.
  static TILE_FN int32_t work_tokens(const Params& p, const abi::WorkItem& work) {
    const bool holds_tail = work.kv_offset == 0 && work.kv_end > work.kv_start;
    return tokens_of(p, work.kv_start, work.kv_end,
                     holds_tail ? last_page(p, work.batch) : p.page_size);
  }

  /// Where a work begins among the tokens of its request here; asked by shares of a cache alone.
  static TILE_FN int32_t tokens_ahead(const Params& p, const abi::WorkItem& work) {
    if (p.round == 0) return 0;
    const int64_t pages = int64_t{work.kv_start} - p.kv_indptr[work.batch];
    return clamp32(pages << p.page_bits, 0, kMaxTokens);
  }

  static TILE_FN void run(const Params& params, tile::Block block, Shared& shared) {
    clear_unowned_rows<Shape::kHeadDimV>(params, block);
    const Params& p = tile::reread(params);
    const int32_t cluster = quotient(block.index(), p.row_tiles);
    const int32_t first_tile = block.index() - cluster * p.row_tiles;
    const int64_t begin = clamp(p.work_indptr[cluster], 0, p.num_works);
    const int64_t end = clamp(p.work_indptr[cluster + 1], begin, p.num_works);
    typename Tile::Tiles tiles(shared, block);
    for (int64_t w = begin; w < end; ++w) {
      // stage 0: the record says which rows and keys
      const abi::WorkItem work = tile::uniform(p.work_info[w]);
      if (work.batch < 0 || work.batch >= p.batch) continue;
      const int64_t first_row = clamp(work.qo_start, 0, p.rows_q),
                    end_row = clamp(work.qo_end, first_row, p.rows_q);
      const int64_t request_row = clamp(p.qo_indptr[work.batch], 0, p.rows_q);
      const int32_t tokens = work_tokens(p, work);
      const QuerySpan rows{.first_row = first_row,
                           .position = first_row - request_row,
                           .q_len = clamp(p.qo_indptr[work.batch + 1], 0, p.rows_q) - request_row,
                           .begin = first_tile * kRows,
                           .end = packed_rows(p, end_row - first_row)};
      const KeySpan keys{.first_index = work.kv_start,
                         .begin = 0,
                         .end = tokens,
                         .causal_end = causal_end(p, work.batch, int64_t{tokens} + work.kv_offset),
                         .ahead = tokens_ahead(p, work)};
      // stage 1: attend and write
      const bool whole = work.partial_qo_loc < 0;
      Tile::run(p, rows, keys, {!whole, whole ? first_row : work.partial_qo_loc, 1}, tiles,
                p.row_tiles * kRows);
    }
  }
};

}  // namespace hipdecode::kernels
