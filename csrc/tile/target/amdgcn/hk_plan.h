// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../dtypes.h"
#include "../../key_format.h"
#include "entry.h"
#include "features.h"

namespace hipdecode::tile::amdgcn {

/// Bytes of a key that are fetched; of a packed one without its scales.
template <class Shape>
constexpr int source_row_bytes() {
  if constexpr (kIsPacked<Shape>)
    return KeyLayout<Shape::kFormat>::kLatent +
           2 * (Shape::kHeadDimQk - KeyLayout<Shape::kFormat>::kLatent);
  else
    return Shape::kHeadDimQk * (kIsFp8<Shape::kKvDType> ? 1 : 2);
}

/// How a block of the 16x16 main loop is cut: 16 query rows a wave, and where there are fewer than
/// four of those, waves that take different tokens of a tile (token waves). All sizes in bytes are
/// of LDS, where a key row is held in the words that the matrix units take: a 16-bit query meets
/// fp8 keys that were widened on the way in.
template <class Shape>
struct HkPlan {
  static constexpr bool kFp8 = kIsFp8<Shape::kQDType>;
  static constexpr bool kWidens = !kFp8 && kIsFp8<Shape::kKvDType>;
  static constexpr bool kDirect = kTransposingReads && !kWidens;  // memory to LDS, no registers
  static constexpr int kWordBytes = kFp8 ? 1 : 2;

  // A key row is chunks of 64 bytes, four 16-byte units each: what 16 tokens x 4 lanes take at
  // once.
  static constexpr int kRowBytes = Shape::kHeadDimQk * kWordBytes;
  static constexpr int kChunks = (kRowBytes + 63) / 64;
  static constexpr int kValueChunks = Shape::kHeadDimV * kWordBytes / 64;
  static constexpr int kColumnTiles = Shape::kHeadDimV / 16;
  static_assert(Shape::kHeadDimV * kWordBytes % 64 == 0 && Shape::kRows % 16 == 0);

  static constexpr int kRowWaves = Shape::kRows / 16;

  // Direct loads write 1024 contiguous bytes: one chunk of 16 tokens. Otherwise rows lie one after
  // the other, an odd number of chunks apart, so that 128 bytes of a row are without bank conflict.
  static constexpr int kTokenPitch = kTransposingReads ? 64 : (kChunks | 1) * 64;
  static constexpr int kChunkPitch = kTransposingReads ? 1024 : 64;
  static constexpr int kGroupPitch = kTransposingReads ? 1024 * kChunks : 16 * kTokenPitch;

  // Groups of 16 tokens that a token wave owns in a tile, most first; what fits LDS is taken.
  static constexpr int tile_bytes(int groups, int token_waves) {
    return groups * token_waves * kGroupPitch;
  }
  static constexpr int pick_token_waves() {
    if (kRowWaves >= 4) return 1;
    const int wanted = 4 / kRowWaves;
    return tile_bytes(1, wanted) <= kLdsBytes ? wanted : wanted / 2;
  }
  static constexpr int kTokenWaves = pick_token_waves();
  static constexpr int kWaves = kRowWaves * kTokenWaves;
  static constexpr bool kTight = !kFp8 && kWaves == 8;  // 256 registers, 200 of them spoken for
  static constexpr int row_wave(int wave) { return kTokenWaves == 1 ? wave : wave % kRowWaves; }
  static constexpr int token_wave(int wave) { return kTokenWaves == 1 ? 0 : wave / kRowWaves; }
  static constexpr int kMostGroups = kTokenWaves > 1 || kWidens || !kTransposingReads ? 2 : 4;
  static constexpr int pick_groups() {
    int groups = kMostGroups;
    while (groups > 1 && 2 * tile_bytes(groups, kTokenWaves) > kLdsBytes) groups /= 2;
    // two fp8 groups feed one matrix operation: rather one buffer than half of its depth
    if (groups == 1 && kFp8 && tile_bytes(2, kTokenWaves) <= kLdsBytes) groups = 2;
    return groups;
  }
  static constexpr int kGroups = pick_groups();
  static constexpr int kTileBytes = tile_bytes(kGroups, kTokenWaves);
  static constexpr int kBuffers = 2 * kTileBytes <= kLdsBytes ? 2 : 1;
  static constexpr int kPart = 16 * kGroups, kTokens = kPart * kTokenWaves;
  static constexpr int kKeyBytes = kBuffers * kTileBytes;
  static constexpr bool kWritesFp8 = false;
  static_assert(kTileBytes <= kLdsBytes && (kBuffers == 2 || !kDirect));

  // Column tiles of the output that token waves exchange at a time.
  static constexpr int kMergeRound =
      kTokenWaves == 1 || kTransposingReads || kColumnTiles < 8 ? kColumnTiles : 8;

  // Who fetches what: row waves share the groups of their token wave.
  static constexpr int kShare = kRowWaves > kGroups ? kRowWaves / kGroups : 1;  // waves of a group
  static constexpr int kOwn = kGroups > kRowWaves ? kGroups / kRowWaves : 1;    // groups of a wave
  static constexpr int kSourceRowBytes = source_row_bytes<Shape>();
  static constexpr int kSourceChunks = (kSourceRowBytes + 63) / 64;
  static constexpr int kTurns = (kSourceChunks + kShare - 1) / kShare;  // loads per group and wave

  /// Position of a 16-byte unit within its chunk: keeps 16 tokens x 16 bytes, 2 x 4 tokens x 32
  /// bytes and (fp8, odd group beside an even one) 16 tokens x 16 bytes off each other's banks.
  static constexpr uint32_t twist(uint32_t token) {
    return ((token >> 1) ^ (token & 8 ? 3u : 0u)) & 3u;
  }
  static constexpr uint32_t kGroupTwist = kFp8 && kTransposingReads ? 1 : 0;
};

}  // namespace hipdecode::tile::amdgcn
