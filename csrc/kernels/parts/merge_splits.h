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

/// Counts this block in; the last of a tile merges its rows, in order: a wave takes one at a time.
/// @param used splits that left a partial result
template <int kHeadDim, class RowAt>
TILE_FN void merge_splits(tile::Block block, int32_t* arrivals, int32_t used, int32_t rows,
                          RowAt row_at) {
  if (tile::arrive(arrivals, used, block) != used - 1) return;
  TILE_ROLLED
  for (int32_t r = block.wave(); r < rows; r += block.waves()) {
    const SplitRow row = row_at(r);
    // bytes from one split's partial to the next: an address is then one instruction
    const auto* partial_o = reinterpret_cast<const char*>(row.partial_o);
    const auto* partial_lse = reinterpret_cast<const char*>(row.partial_lse);
    const uint32_t lse_step = row.step * static_cast<uint32_t>(sizeof(float));
    const uint32_t o_step = lse_step * kHeadDim;
    merge_partials<tile::Row<kHeadDim>, tile::kMergeAhead>(
        row.to, used, kHeadDim, [&](int32_t k) -> Partial {
          const auto at = static_cast<uint32_t>(k);
          return {reinterpret_cast<const float*>(partial_o + uint64_t{at} * o_step),
                  reinterpret_cast<const float*>(partial_lse + uint64_t{at} * lse_step)};
        });
  }
}

}  // namespace hipdecode::kernels
