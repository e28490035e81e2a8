// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../concepts.h"
#include "convert.h"
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

  /// Where rows go and what the teams' results are multiplied by.
  struct Ends {
    uint64_t o[kRows], lse[kRows];  // 0: nowhere
    abi::DType type;
    float units[kTeams];                              // that a team's results are in
    float bases[kTeams][kRows], sums[kTeams][kRows];  // of a team; at last sums are factors

    /// One thread a row looks up its place.
    template <class Target>
    TILE_FN void find_places(int rows, const Target& target) {
      const int row = static_cast<int>(threadIdx.x);
      if (row >= kRows) return;
      o[row] = lse[row] = 0;
      if (row >= rows) return;
      const RowTarget to = target(row);
      o[row] = reinterpret_cast<uint64_t>(to.o), lse[row] = reinterpret_cast<uint64_t>(to.lse);
      type = to.type;  // the same for all
    }

    TILE_FN void tell(int team, int row, float base, float sum) {
      bases[team][row] = base, sums[team][row] = sum;
    }

    /// One thread for each team of a row brings them to one base and normalises.
    TILE_FN void find_factors(float value_scale) {
      static_assert(kRows * kTeams % kLanes == 0 && kRows * kTeams <= kWaves * kLanes);
      const int row = static_cast<int>(threadIdx.x) / kTeams;
      const int team = static_cast<int>(threadIdx.x) % kTeams;
      if (row >= kRows) return;
      const float base = bases[team][row];
      float most = base;
#pragma unroll
      for (int distance = 1; distance < kTeams; distance *= 2)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, distance));
      const float factor = base == most ? 1.0f : exp2(base - most);
      float total = factor * sums[team][row];
#pragma unroll
      for (int distance = 1; distance < kTeams; distance *= 2)
        total += __shfl_xor_sync(~0u, total, distance);
      sums[team][row] = factor * row_scale(total, value_scale) * units[team];
      if (team == 0 && lse[row] != 0)
        *reinterpret_cast<float*>(lse[row]) = row_lse(most, total, log2(total));
    }
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
        const float by = ends.sums[team][row];
        sum.x += part.x * by, sum.y += part.y * by, sum.z += part.z * by, sum.w += part.w * by;
      }
      const uint64_t o = ends.o[row];
      if (o != 0) store_four(reinterpret_cast<void*>(o), column, sum, ends.type);
    }
  }
};

}  // namespace hipdecode::tile::nvptx
