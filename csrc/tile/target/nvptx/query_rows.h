// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "batches.h"
#include "memory.h"
#include "swizzled.h"
#include "sync.h"

namespace hipdecode::tile::nvptx {

/// 64 rows of queries of 16 bits, kBlocks blocks of 64 columns, as they lie in memory.
template <int kBlocks>
struct QueryRows {
  static constexpr int kRows = 64, kRowLanes = 8;

  /// Copies a wave's share to shared memory where all rows lie aligned: the whole of it is on its
  /// way at once. Rows from `rows` on become zeros.
  /// @tparam kWaves that share the rows
  /// @return whether they lie aligned
  template <int kWaves, class Source>
  static TILE_FN bool copy(unsigned char* to, const Source& source, int rows, int wave) {
    constexpr int kTurns = kRows * kRowLanes / (kWaves * kLanes);
    uint64_t found[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = i * kLanes + lane();
      found[i] = row < rows ? reinterpret_cast<uint64_t>(source(row)) : 0;
    }
    if (!__all_sync(~0u, (found[0] | found[1]) % 16 == 0)) return false;
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int own = lane() / kRowLanes, chunk = lane() % kRowLanes;
      const int row = (wave * kTurns + i) * (kLanes / kRowLanes) + own;
      const uint64_t from = __shfl_sync(~0u, wave < kWaves / 2 ? found[0] : found[1], row % kLanes);
      const uint32_t at = shared_address(to) + swizzled(row, chunk);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
        copy_chunk(at + block * kBlockBytes, from + block * 128 + chunk * 16, from != 0);
    }
    close_batch();
    wait_for_batches<0>();
    return true;
  }

  /// The L2 starts to read them, each of kWaves waves its share.
  template <int kWaves, class Source>
  static TILE_FN void foresee(const Source& source, int rows, int wave) {
    constexpr int kShare = kRows / kWaves;
    const int row = wave * kShare + lane();
    if (lane() >= kShare || row >= rows) return;
    const auto from = reinterpret_cast<uint64_t>(source(row));
    if (from % 16 == 0) prefetch(from, kBlocks * 128);
  }
};

}  // namespace hipdecode::tile::nvptx
