// SPDX-License-Identifier: MIT
#pragma once

// Writes the metadata: what the decode kernel walks and what the reduce merges.

#include <cstdint>

#include "plan_tiles.h"

namespace hipdecode::kernels::plan {

/// A work: pages [begin, end) of a tile of the chunk.
struct Piece {
  int32_t tile, piece, begin, end;  // end < 0: there is none
};

/// A tile's works are pieces (partials to be merged) or one whole. All threads of the block take
/// part.
class Output {
 public:
  TILE_FN Output(const MlaPlanParams& p, const Config& config, tile::Block block)
      : p_(p), config_(config), block_(block) {
    if (!tile::first_thread(block)) return;
    if (p.work_metadata_size >= 2) {
      p.work_metadata[0] = reinterpret_cast<uint64_t>(p.work_indptr);
      p.work_metadata[1] = reinterpret_cast<uint64_t>(p.work_info);
    }
    if (p.work_indptr_size > 0) p.work_indptr[0] = 0;
    if (p.reduce_indptr_size > 0) p.reduce_indptr[0] = 0;
  }

  /// Counts works and partials up to each tile of a chunk whose cuts are known.
  TILE_FN void count_pieces(const Tiles& tiles, Chunk& chunk) {
    Pieces own;
    const Pieces all = tile::scan_over(
        block_, chunk.pieces, tiles.count(),
        [&](int32_t k) {
          const int32_t cuts = chunk.cuts[k], pieces = cuts > 0 ? cuts + 1 : 0;
          own = {cuts, cuts > 0 ? pieces : marks(tiles.first() + k), pieces * chunk.tile[k].rows};
          return own;
        },
        [&](int32_t k, const Pieces& earlier) {
          const Pieces before = before_ + earlier;
          if (k == 0) chunk.first_work[0] = tiles.first() + before.cuts;
          chunk.first_work[k + 1] = tiles.first() + k + 1 + before.cuts + own.cuts;
          chunk.before[k] = before;
        });
    after_ = before_ + all;
  }

  /// Cuts of the tiles up to the end of the chunk that was counted.
  TILE_FN int32_t cuts() const { return after_.cuts; }

  /// Writes works of a chunk that was counted: the last one of its first `tiles` tiles, and what
  /// piece(0) ... piece(pieces - 1) say, none of which is a last one.
  template <class F>
  TILE_FN void write(const Chunk& chunk, int32_t first, int32_t tiles, int32_t pieces, F piece) {
    tile::for_block(block_, tiles + pieces, [&](int32_t i) {
      if (i < tiles) write_tile(first + i, chunk.tile[i], chunk.cuts[i], chunk.before[i].partials);
      const Piece what = i < tiles ? last_piece(chunk, i) : piece(i - tiles);
      if (what.end >= 0) write_piece(chunk, what);
    });
    if (tiles > 0) before_ = after_;
  }

  /// Empty ranges for the tiles that this batch does not have: launches have a fixed size.
  TILE_FN void close(int32_t tiles) {
    const int32_t partials = min_of(before_.partials, config_.partials);
    tile::for_block(block_, to_i32(p().reduce_indptr_size) - tiles - 1,
                    [&](int32_t k) { p().reduce_indptr[tiles + 1 + k] = partials; });
  }

 private:
  TILE_FN static Piece last_piece(const Chunk& chunk, int32_t k) {
    const int32_t cuts = chunk.cuts[k];
    return {k, cuts, cuts > 0 ? chunk.tile[k].last_begin : 0, chunk.tile[k].pages};
  }

  TILE_FN void write_piece(const Chunk& chunk, const Piece& what) const {
    const Tile& tile = chunk.tile[what.tile];
    const Pieces& before = chunk.before[what.tile];
    const bool split = chunk.cuts[what.tile] > 0;
    const int64_t after = max_of<int64_t>(tile.tokens - int64_t{what.end} * config_.page_size, 0);
    const int32_t row = split ? before.rows + what.piece * tile.rows : -1;
    p().work_info[chunk.first_work[what.tile] + what.piece] = {
        .batch = tile.batch,
        .partial_qo_loc = row,
        .qo_start = tile.row_begin,
        .qo_end = tile.row_end,
        .kv_start = sum_to_i32(tile.kv_begin, what.begin),
        .kv_end = sum_to_i32(tile.kv_begin, what.end),
        .kv_offset = to_i32(after + tile.extra),
        .reserved = 0};
    if (split) p().reduce_partial_map[before.partials + what.piece] = row;
  }

  /// In intra-batch mode a whole tile has one partial, which the reduce skips.
  TILE_FN bool marks(int32_t index) const {
    return p().intra_batch_mode != 0 && index < config_.reducible;
  }

  TILE_FN void write_tile(int32_t index, const Tile& tile, int32_t cuts, int32_t partials) {
    const int32_t end = min_of(partials + (cuts > 0 ? cuts + 1 : marks(index)), config_.partials);
    if (cuts == 0 && partials < end) p().reduce_partial_map[partials] = -1;
    if (index + 1 < p().reduce_indptr_size) p().reduce_indptr[index + 1] = end;
    if (index >= p().reduce_final_map_size) return;
    p().reduce_final_map[2 * int64_t{index}] = tile.row_begin;
    p().reduce_final_map[2 * int64_t{index} + 1] = tile.row_end;
  }

  TILE_FN const MlaPlanParams& p() const { return tile::reread(p_); }

  const MlaPlanParams& p_;
  const Config& config_;
  tile::Block block_;
  Pieces before_{}, after_{};  // of the schedule, before and after the chunk
};

}  // namespace hipdecode::kernels::plan
