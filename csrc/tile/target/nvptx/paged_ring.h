// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../paged_cache.h"
#include "batches.h"
#include "sync.h"

namespace hipdecode::tile::nvptx {

/// Groups of 16 tokens on their way to a team of waves, which alone reads them: keys, values and
/// their scales. Chunks of 16 bytes lie as in the cache, so that no way of reading meets a bank
/// twice; of fp8 keys, tokens lie in the order in which the values have their depths
/// (paged_products.h), so that a score's place is its weight's.
template <class Shape, int kStages>
struct PagedRing {
  using Cache = PagedCache<Shape>;
  static constexpr bool kFp8 = kIsFp8<Shape::kKvDType>;
  static constexpr bool kScaled = Shape::kScales == PagedScales::token;
  static constexpr int kHeadDim = Shape::kHeadDim, kChunk = Cache::kChunk;
  static constexpr int kChunks = kHeadDim * kGroupTokens / kChunk;  // of keys; of values as many
  static constexpr int kTurns = kChunks / kLanes;                   // of a wave
  static constexpr int kBytes = kChunks * 16;

  struct Stage {
    alignas(128) unsigned char keys[kBytes], values[kBytes];
    float scales[kScaled ? 2 : 1][kGroupTokens];  // of keys, of values; if tokens have any
  };
  Stage stages[kStages];

  /// Where a token lies among the 16, and which token lies there.
  static TILE_FN int place_of(int token) {
    return kFp8 ? token % 4 / 2 * 8 + token / 4 * 2 + token % 2 : token;
  }
  static TILE_FN int token_at(int place) {
    return kFp8 ? place % 8 / 2 * 4 + place / 8 * 2 + place % 2 : place;
  }

  /// One wave asks for a group.
  TILE_FN void bring(int stage, const Cache& cache, const PagedGroup& group) {
    Stage& to = stages[stage];
    // where registers are short, what follows from the lane is not kept in them
    constexpr bool kShort = kFp8 && (kScaled ? !Cache::kBlock16 : Shape::kRows == 16);
    const int own = kShort ? fresh_lane() : lane();
    const int token = own % kGroupTokens, column = own / kGroupTokens;
    constexpr int kColumns = kLanes / kGroupTokens;  // of chunks, in one turn
    const auto* key = cache.keys_of(group) + column * cache.key_chunk_stride() + token * kChunk;
    const uint32_t keys = shared_address(to.keys) + (column * kGroupTokens + place_of(token)) * 16;
#pragma unroll
    for (int i = 0; i < kTurns; ++i, key += kColumns * cache.key_chunk_stride())
      copy(keys + i * kLanes * 16, key);
    const auto* value = cache.values_of(group) + own * cache.value_column_stride();
    const uint32_t values = shared_address(to.values) + own * 16;
#pragma unroll
    for (int i = 0; i < kTurns; ++i, value += kLanes * cache.value_column_stride()) {
      if (i > 0 && i * kLanes % kHeadDim == 0)
        value += cache.value_chunk_stride() - kHeadDim * cache.value_column_stride();
      copy(values + i * kLanes * 16, value);
    }
    if constexpr (kScaled) {
      const bool of_keys = own < kGroupTokens;
      const auto* scales = of_keys ? cache.key_scales_of(group) : cache.value_scales_of(group);
      copy_word(shared_address(&to.scales[0][0]) + own * 4, scales + token);
    }
  }

  /// Whether any values have infinities or NaNs. Every request's last group asks: a short loop, of
  /// code that nobody has run before.
  TILE_FN bool has_special_values(int stage) const {
    // an exponent of all ones carries into the sign's place
    constexpr uint32_t kLast = kSpecial & -kSpecial, kEach = kFp8 ? 0x01010101u : 0x00010001u;
    const auto* chunks = reinterpret_cast<const uint4*>(stages[stage].values) + lane();
    uint32_t any = 0;
#pragma unroll 4
    for (int i = 0; i < kTurns; ++i) {
      const uint4 words = chunks[i * kLanes];
      for (const uint32_t word : {words.x, words.y, words.z, words.w})
        any |= (word & kSpecial * kEach) + kLast * kEach;
    }
    return __any_sync(~0u, (any & (kSpecial + kLast) * kEach) != 0);
  }

  /// They become zero: zero times them is NaN, and some row has a weight of zero.
  TILE_FN void clear_special_values(int stage, int first) {
    for_specials(stage, first, [](const uint32_t& word, uint32_t special) {
      const_cast<uint32_t&>(word) = word & ~special;
    });
    __syncwarp();
  }

  /// A value that is infinite or NaN, else zero.
  TILE_FN float special_value(int stage, int token, int column) const {
    const auto* chunk = stages[stage].values + (token / kChunk * kHeadDim + column) * 16;
    const uint32_t bits = reinterpret_cast<const typename Cache::Element*>(chunk)[token % kChunk];
    if ((bits & kSpecial) != kSpecial) return 0;
    return (bits & (kFp8 ? 0x7f : 0x7fff)) != kSpecial || kFp8 ? kInfinity - kInfinity
           : (bits & 0x8000) != 0                              ? -kInfinity
                                                               : kInfinity;
  }

 private:
  // exponents of all ones; e4m3fn has only the NaN, of seven ones
  static constexpr uint32_t kSpecial = kFp8                                  ? 0x7f
                                       : Shape::kKvDType == abi::DType::bf16 ? 0x7f80
                                                                             : 0x7c00;

  /// The words of the values, and in each the bits of those that are special.
  template <class Use>
  TILE_FN void for_specials(int stage, int first, const Use& use) const {
    constexpr int kEach = kChunk / 4, kBits = 32 / kEach;  // of a word: tokens, and bits of one
    TILE_ROLLED
    for (int i = lane(); i < kChunks; i += kLanes) {
      const auto* words = reinterpret_cast<const uint32_t*>(stages[stage].values + i * 16);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int skipped = first - i / kHeadDim * kChunk - n * kEach;
        if (skipped >= kEach) continue;
        const uint32_t wanted = ~0u << (skipped > 0 ? skipped * kBits : 0);
        constexpr uint32_t kAll = kFp8 ? kSpecial * 0x01010101u : kSpecial * 0x00010001u;
        use(words[n],
            wanted & (kFp8 ? __vcmpeq4(words[n] & kAll, kAll) : __vcmpeq2(words[n] & kAll, kAll)));
      }
    }
  }

  static TILE_FN void copy(uint32_t to, const typename Cache::Element* from) {
    copy_chunk(to, reinterpret_cast<uint64_t>(from), true);
  }
};

}  // namespace hipdecode::tile::nvptx
