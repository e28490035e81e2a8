// SPDX-License-Identifier: MIT
#pragma once

#include "../abi/mla_reduce_params.h"
#include "parts/bounds.h"
#include "parts/lse_merge.h"

namespace hipdecode::kernels {

/// Merges the partials of every tile by LSE. A tile with one partial or none was written by the
/// decode and is left alone; so is everything beyond what reduce_indptr points at.
struct MlaReduce {
  using Params = abi::MlaReduceParams;
  static constexpr int kMaxHeadDimV = 1024, kWaves = 4;
  static constexpr bool kWaits = true;                               // for KernelInfo
  static constexpr int kColumns = kMaxHeadDimV / tile::kMergeParts;  // that a wave merges at a time
  struct Shared {};

  static constexpr int32_t kMostUnits = 1 << 28;
  /// A tile that was split: at most kMostUnits rows, over all heads.
  struct Tile {
    const int32_t* map;  // base rows of its partials
    int32_t count;       // of partials; zero: nothing to merge
    int32_t units;       // rows x heads
    int64_t first_row;
  };

  static TILE_FN Tile tile_at(const Params& p, int32_t t) {
    const int64_t first = clamp(p.reduce_indptr[t], 0, p.num_partials);
    const int64_t count = clamp(p.reduce_indptr[t + 1], first, p.num_partials) - first;
    const int32_t* map = p.reduce_partial_map + first;
    if (count <= 1) return {map, 0, 0, 0};
    const int32_t* ends = p.reduce_final_map ? p.reduce_final_map + 2 * int64_t{t} : map;
    const int64_t rows = int64_t{ends[1]} - ends[0];
    const int64_t first_row = p.reduce_final_map ? ends[0] : t * rows;
    if (rows < 0 || first_row < 0 || first_row + rows > p.rows_o) return {map, 0, 0, 0};
    return {map, static_cast<int32_t>(count), clamp32(rows * p.nhead, 0, kMostUnits), first_row};
  }

  static constexpr int32_t kFewPartials = 8;

  static TILE_FN void run(const Params& p, tile::Block block, Shared&) {
    tile::await_earlier_launches();
    const bool vectors = tile::kStripsPay && vectors_of_four(p);
    // stage 0: waves form a team for each tile, or each wave takes tiles in turn
    const int32_t waves = block.count() * block.waves();
    const int32_t wave = block.index() * block.waves() + block.wave();
    const int32_t team = waves > p.tiles ? waves / p.tiles : 1, teams = waves / team;
    for (int32_t t = wave / team; t < p.tiles; t += teams) {
      const Tile tile = tile_at(p, t);
      // stage 1: one merge per row and head, and part of its columns
      if constexpr (!tile::kStripsPay)
        merge_tile<tile::Row<kColumns>, kColumns, tile::kMergeAhead>(p, tile, wave % team, team);
      else if (vectors && tile.count <= kFewPartials)
        merge_tile<tile::Strip<4, 4>, tile::Strip<4, 4>::kColumns, 4>(p, tile, wave % team, team);
      else
        merge_tile<tile::Strip<1, 4>, tile::Strip<1, 4>::kColumns, 16>(p, tile, wave % team, team);
    }
  }

  /// Whether all rows can be read and written four columns at a time.
  static TILE_FN bool vectors_of_four(const Params& p) {
    const auto from = reinterpret_cast<uintptr_t>(p.partial_o) / sizeof(float);
    const auto to = reinterpret_cast<uintptr_t>(p.o) / sizeof(uint16_t);
    const auto strides = static_cast<uintptr_t>(p.o_stride_row | p.o_stride_head);
    return (from | to | strides | static_cast<uintptr_t>(p.head_dim_v)) % 4 == 0;
  }

  /// The units of one member of a tile's team.
  /// @tparam kWidth columns of a row that a wave merges at a time
  /// @tparam kAhead partials on their way at a time
  template <class Row, int kWidth, int kAhead>
  static TILE_FN void merge_tile(const Params& p, const Tile& tile, int32_t member, int32_t team) {
    const int32_t parts = kWidth == kMaxHeadDimV ? 1 : (p.head_dim_v + kWidth - 1) / kWidth;
    for (int32_t unit = member; unit < tile.units * parts; unit += team) {
      merge_row<Row, kWidth, kAhead>(p, tile, unit / parts / p.nhead, unit / parts % p.nhead,
                                     unit % parts * kWidth);
    }
  }

  template <class Row, int kWidth, int kAhead>
  static TILE_FN void merge_row(const Params& p, const Tile& tile, int32_t r, int32_t head,
                                int32_t column) {
    if (!tile::all_over(tile.count, [&](int32_t k) {
          return tile.map[k] >= 0 && int64_t{tile.map[k]} + r < p.partial_rows;
        }))
      return;
    const int64_t row = tile.first_row + r;
    auto* o = static_cast<uint16_t*>(p.o) + row * p.o_stride_row + head * p.o_stride_head;
    const bool first = column == 0 && p.lse != nullptr;
    const int32_t left = p.head_dim_v - column;
    merge_partials<Row, kAhead>(
        {o + column, first ? p.lse + row * p.nhead + head : nullptr, p.o_dtype}, tile.count,
        left < kWidth ? left : kWidth, [&](int32_t k) -> Partial {
          const int64_t at = (int64_t{tile.map[k]} + r) * p.nhead + head;
          return {p.partial_o + at * p.head_dim_v + column, p.partial_lse + at};
        });
  }
};

}  // namespace hipdecode::kernels
