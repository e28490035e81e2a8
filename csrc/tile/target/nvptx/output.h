// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../concepts.h"
#include "convert.h"
#include "running_rows.h"

namespace hipdecode::tile::nvptx {

/// Finished output of a warpgroup, transposed as ValueProduct leaves it, to memory.
template <class Keys, int kBlocks>
struct Output {
  /// @param column of the output, behind the first block
  template <int kWords, class Target>
  static TILE_FN void store(const float (&output)[kBlocks][kWords], int rows, const Target& target,
                            int column, int wave) {
    const int g = lane() / 4, first = column + 16 * wave + (Keys::kFp8 ? 2 * g : g);
#pragma unroll
    for (int v = 0; v < kWords / 2; ++v) {
      const int row = v / 2 * 8 + lane() % 4 * 2 + v % 2;
      if (row >= rows) continue;
      const RowTarget to = target(row);
      if (to.o == nullptr) continue;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const float one = output[block][v / 2 * 4 + v % 2];
        const float other = output[block][v / 2 * 4 + v % 2 + 2];
        if constexpr (Keys::kFp8) {
          store_two(to.o, first + block * 64, one, other, to.type);
        } else {
          store_one(to.o, first + block * 64, one, to.type);
          store_one(to.o, first + block * 64 + 8, other, to.type);
        }
      }
    }
  }
};

}  // namespace hipdecode::tile::nvptx
