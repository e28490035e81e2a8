// SPDX-License-Identifier: MIT
#pragma once

#include "../abi/mla_reduce_params.h"
#include "parts/lse_merge.h"

namespace hipdecode::kernels {

/// Merges the partials of every tile by LSE. A tile with one partial or none was written by the
/// decode and is left alone; so is everything beyond what reduce_indptr points at.
struct MlaReduce {
  using Params = abi::MlaReduceParams;
  static constexpr int kMaxHeadDimV = 1024;

  struct Shared {
    alignas(64) float merged[kMaxHeadDimV];
  };

  static TILE_FN int64_t bounded(int64_t value, int64_t low, int64_t high) {
    return value < low ? low : value > high ? high : value;
  }

  static TILE_FN void run(const Params& p, tile::Block block, Shared& shared) {
    int64_t unit = 0;  // rows of split tiles are dealt to the blocks in turn
    for (int64_t t = 0; t < p.tiles; ++t) {
      // stage 0: the tile's partials and rows
      const int64_t first = bounded(p.reduce_indptr[t], 0, p.num_partials);
      const int64_t count = bounded(p.reduce_indptr[t + 1], first, p.num_partials) - first;
      if (count <= 1) continue;
      const int32_t* map = p.reduce_partial_map + first;
      const int64_t rows = p.reduce_final_map
                               ? int64_t{p.reduce_final_map[2 * t + 1]} - p.reduce_final_map[2 * t]
                               : int64_t{map[1]} - map[0];
      const int64_t first_row = p.reduce_final_map ? p.reduce_final_map[2 * t] : t * rows;
      if (first_row < 0 || first_row + rows > p.rows_o) continue;
      // stage 1: one merge per row and head
      for (int64_t r = 0; r < rows; ++r, ++unit)
        if (unit % block.count() == block.index())
          merge_row(p, map, count, r, first_row + r, shared);
    }
  }

  static TILE_FN void merge_row(const Params& p, const int32_t* map, int64_t count, int64_t r,
                                int64_t row, Shared& shared) {
    for (int64_t k = 0; k < count; ++k)
      if (map[k] < 0 || map[k] + r >= p.partial_rows) return;
    for (int64_t head = 0; head < p.nhead; ++head) {
      const float lse =
          merge_partials(shared.merged, p.partial_o, p.partial_lse, count, p.head_dim_v,
                         [&](int64_t k) { return (map[k] + r) * p.nhead + head; });
      auto* o = static_cast<uint16_t*>(p.o) + row * p.o_stride_row + head * p.o_stride_head;
      tile::write_row(o, shared.merged, 1.0f, p.head_dim_v, p.o_dtype);
      if (p.lse != nullptr) p.lse[row * p.nhead + head] = lse;
    }
  }
};

}  // namespace hipdecode::kernels
