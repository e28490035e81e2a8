// SPDX-License-Identifier: MIT
#pragma once

#include "../../dtypes.h"
#include "../../paged_cache.h"

namespace hipdecode::tile::nvptx {

/// How a block of paged attention is made up: a wave keeps up to 16 rows; the waves of a team share
/// the rows and read the same keys. Two blocks share a multiprocessor, so that one begins or ends
/// while the other reads.
template <class Shape>
struct PagedPlan {
  static constexpr bool kFp8 = kIsFp8<Shape::kKvDType>;
  static constexpr int kGroupBytes =
      kGroupTokens * Shape::kHeadDim * 2 *
      static_cast<int>(sizeof(typename Storage<Shape::kKvDType>::Type));
  static constexpr int kWaves = 8, kBlocksTogether = 2, kMostBytes = 113 * 1024;
  // few rows and large groups: two waves share a group, or a team would have no room to fetch ahead
  static constexpr bool kHalves = Shape::kRows == 16 && kMostBytes < 3 * kWaves * kGroupBytes;
  static constexpr int kWaveRows = kHalves || Shape::kRows < 16 ? 8 : 16;
  static constexpr int kTeamWaves = Shape::kRows / kWaveRows, kTeams = kWaves / kTeamWaves;
  static_assert(kTeams * kTeamWaves == kWaves && kTeamWaves * kWaveRows == Shape::kRows);
  static constexpr int kRowBytes = Shape::kHeadDim * 2 + 32 + kTeams * 8;  // queries, ends
  static constexpr int kRingBytes = kMostBytes - 1024 - Shape::kRows * kRowBytes;
  static constexpr int kFit = kRingBytes / (kTeams * (kGroupBytes + 128));
  static constexpr int kStages = kFit < 16 ? kFit : 16;
  static_assert(kStages >= 3);
};

}  // namespace hipdecode::tile::nvptx
