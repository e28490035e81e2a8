// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "lse_merge.h"

namespace hipdecode::kernels {

/// One row of which splits left partial results: split k's lse is k * step elements behind
/// partial_lse, its o as many rows behind partial_o.
struct SplitRow {
  MergedRow to;
  const float* partial_o;
  const float* partial_lse;
  uint32_t step;
};

/// A block's part in a merge: it is share `share` out of `shares`.
struct MergeShare {
  int32_t used;  // splits that left a partial result
  int32_t share, shares;
};

/// Merges a share of rows [0, rows) of a tile: a wave takes kColumns of a row at a time.
template <int kHeadDim, int kColumns, int kAhead, class RowAt>
TILE_FN void merge_share(tile::Block block, const MergeShare& part, int32_t rows, RowAt row_at) {
  constexpr int kParts = kHeadDim / kColumns;
  if (block.wave() >= block.waves()) return;  // it fetches
  TILE_ROLLED
  for (int32_t unit = block.wave() * part.shares + part.share; unit < rows * kParts;
       unit += block.waves() * part.shares) {
    SplitRow row = row_at(unit / kParts);
    const int32_t column = unit % kParts * kColumns;
    row.to.o = static_cast<char*>(row.to.o) + column * abi::element_bytes(row.to.type);
    if (column != 0) row.to.lse = nullptr;
    // bytes from one split's partial to the next: an address is then one instruction
    const auto* partial_o = reinterpret_cast<const char*>(row.partial_o + column);
    const auto* partial_lse = reinterpret_cast<const char*>(row.partial_lse);
    const uint32_t lse_step = row.step * static_cast<uint32_t>(sizeof(float));
    const uint32_t o_step = lse_step * kHeadDim;
    merge_partials<tile::Row<kColumns>, kAhead>(
        row.to, part.used, kColumns, [&](int32_t k) -> Partial {
          const auto at = static_cast<uint32_t>(k);
          return {reinterpret_cast<const float*>(partial_o + uint64_t{at} * o_step),
                  reinterpret_cast<const float*>(partial_lse + uint64_t{at} * lse_step)};
        });
  }
}

/// Counts this block in and merges the rows of its tile: with all blocks of the tile where they run
/// at the same time, else alone if it is the last. Either way in order: the bits are the same.
template <int kHeadDim, class RowAt>
TILE_FN void merge_splits(tile::Block block, int32_t* arrivals, int32_t split, int32_t used,
                          bool together, int32_t rows, RowAt row_at) {
  constexpr int kBroad = kHeadDim / (tile::kMergeParts > 1 ? 2 : 1);
  MergeShare part{used, 0, 1};
  bool here = false;
  if constexpr (tile::kBlocksMeet) {
    if (together) {
      tile::meet(arrivals, used, block);
      here = true;
      part = {used, split, used};
      // few columns at a time where waves would have little to do else
      constexpr int kWide = kHeadDim / tile::kMergeParts;
      constexpr int kLess = kWide / tile::kMergeParts;
      constexpr int kNarrow = kLess < tile::lanes() ? kWide : kLess;
      const int32_t waves = used * block.waves();
      if (rows * tile::kMergeParts * 2 <= waves)
        return merge_share<kHeadDim, kNarrow, tile::kMergeAhead * 4>(block, part, rows, row_at);
      if (rows * tile::kMergeParts <= waves * 2)
        return merge_share<kHeadDim, kWide, tile::kMergeAhead * 2>(block, part, rows, row_at);
    }
  }
  if (here || tile::arrive(arrivals, used, block) == used - 1)
    merge_share<kHeadDim, kBroad, tile::kMergeAhead>(block, part, rows, row_at);
}

}  // namespace hipdecode::kernels
