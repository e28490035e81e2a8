// SPDX-License-Identifier: MIT
#pragma once

#include "vector.h"

namespace hipdecode::tile {

/// Matrix operands as fp32 lanes: every CPU can do it, and fp16 keeps its mantissa.
/// Keys are widened once per tile and serve as values in the same place.
template <int kHeadDimQk, int kHeadDimV, abi::DType kQDType, abi::DType kKvDType>
struct WordsFp32 {
  using Word = float;
  using KvElement = typename Storage<kKvDType>::Type;
  using Key = const KvElement*;
  static constexpr int kRowBytes = kHeadDimQk * static_cast<int>(sizeof(KvElement));
  static constexpr int kPack = 1;     // reduction elements per word
  static constexpr int kTokens = 72;  // a tile of keys, sized with Q, O and scores for 1 MiB of L2
  static constexpr int kDepth = kHeadDimQk;
  static constexpr int kValuePitch = kHeadDimQk + 16;  // off the 4 KiB alias
  static_assert(kHeadDimQk % kLanes == 0 && kHeadDimV % (4 * kLanes) == 0);

  struct Keys {
    alignas(kCacheLine) Word staged[kTokens * kValuePitch];
    const Word* row[kTokens];
  };

  /// A key is known from now on, and read with the tile after this one.
  static TILE_FN void look_ahead(Key) {}

  static TILE_FN Vec multiply_add(Vec acc, Vec lanes, Word scalar) { return acc + lanes * scalar; }

  static TILE_FN Vec multiply_lanes(Vec acc, Vec a, Vec b) { return acc + a * b; }

  /// Widens one query row: out[kDepth] words in the order of the staged keys.
  static TILE_FN void query_row(Word* out, const void* source) {
    const auto* q = static_cast<const typename Storage<kQDType>::Type*>(source);
    for (int i = 0; i < kDepth; i += kLanes) store(out + i, widen<kQDType>(q + i));
  }

  /// Makes tokens [begin, end) of a tile ready for scores; null stands for a token that does not
  /// exist.
  static TILE_FN void stage_keys(Keys& keys, const Key* source, int begin, int end) {
    for (int n = begin; n < end; ++n) {
      Word* row = keys.staged + n * kValuePitch;
      keys.row[n] = row;
      for (int i = 0; i < kDepth; i += kLanes)
        store(row + i, source[n] ? widen<kKvDType>(source[n] + i) : Vec{});
    }
  }

  /// Values are the staged keys.
  static TILE_FN void stage_values(Keys&, int, int, int) {}
  static TILE_FN void cut_values(Keys&, int, int, int) {}

  static TILE_FN bool is_special(const Word* row) {
    BitVec hits{};
    for (int i = 0; i < kHeadDimV; i += kLanes)
      hits |= (BitVec)((load<BitVec>(row + i) & 0x7f800000u) == 0x7f800000u);
    uint32_t any = 0;
    for (int i = 0; i < kLanes; ++i) any |= hits[i];
    return any != 0;
  }

  static TILE_FN const Word* values(const Keys& keys) { return keys.staged; }

  /// Weights of tokens n (and n + 1 where a word packs two) as broadcastable words.
  static TILE_FN void weights(Word* out, Vec first, Vec) { store(out, first); }

  /// Where four stored output columns go: identity.
  static constexpr int output_quad(int logical) { return logical; }
};

}  // namespace hipdecode::tile
