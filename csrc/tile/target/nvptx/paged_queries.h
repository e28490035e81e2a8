// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cstdint>

#include "../../dtypes.h"
#include "batches.h"
#include "convert.h"
#include "sync.h"

namespace hipdecode::tile::nvptx {

/// kTiles times eight query rows as operands in shared memory, as the lanes of a wave have them and
/// in the depths' order that the keys have (paged_products.h).
template <int kHeadDim, int kTiles>
struct PagedQueries {
  static constexpr int kPairs = kHeadDim / 32;  // of steps of 16 depths
  uint4 words[kTiles][kPairs][kLanes];
  float unscale[kTiles * 8];  // what scores of a row are to be multiplied by

  /// Both operands of a pair of steps.
  struct Pair {
    uint32_t first[2], second[2];
  };
  TILE_FN Pair operands(int tile, int pair) const {
    const uint4 four = words[tile][pair][lane()];
    return {{four.x, four.y}, {four.z, four.w}};
  }
};

/// Eight query rows on their way there by one wave. Beside fp8 keys they become fp16: bf16 is
/// scaled by a power of two a row, so that nothing overflows and nothing is lost.
template <int kHeadDim, abi::DType kType, bool kFp8Keys>
struct QueriesOnTheirWay {
  static constexpr bool kScaled = kType == abi::DType::bf16 && kFp8Keys;
  static_assert(kType == abi::DType::bf16 || kType == abi::DType::fp16);

  /// Asks for rows of a tile, as one batch of copies; the last of `rows` stands for those past the
  /// end.
  template <class To, class Source>
  static TILE_FN void load(To& to, const Source& source, int tile, int rows) {
    constexpr int kEach = kFp8Keys ? 4 : 2, kApart = kFp8Keys ? 2 : 8;  // columns
    const int row = 8 * tile + lane() / 4;
    const auto* row_at = static_cast<const uint16_t*>(source(row < rows ? row : rows - 1));
    const uint16_t* from = row_at + lane() % 4 * kEach;
    uint4* words = to.words[tile][0] + lane();
    if (reinterpret_cast<uintptr_t>(from) % 4 == 0) [[likely]] {
#pragma unroll
      for (int i = 0; i < kHeadDim / 8; ++i)
        copy_word(shared_address(words + i / 4 * kLanes) + i % 4 * 4,
                  from + i / 2 * 16 + i % 2 * kApart);
    } else {
      TILE_ROLLED
      for (int i = 0; i < kHeadDim / 8; ++i) {
        const uint16_t* at = from + i / 2 * 16 + i % 2 * kApart;
        reinterpret_cast<uint32_t*>(words + i / 4 * kLanes)[i % 4] =
            uint32_t{at[0]} | uint32_t{at[1]} << 16;
      }
    }
  }

  /// They have come.
  template <class To>
  static TILE_FN void settle(To& to, int tile) {
    if constexpr (kScaled) {
      uint4* from = to.words[tile][0] + lane();
      uint4 fours[To::kPairs];
      uint32_t most = 0;
#pragma unroll
      for (int i = 0; i < To::kPairs; ++i) {
        fours[i] = from[i * kLanes];
        most = __vmaxu2(most, __vmaxu2(__vmaxu2(magnitudes(fours[i].x), magnitudes(fours[i].y)),
                                       __vmaxu2(magnitudes(fours[i].z), magnitudes(fours[i].w))));
      }
      most = max(most & 0xffff, most >> 16);
      most = max(most, __shfl_xor_sync(~0u, most, 1));
      most = max(most, __shfl_xor_sync(~0u, most, 2));
      // the power of two that brings the largest element below 2^15; none for infinite ones
      const int exponent = static_cast<int>(most >> 7);
      const int power = exponent == 255 ? 0 : 141 - max(exponent, 15);
      const float scale = power_of_two(power);
#pragma unroll
      for (int i = 0; i < To::kPairs; ++i)
        from[i * kLanes] = uint4{as_half(fours[i].x, scale), as_half(fours[i].y, scale),
                                 as_half(fours[i].z, scale), as_half(fours[i].w, scale)};
      if (lane() % 4 == 0) to.unscale[8 * tile + lane() / 4] = power_of_two(-power);
    }
  }

 private:
  /// Of a word's two elements, as bits.
  static TILE_FN uint32_t magnitudes(uint32_t word) { return word & 0x7fff7fff; }

  static TILE_FN float power_of_two(int power) {
    return std::bit_cast<float>(static_cast<uint32_t>(127 + power) << 23);
  }

  static TILE_FN uint32_t as_half(uint32_t word, float scale) {
    return pack<abi::DType::fp16>(std::bit_cast<float>(word << 16) * scale,
                                  std::bit_cast<float>(word & 0xffff0000u) * scale);
  }
};

}  // namespace hipdecode::tile::nvptx
