// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cstdint>

#include "convert.h"
#include "products.h"
#include "swizzled.h"

namespace hipdecode::tile::nvptx {

/// Query rows as an operand in shared memory, in the keys' own order of depths. Where bf16 becomes
/// fp16, a row is scaled by a power of two, so that nothing overflows and nothing is lost.
template <class Keys, int kHeadDim, abi::DType kType, int kRows>
struct Queries {
  static constexpr bool kScaled = kType == abi::DType::bf16 && Keys::kFp8;
  static constexpr int kChunks = kHeadDim / 8;
  static constexpr int kBytes =
      Keys::kSwizzled ? kRows * kHeadDim * 2 : kChunks * kChunkBytes<kRows>;
  static_assert(kIsFp8<kType> ? Keys::kFp8 : Keys::kFp8 || kType == Keys::kOperand);

  /// Loads rows below `rows`, zeros for the others; waves share them. A wave takes several rows at
  /// a time: what its lanes then write lies in different banks, but for what two or four write.
  /// @param unscale what the scores of each row are to be multiplied by; where kScaled
  template <class Source>
  static TILE_FN void load(unsigned char* to, float* unscale, const Source& source, int rows,
                           int wave, int waves) {
    constexpr int kAtOnce = kRows == 32 ? 4 : 2;
    constexpr int kLanesEach = kLanes / kAtOnce;
    constexpr int kEach = (kChunks + kLanesEach - 1) / kLanesEach;
    static_assert(kRows % kAtOnce == 0);
    const int own = lane() / kLanesEach, side = lane() % kLanesEach;
    for (int row = wave * kAtOnce + own; row < kRows; row += kAtOnce * waves) {
      uint4 chunks[kEach] = {};
      if (row < rows) {
        const auto* from = static_cast<const Element*>(source(row)) + side * 8;
        // one branch for all: what is rare lies behind what is executed
        if (reinterpret_cast<uintptr_t>(from) % (8 * sizeof(Element)) == 0) [[likely]] {
#pragma unroll
          for (int i = 0; i < kEach; ++i)
            if (i * kLanesEach + side < kChunks) chunks[i] = read(from + i * kLanesEach * 8);
        } else {
#pragma unroll
          for (int i = 0; i < kEach; ++i)
            if (i * kLanesEach + side < kChunks) chunks[i] = gather(from + i * kLanesEach * 8);
        }
      }
      float scale = 1.0f;
      if constexpr (kScaled) {
        uint32_t most = 0;
#pragma unroll
        for (const uint4& chunk : chunks)
          most = __vmaxu2(most, __vmaxu2(__vmaxu2(magnitudes(chunk.x), magnitudes(chunk.y)),
                                         __vmaxu2(magnitudes(chunk.z), magnitudes(chunk.w))));
        most = max(most & 0xffff, most >> 16);
#pragma unroll
        for (int distance = 1; distance < kLanesEach; distance *= 2)
          most = max(most, __shfl_xor_sync(~0u, most, distance));
        scale = scale_of(most, unscale + row, side == 0);
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i)
        if (i * kLanesEach + side < kChunks)
          write(to, row, i * kLanesEach + side, chunks[i], scale);
    }
  }

 private:
  using Element = typename Storage<kType>::Type;

  /// Eight elements that lie aligned; of fp8 in the first two words.
  static TILE_FN uint4 read(const Element* from) {
    if constexpr (kIsFp8<kType>) {
      const uint2 words = *reinterpret_cast<const uint2*>(from);
      return {words.x, words.y, 0, 0};
    } else {
      return *reinterpret_cast<const uint4*>(from);
    }
  }

  /// Eight elements that lie anywhere.
  static TILE_FN uint4 gather(const Element* from) {
    if constexpr (kIsFp8<kType>) {
      const auto word = [&](int i) {
        return uint32_t{from[i]} | uint32_t{from[i + 1]} << 8 | uint32_t{from[i + 2]} << 16 |
               uint32_t{from[i + 3]} << 24;
      };
      return {word(0), word(4), 0, 0};
    } else {
      const auto word = [&](int i) { return uint32_t{from[i]} | uint32_t{from[i + 1]} << 16; };
      return {word(0), word(2), word(4), word(6)};
    }
  }

  /// Of a word's two elements, as bits.
  static TILE_FN uint32_t magnitudes(uint32_t word) { return word & 0x7fff7fff; }

  /// The power of two that brings a bf16 row's largest element below 2^15; 1 for infinite ones.
  /// @param most bits of that element's magnitude
  static TILE_FN float scale_of(uint32_t most, float* unscale, bool tells) {
    const int exponent = static_cast<int>(most >> 7);
    // biased: the scale is 2^(141 - exponent) and both it and its inverse are normal numbers
    const int power = exponent == 255 ? 0 : 141 - max(exponent, 15);
    if (tells) *unscale = std::bit_cast<float>(static_cast<uint32_t>(127 - power) << 23);
    return std::bit_cast<float>(static_cast<uint32_t>(127 + power) << 23);
  }

  static TILE_FN void write(unsigned char* to, int row, int chunk, const uint4& words,
                            float scale) {
    unsigned char* at =
        to + (Keys::kSwizzled ? swizzled(row, chunk) : chunk * kChunkBytes<kRows> + row * 16);
    if constexpr (!Keys::kFp8) {
      *reinterpret_cast<uint4*>(at) = words;
    } else {
      uint32_t half[4];
      if constexpr (kIsFp8<kType>) {
        widen(words.x, half[0], half[1]);
        widen(words.y, half[2], half[3]);
      } else {
        half[0] = as_half(words.x, scale), half[1] = as_half(words.y, scale);
        half[2] = as_half(words.z, scale), half[3] = as_half(words.w, scale);
      }
      // depths 4t and 4t + 1 of 16 lie in the first 8 of the operand, 4t + 2 and 4t + 3 in the rest
      unsigned char* pair = to + chunk / 2 * 2 * kChunkBytes<kRows> + row * 16 + chunk % 2 * 8;
      *reinterpret_cast<uint2*>(pair) = {half[0], half[2]};
      *reinterpret_cast<uint2*>(pair + kChunkBytes<kRows>) = {half[1], half[3]};
    }
  }

  static TILE_FN uint32_t as_half(uint32_t word, float scale) {
    if constexpr (kType == abi::DType::fp16) return word;
    return pack<abi::DType::fp16>(std::bit_cast<float>(word << 16) * scale,
                                  std::bit_cast<float>(word & 0xffff0000u) * scale);
  }
};

}  // namespace hipdecode::tile::nvptx
