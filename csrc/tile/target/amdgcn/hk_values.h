// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "hk_matrix.h"
#include "lane_reduce.h"
#include "lds.h"

namespace hipdecode::tile::amdgcn {

/// Waits until at most kOutstanding LDS operations of this wave are under way: one wait for several
/// reads instead of one for each.
template <int kOutstanding>
TILE_FN void wait_for_lds() {
  static_assert(0 <= kOutstanding && kOutstanding < 16);
  __builtin_amdgcn_s_waitcnt(0xc07f | kOutstanding << 8);
}

/// Values as matrix operands: value column by lane % 16, four tokens of each group a lane, straight
/// from the key tile. The columns come in steps of kTiles tiles of 16: `read` starts a step's LDS
/// reads, `words` makes operands of them, tile j's words of group g in `at[j][g]`.
///
/// gfx950 transposes on the way out of LDS; a tile is 16 adjacent columns.
template <class Shape, bool kTransposed = kTransposingReads>
struct HkValues {
  using P = HkPlan<Shape>;
  using M = Matrix16<Shape::kQDType>;
  static constexpr int kDwords = M::kGroupDwords;
  // A step is 16 registers (two are under way); 16-bit queries leave room for 8.
  static constexpr int kFitting = (P::kFp8 ? 16 : 8) / (kDwords * P::kGroups);
  static constexpr int kTiles = kFitting < P::kColumnTiles ? kFitting : P::kColumnTiles;
  static constexpr int kSteps = P::kColumnTiles / kTiles;
  static constexpr int kReads = kTiles * P::kGroups * kDwords / 2;  // of a step
  static constexpr int kInFlight = 2;                               // steps

  struct Raw {
    uint32_t at[kTiles][P::kGroups][kDwords];
  };
  using Words = Raw;

  /// First of the 4 adjacent value columns of a lane in a tile.
  static constexpr int kColumnStep = 1;
  static TILE_FN int column(int tile, int lane) { return tile * 16 + lane / 16 * 4; }

  // The lanes of 16 give addresses of 8 bytes: fp8 two groups x 4 tokens x 16 bytes, 16-bit words
  // one group's 4 tokens x 32 bytes.
  static constexpr int kChunkTiles = 4 / P::kWordBytes;
  static constexpr bool kLong = P::kGroups * P::kGroupPitch > 0x10000;  // for 16-bit offsets
  uint32_t base[kChunkTiles * (kLong ? 2 : 1)];  // of the first groups, of the others

  /// Where in a part this lane reads first.
  static TILE_FN uint32_t lane_offset(uint32_t lane) {
    const uint32_t word = lane % 16;
    const uint32_t second = P::kFp8 ? word / 8 : 0;  // of a pair of groups
    const uint32_t token = lane / 16 * 4 + (P::kFp8 ? word / 2 % 4 : word / 4);
    const uint32_t unit = P::kFp8 ? 0 : word / 2 % 2;
    const uint32_t twisted = unit ^ P::twist(token) ^ (second * P::kGroupTwist);
    return second * P::kGroupPitch + token * P::kTokenPitch + 16 * twisted + word % 2 * 8;
  }

  /// `first`: address of a part + lane_offset().
  TILE_FN explicit HkValues(uint32_t first) {
#pragma unroll
    for (uint32_t j = 0; j < kChunkTiles; ++j) base[j] = first ^ 16 * (j * P::kWordBytes);
    if constexpr (kLong)
#pragma unroll
      for (uint32_t j = 0; j < kChunkTiles; ++j)
        base[kChunkTiles + j] = recomputed(base[j] + 2 * P::kGroupPitch);
  }

  TILE_FN void read(Raw& raw, int step) const {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const int tile = step * kTiles + j;
      const auto chunk = static_cast<uint32_t>(tile / kChunkTiles * P::kChunkPitch);
#pragma unroll
      for (int g = 0; g < P::kGroups; g += 3 - kDwords) {
        const int far = kLong ? g / 2 : 0;
        const U32x2 words = read_columns(base[far * kChunkTiles + tile % kChunkTiles] + chunk +
                                         static_cast<uint32_t>((g - 2 * far) * P::kGroupPitch));
        raw.at[j][g][0] = words.x;
        raw.at[j][g + 2 - kDwords][kDwords - 1] = words.y;
      }
    }
  }

  static TILE_FN const Words& words(const Raw& raw) { return raw; }

 private:
  static TILE_FN U32x2 read_columns([[maybe_unused]] uint32_t address) {
#if defined(__gfx950__)
    if constexpr (P::kFp8)
      return lds_read_columns_b8(address);
    else
      return lds_read_columns_b16(address);
#endif
  }
};

/// gfx942 has no such read: a lane takes a run of kTiles columns of its four tokens and transposes
/// them in its own registers. Tile j of a step is then every kTiles-th column, and a lane of the
/// output holds four adjacent runs of kTiles columns.
template <class Shape>
struct HkValues<Shape, false> {
  using P = HkPlan<Shape>;
  using M = Matrix16<Shape::kQDType>;
  static constexpr int kSpan = P::kValueChunks % 2 == 0 ? 128 : 64;  // bytes of a step
  static constexpr int kLaneDwords = kSpan / 64;
  static constexpr int kDwords = M::kGroupDwords, kTiles = kSpan / (16 * P::kWordBytes);
  static constexpr int kSteps = P::kColumnTiles / kTiles;
  static constexpr int kReads = P::kGroups * 4;  // of a step
  static constexpr int kInFlight = 1;            // steps; its words are the other

  struct Raw {
    uint32_t at[P::kGroups][4][kLaneDwords];
  };
  struct Words {
    uint32_t at[kTiles][P::kGroups][kDwords];
  };

  /// First of the value columns of a lane in a tile; the other three are a step apart each.
  static constexpr int kColumnStep = kTiles;
  static TILE_FN int column(int tile, int lane) {
    return (tile / kTiles * 16 + lane / 16 * 4) * kTiles + tile % kTiles;
  }

  uint32_t base[2];  // tokens 4 * (l / 16) + {0, 2}; the odd ones lie one pitch further

  /// Where in a part this lane reads first: token 4 * (l / 16). The next but one has bit 1 of its
  /// number set, and with it bit 0 of its twist.
  static TILE_FN uint32_t lane_offset(uint32_t lane) {
    const uint32_t byte = lane % 16 * (4 * kLaneDwords), token = lane / 16 * 4;
    return token * P::kTokenPitch + byte / 64 * 64 + 16 * (byte / 16 % 4 ^ P::twist(token)) +
           byte % 16;
  }

  /// `first`: address of a part + lane_offset().
  TILE_FN explicit HkValues(uint32_t first) : base{first, (first ^ 16) + 2 * P::kTokenPitch} {}

  TILE_FN void read(Raw& raw, int step) const {
#pragma unroll
    for (int g = 0; g < P::kGroups; ++g)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto run = lds_read<Vec<uint32_t, kLaneDwords>>(
            base[i / 2] +
            static_cast<uint32_t>(g * P::kGroupPitch + step * kSpan + i % 2 * P::kTokenPitch));
#pragma unroll
        for (int d = 0; d < kLaneDwords; ++d) raw.at[g][i][d] = run[d];
      }
  }

  static TILE_FN Words words(const Raw& raw) {
    Words words;
#pragma unroll
    for (int g = 0; g < P::kGroups; ++g)
#pragma unroll
      for (int d = 0; d < kLaneDwords; ++d)
        transpose(words, g, d, raw.at[g][0][d], raw.at[g][1][d], raw.at[g][2][d], raw.at[g][3][d]);
    return words;
  }

 private:
  // v_perm_b32 selects bytes: 0 to 3 of its second operand, 4 to 7 of its first.
  static constexpr uint32_t kLowPairs = 0x05010400, kHighPairs = 0x07030602;  // bytes of two rows
  static constexpr uint32_t kLowHalves = 0x05040100, kHighHalves = 0x07060302;

  static TILE_FN uint32_t pick(uint32_t high, uint32_t low, uint32_t selector) {
    return __builtin_amdgcn_perm(high, low, selector);
  }

  /// Dword d of four tokens' runs becomes the words of the tiles whose columns it holds.
  static TILE_FN void transpose(Words& values, int g, int d, uint32_t r0, uint32_t r1, uint32_t r2,
                                uint32_t r3) {
    if constexpr (P::kFp8) {
      const uint32_t low01 = pick(r1, r0, kLowPairs), high01 = pick(r1, r0, kHighPairs);
      const uint32_t low23 = pick(r3, r2, kLowPairs), high23 = pick(r3, r2, kHighPairs);
      values.at[4 * d][g][0] = pick(low23, low01, kLowHalves);
      values.at[4 * d + 1][g][0] = pick(low23, low01, kHighHalves);
      values.at[4 * d + 2][g][0] = pick(high23, high01, kLowHalves);
      values.at[4 * d + 3][g][0] = pick(high23, high01, kHighHalves);
    } else {
      values.at[2 * d][g][0] = pick(r1, r0, kLowHalves);
      values.at[2 * d][g][1] = pick(r3, r2, kLowHalves);
      values.at[2 * d + 1][g][0] = pick(r1, r0, kHighHalves);
      values.at[2 * d + 1][g][1] = pick(r3, r2, kHighHalves);
    }
  }
};

}  // namespace hipdecode::tile::amdgcn
