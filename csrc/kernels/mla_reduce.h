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
  struct Shared {
    // so many that the next launch's blocks find room beside those of this one
    static constexpr int kBlocksTogether = 4;  // of a multiprocessor
  };

  static constexpr int32_t kMostUnits = 1 << 28, kMostPartials = 0x7fffffff;
  static constexpr int32_t kFewPartials = 4;
  /// A tile that was split: at most kMostUnits rows, over all heads.
  struct Tile {
    const int32_t* map;  // base rows of its partials
    int32_t count;       // of partials; zero: nothing to merge
    int32_t units;       // rows x heads
    int64_t first_row;
    int32_t bases[kFewPartials];  // where strips pay: the map, if it is as short
  };

  static TILE_FN Tile tile_at(const Params& p, int32_t t) {
    // both maps on their way before either is looked at
    const int32_t begin = p.reduce_indptr[t], end = p.reduce_indptr[t + 1];
    const int32_t* of_tile = p.reduce_final_map;
    int32_t rows_begin = 0, rows_end = 0;
    if (of_tile != nullptr)
      rows_begin = of_tile[2 * int64_t{t}], rows_end = of_tile[2 * int64_t{t} + 1];
    const auto most = static_cast<int32_t>(clamp(p.num_partials, 0, kMostPartials));
    const int32_t first = clamp32(begin, 0, most), count = clamp32(end, first, most) - first;
    const int32_t* map = p.reduce_partial_map + first;
    if (count <= 1) return {map, 0, 0, 0, {}};
    Tile tile{map, count, 0, 0, {}};
    // of few partials every lane keeps the base rows, on their way before anything else is known
    if (tile::kStripsPay && count <= kFewPartials) {
      TILE_UNROLL
      for (int k = 0; k < kFewPartials; ++k) tile.bases[k] = map[k < count ? k : 0];
    }
    if (of_tile == nullptr) rows_begin = map[0], rows_end = map[1];
    const int64_t rows = int64_t{rows_end} - rows_begin;
    const int64_t first_row = of_tile != nullptr ? rows_begin : t * rows;
    if (rows < 0 || first_row < 0 || first_row + rows > p.rows_o) return {map, 0, 0, 0, {}};
    tile.units = clamp32(rows * p.nhead, 0, kMostUnits), tile.first_row = first_row;
    return tile;
  }

  using Strip = tile::Strip<4, 4>;
  static constexpr int32_t kWidth =
      tile::kStripsPay ? Strip::kColumns : kColumns;  // columns that a wave merges at a time

  /// Into how many parts rows are divided.
  static TILE_FN int32_t parts_of(const Params& p) {
    return kWidth == kMaxHeadDimV ? 1 : (p.head_dim_v + kWidth - 1) / kWidth;
  }

  /// Some columns of one row of a tile.
  struct Unit {
    int32_t row, head, column;

    TILE_FN Unit(const Params& p, int32_t unit) {
      const int32_t parts = parts_of(p);
      const int32_t vector = quotient(unit, parts);
      row = quotient(vector, p.nhead);
      head = vector - row * p.nhead;
      column = (unit - vector * parts) * kWidth;
    }
  };

  /// What a wave does: it is one of a team for each tile, or takes tiles in turn. Which columns
  /// are its first follows from its number alone.
  struct Share {
    int32_t member, team, first_tile;
    Unit first;

    TILE_FN Share(const Params& p, tile::Block block) : first(p, 0) {
      const int32_t waves = block.count() * block.waves();
      const int32_t wave = block.index() * block.waves() + block.wave();
      team = waves > p.tiles ? quotient(waves, p.tiles) : 1;
      first_tile = quotient(wave, team);
      member = wave - first_tile * team;
      first = Unit(p, member);
    }
    TILE_FN int32_t teams(tile::Block block) const {
      return quotient(block.count() * block.waves(), team);
    }
  };

  static TILE_FN void run(const Params& p, tile::Block block, Shared&) {
    // stage 0: which tiles and which of their columns
    const bool vectors = tile::kStripsPay && vectors_of_four(p);
    const Share share(p, block);
    tile::await_earlier_launches();
    for (int32_t t = share.first_tile; t < p.tiles; t += share.teams(block)) {
      const Tile tile = tile_at(p, t);
      // stage 1: one merge per row and head, and part of its columns
      if constexpr (!tile::kStripsPay)
        merge_tile<tile::Row<kColumns>, tile::kMergeAhead>(p, tile, share);
      else if (vectors && tile.count <= kFewPartials)
        merge_few(p, tile, share);
      else if (vectors)
        merge_tile<Strip, 4>(p, tile, share);
      else
        merge_tile<tile::Strip<1, 16>, 2>(p, tile, share);
    }
  }

  /// Whether all rows can be read and written four columns at a time.
  static TILE_FN bool vectors_of_four(const Params& p) {
    const auto from = reinterpret_cast<uintptr_t>(p.partial_o) / sizeof(float);
    const auto to = reinterpret_cast<uintptr_t>(p.o) / sizeof(uint16_t);
    const auto strides = static_cast<uintptr_t>(p.o_stride_row | p.o_stride_head);
    return (from | to | strides | static_cast<uintptr_t>(p.head_dim_v)) % 4 == 0;
  }

  /// Calls use(unit) for each unit of a tile that is the wave's.
  template <class Use>
  static TILE_FN void for_units(const Params& p, const Tile& tile, const Share& share, Use use) {
    const int32_t units = tile.units * parts_of(p);
    TILE_ROLLED
    for (int32_t n = share.member; n < units; n += share.team) {
      const bool known = tile::kStripsPay && n == share.member;
      use(known ? share.first : Unit(p, n));
    }
  }

  /// Of few partials every lane keeps the base rows.
  static TILE_FN void merge_few(const Params& p, const Tile& tile, const Share& share) {
    if (tile.units == 0) return;  // there is no map either
    int32_t most = 0, signs = 0;
    TILE_UNROLL
    for (const int32_t base : tile.bases) {
      most = base > most ? base : most;
      signs |= base;
    }
    if (signs < 0) return;
    for_units(p, tile, share, [&](const Unit& unit) {
      if (int64_t{most} + unit.row >= p.partial_rows) return;
      merge_row<Strip, 4, tile::Few<kFewPartials>>(p, tile, unit,
                                                   [&](int32_t k) { return tile.bases[k]; });
    });
  }

  /// @tparam kAhead partials on their way at a time
  template <class Row, int kAhead>
  static TILE_FN void merge_tile(const Params& p, const Tile& tile, const Share& share) {
    for_units(p, tile, share, [&](const Unit& unit) {
      if (tile::all_over(tile.count, [&](int32_t k) {
            return tile.map[k] >= 0 && int64_t{tile.map[k]} + unit.row < p.partial_rows;
          }))
        merge_row<Row, kAhead, tile::Spread>(p, tile, unit, [&](int32_t k) { return tile.map[k]; });
    });
  }

  template <class Row, int kAhead, class Weights, class BaseOf>
  static TILE_FN void merge_row(const Params& p, const Tile& tile, const Unit& unit,
                                BaseOf base_of) {
    const int64_t row = tile.first_row + unit.row;
    auto* o = static_cast<uint16_t*>(p.o) + row * p.o_stride_row + unit.head * p.o_stride_head;
    const bool first = unit.column == 0 && p.lse != nullptr;
    const int32_t left = p.head_dim_v - unit.column;
    // bytes from one row of partials to the next: an address is then one instruction
    const uint32_t lse_step = static_cast<uint32_t>(p.nhead) * sizeof(float);
    const uint32_t o_step = lse_step * static_cast<uint32_t>(p.head_dim_v);
    const auto* partial_o = reinterpret_cast<const char*>(
        p.partial_o + int64_t{unit.head} * p.head_dim_v + unit.column);
    const auto* partial_lse = reinterpret_cast<const char*>(p.partial_lse + unit.head);
    merge_partials<Row, kAhead, Weights>(
        {o + unit.column, first ? p.lse + row * p.nhead + unit.head : nullptr, p.o_dtype},
        tile.count, left < kWidth ? left : kWidth, [&](int32_t k) -> Partial {
          const uint32_t at = static_cast<uint32_t>(base_of(k)) + static_cast<uint32_t>(unit.row);
          return {reinterpret_cast<const float*>(partial_o + uint64_t{at} * o_step),
                  reinterpret_cast<const float*>(partial_lse + uint64_t{at} * lse_step)};
        });
  }
};

}  // namespace hipdecode::kernels
