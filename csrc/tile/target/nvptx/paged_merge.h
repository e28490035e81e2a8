// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "output.h"
#include "sync.h"

namespace hipdecode::tile::nvptx {

/// The end of a block of paged attention: results of kTeams teams over tokens of their own become
/// one, a row at a time.
template <int kHeadDim, int kRows, int kTeams, int kWaves>
struct PagedMerge {
  /// Results of each team. Rows lie so that neither way of reading them meets a bank twice.
  struct Exchange {
    static constexpr int kPitch = kHeadDim + 4;
    alignas(16) float values[kTeams][kRows * kPitch];

    TILE_FN float* row(int team, int row) { return values[team] + row * kPitch; }
  };

  /// What rows are multiplied by and where they go.
  struct Ends {
    RowEnds<kRows> to;
    float bases[kTeams][kRows], sums[kTeams][kRows];  // of a team; at last sums are factors

    TILE_FN void tell(int team, int row, float base, float sum) {
      bases[team][row] = base, sums[team][row] = sum;
    }

    /// One thread a row: brings the teams to one base and normalises.
    template <class Target>
    TILE_FN void find(int rows, const Target& target, float value_scale) {
      const int row = static_cast<int>(threadIdx.x);
      if (row >= kRows) return;
      float most = bases[0][row], total = 0;
#pragma unroll
      for (int team = 1; team < kTeams; ++team) most = fmaxf(most, bases[team][row]);
#pragma unroll
      for (int team = 0; team < kTeams; ++team) {
        const float base = bases[team][row], factor = base == most ? 1.0f : exp2(base - most);
        total += factor * sums[team][row];
        sums[team][row] = factor;
      }
      to.scale[0][row] = row_scale(total, value_scale);
      to.scale[1][row] = 0;
      to.set(row, rows, target, most, total);
    }

    TILE_FN float factor(int team, int row) const { return sums[team][row] * to.scale[0][row]; }
  };

  /// Adds up the teams' results and writes the rows, four columns a thread.
  static TILE_FN void store(Exchange& exchange, const Ends& ends, int rows) {
    constexpr int kEach = kHeadDim / 4;
    for (int i = static_cast<int>(threadIdx.x); i < rows * kEach; i += kWaves * kLanes) {
      const int row = i / kEach, column = i % kEach * 4;
      float4 sum{0, 0, 0, 0};
#pragma unroll
      for (int team = 0; team < kTeams; ++team) {
        const float4 part = *reinterpret_cast<const float4*>(exchange.row(team, row) + column);
        sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
      }
      const uint64_t o = ends.to.o[row];
      if (o != 0) store_four(reinterpret_cast<void*>(o), column, sum, ends.to.type);
    }
  }
};

}  // namespace hipdecode::tile::nvptx
