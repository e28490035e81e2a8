// SPDX-License-Identifier: MIT
#pragma once

// Planner v1_0: cuts each tile evenly by itself and deals the works to the clusters by number.

#include <cstdint>

#include "plan_output.h"

namespace hipdecode::kernels::plan {

inline constexpr int32_t kMinSplitTokens = 196;  // a tile gets a cut per 196 tokens
inline constexpr int32_t kMaxTailTokens = 4;     // a shorter last piece is merged

class IntraBatch {
 public:
  TILE_FN IntraBatch(const MlaPlanParams& p, const Config& config, const Totals& all)
      : p_(p), config_(config) {
    const int32_t tiles = to_i32(all.tiles);
    most_cuts_ = config.works - tiles;
    most_pieces_ = min_of(ceil_div(config.clusters, max_of(tiles, 1)), p.num_kv_splits);
    if (p.max_split_per_batch >= 0) most_pieces_ = min_of(most_pieces_, p.max_split_per_batch);
  }

  /// Cuts a chunk's tiles and writes the works: as often as each asks for while there is room, then
  /// not at all. All threads of the block take part.
  TILE_FN void fill(tile::Block block, const Tiles& tiles, Chunk& chunk, Output& out) {
    int32_t asked;
    const int32_t all = tile::scan_over(
        block, chunk.counts, tiles.count(), [&](int32_t k) { return asked = cut(chunk.tile[k]); },
        [&](int32_t k, int32_t before) {
          const int32_t index = tiles.first() + k;
          const int32_t most = min_of(most_cuts_, config_.partials - index - 1);
          const bool fits = index < config_.reducible && cuts_ + before + asked <= most;
          chunk.cuts[k] = fits ? asked : 0;
        });
    cuts_ += all;
    out.count_pieces(tiles, chunk);
    const int32_t first = chunk.before[0].cuts;
    const auto cuts_before = [&](int32_t k) { return chunk.before[k].cuts - first; };
    out.write(chunk, tiles.first(), tiles.count(), out.cuts() - first, [&](int32_t i) -> Piece {
      const int32_t k = count_up_to(tiles.count(), i, cuts_before) - 1;
      const int32_t piece = i - cuts_before(k);
      const int32_t pages = quotient(chunk.tile[k].last_begin, chunk.cuts[k]);
      return {k, piece, piece * pages, (piece + 1) * pages};
    });
  }

  TILE_FN void close(tile::Block block, int32_t works) {
    const int32_t each = works / max_of(config_.clusters, 1);
    const int32_t extra = works - each * config_.clusters;
    tile::for_block(block, config_.clusters, [&](int32_t c) {
      p().work_indptr[c + 1] = (c + 1) * each + min_of(c + 1, extra);
    });
  }

 private:
  /// Where a tile is cut into even pieces; returns how often.
  TILE_FN int32_t cut(Tile& tile) const {
    const int64_t tokens = min_of(int64_t{tile.pages} * config_.page_size, tile.tokens);
    const int32_t most = max_of(min_of(to_i32(tokens) / kMinSplitTokens, most_pieces_), 1);
    const int32_t blocks = max_of(ceil_div(tile.pages, config_.granularity), 1);
    const int32_t piece = to_i32(int64_t{ceil_div(blocks, most)} * config_.granularity);
    int32_t cuts = max_of(ceil_div(tile.pages, piece), 1) - 1;
    const int64_t tail = tokens - int64_t{cuts} * piece * config_.page_size;
    if (cuts > 0 && tail <= kMaxTailTokens) --cuts;
    tile.last_begin = cuts * piece;
    return cuts;
  }

  TILE_FN const MlaPlanParams& p() const { return tile::reread(p_); }

  const MlaPlanParams& p_;
  const Config& config_;
  int32_t most_cuts_;    // that there is room for
  int32_t most_pieces_;  // of a tile
  int32_t cuts_ = 0;     // that were asked for so far
  int32_t works_ = 0;    // so far
};

}  // namespace hipdecode::kernels::plan
