// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cstdint>

#include "merge_splits.h"

namespace hipdecode::kernels {

/// How many strands the partials of a row are divided into, as a power of two: so many that every
/// wave has some where all blocks of a tile merge. It follows from the request alone, so the order
/// of the sum does too.
/// @param waves of all blocks of the tile, for each piece of a row
TILE_FN int32_t strand_bits(int32_t waves, int32_t rows) {
  return waves >= 8 * rows ? 3 : waves >= 4 * rows ? 2 : waves >= 2 * rows ? 1 : 0;
}

/// Some columns of one row, four neighbours a lane of a strand; the strands' sums are added up.
template <int kHeadDim>
struct StrandRow {
  using Quad = typename tile::Row<kHeadDim>::Quad;
  static constexpr int kAhead = 8;  // partials on their way at a time

  SplitRow row;
  int32_t used, bits, column;

  TILE_FN int32_t lanes() const { return tile::lanes() >> bits; }
  TILE_FN int32_t strand() const {
    return tile::lane() >> (std::countr_zero(static_cast<uint32_t>(tile::lanes())) - bits);
  }
  TILE_FN int32_t own_column() const { return column + (tile::lane() & (lanes() - 1)) * 4; }
  TILE_FN const float* lse(int32_t k) const {
    return row.partial_lse + uint64_t{static_cast<uint32_t>(k)} * row.step;
  }

  TILE_FN void run() const {
    const auto* from = reinterpret_cast<const char*>(row.partial_o + own_column());
    const uint32_t step = row.step * kHeadDim * static_cast<uint32_t>(sizeof(float));
    const bool there = own_column() < kHeadDim;
    float best = 0, total = 0;
    Quad sum{};
    TILE_ROLLED
    for (int32_t first = 0; first < used; first += kAhead << bits) {
      Quad partials[kAhead];
      float logs[kAhead], most = -tile::kInfinity;
      TILE_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        const int32_t k = first + strand() + (i << bits);
        logs[i] = -tile::kInfinity;
        if (k >= used || !there) continue;
        // the address is one instruction
        partials[i].load(
            reinterpret_cast<const float*>(from + uint64_t{static_cast<uint32_t>(k)} * step));
        logs[i] = *lse(k);
      }
      TILE_UNROLL
      for (const float log : logs) most = log > most ? log : most;
      if (first == 0)
        best = used <= kAhead << bits ? tile::wave_max(most)
                                      : tile::max_over(used, [&](int32_t k) { return *lse(k); });
      if (best == -tile::kInfinity) best = 0;
      TILE_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        const float weight = tile::exp2((logs[i] - best) * tile::kLog2E);
        if (weight == 0) continue;
        total += weight;
        sum.add(partials[i], weight);
      }
    }
    TILE_ROLLED
    for (int32_t distance = lanes(); distance < tile::lanes(); distance *= 2) {
      total += tile::from_lane(total, tile::lane() ^ distance);
      sum.add(tile::from_lane(sum, tile::lane() ^ distance), 1);
    }
    if (strand() == 0 && there) write(sum, best, total);
  }

  TILE_FN void write(const Quad& sum, float best, float total) const {
    const float share = tile::share_beside(row.to.sink, best * tile::kLog2E + tile::log2(total),
                                           [](float x) { return tile::exp2(x); });
    sum.store(row.to.o, own_column(), tile::row_scale(total, share), row.to.type);
    if (column == 0 && row.to.lse != nullptr && tile::first_lane())
      *row.to.lse = total == 0 ? -tile::kInfinity : best + tile::log2(total) * tile::kLn2;
  }
};

/// Counts this block in and merges the rows of its tile: with all blocks of the tile where they run
/// at the same time, else alone if it is the last. Either way in the same order: so are the bits.
/// A wave takes some columns of a row at a time; there is one copy of the code for all.
/// @tparam kRows of a tile at most
/// @tparam kCame where they run at the same time, this block has counted itself in already
template <int kHeadDim, int kRows, bool kCame = false, class RowAt>
TILE_FN void merge_strands(tile::Block block, int32_t* arrivals, int32_t split, int32_t used,
                           bool together, int32_t rows, RowAt row_at) {
  constexpr int kColumns = 4 * tile::lanes(),
                kWhole = kHeadDim > kColumns ? kHeadDim / kColumns : 1;
  static_assert(kHeadDim % 4 == 0 && kWhole * kColumns >= kHeadDim);
  if (together && !kCame) tile::come(arrivals, block);
  if (!together && tile::arrive(arrivals, used, block) != used - 1) return;
  if (block.wave() >= block.waves()) {  // it fetches
    if (together) tile::await_others(arrivals, used, block);
    return;
  }
  const int32_t bits = strand_bits(used * block.waves() / kWhole, kRows), parts = kWhole << bits;
  const int32_t share = together ? split : 0, shares = together ? used : 1;
  int32_t unit = block.wave() * shares + share;
  bool waits = together;
  TILE_ROLLED
  while (waits || unit < rows * parts) {
    const int32_t row = unit / kWhole >> bits;
    const StrandRow<kHeadDim> strands{row_at(row), used, bits,
                                      (unit - row * parts) * (kColumns >> bits)};
    // the first row is found while the others come
    if (waits) tile::await_others(arrivals, used, block);
    waits = false;
    if (unit < rows * parts) strands.run();
    unit += block.waves() * shares;
  }
}

}  // namespace hipdecode::kernels
