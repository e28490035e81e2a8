// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../tile/tile.h"
#include "bounds.h"

namespace hipdecode::kernels {

/// Rows that no request owns (padding of a captured batch) come out as zero with LSE -inf.
/// @tparam Params those of a decode with ragged queries
/// @param own the calling wave among those of its block that do it, `each_block` of them
template <int kHeadDimV, class Params>
TILE_FN void clear_unowned_rows(const Params& p, tile::Block block, int own, int each_block) {
  const int64_t wave = int64_t{block.index()} * each_block + own;
  if (wave >= p.rows_q * p.nhead) return;  // without waiting for what is owned
  const int64_t owned = clamp(p.qo_indptr[p.batch], 0, p.rows_q);
  const int64_t waves = int64_t{block.count()} * each_block;
  TILE_ROLLED
  for (int64_t unit = owned * p.nhead + wave; unit < p.rows_q * p.nhead; unit += waves) {
    const int64_t row = static_cast<uint32_t>(unit) / static_cast<uint32_t>(p.nhead),
                  head = unit - row * p.nhead;
    // a part at a time: what hardly ever runs is to be short
    constexpr int kPart = kHeadDimV / tile::kMergeParts;
    tile::Row<kPart> nothing;
    nothing.clear();
    const int64_t at = row * p.o_stride_row + head * p.o_stride_head;
    TILE_ROLLED
    for (int column = 0; column < kHeadDimV; column += kPart)
      nothing.store(static_cast<char*>(p.o) + (at + column) * abi::element_bytes(p.o_dtype), 1.0f,
                    kPart, p.o_dtype);
    if (p.lse != nullptr && tile::first_lane()) p.lse[unit] = -tile::kInfinity;
  }
}

/// The same by all waves that compute.
template <int kHeadDimV, class Params>
TILE_FN void clear_unowned_rows(const Params& p, tile::Block block) {
  if (block.wave() >= block.waves()) return;  // it fetches
  clear_unowned_rows<kHeadDimV>(p, block, block.wave(), block.waves());
}

}  // namespace hipdecode::kernels
