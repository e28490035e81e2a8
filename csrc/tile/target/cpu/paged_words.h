// SPDX-License-Identifier: MIT
#pragma once

#include "../../paged_cache.h"
#include "chunk_product.h"
#include "words_bf16.h"
#include "words_fp32.h"

namespace hipdecode::tile {

/// Operands of paged attention as fp32: every machine, every dtype. A chunk of the cache becomes
/// several chunks of four.
template <class Shape>
struct PagedWordsFp32 {
  using Word = float;
  using Element = typename Storage<Shape::kKvDType>::Type;
  static constexpr int kPack = 1;        // elements of a word
  static constexpr bool kStaged = true;  // chunks of the cache are no operands
  static constexpr int kParts = 16 / static_cast<int>(sizeof(Element)) / kChunkWords;
  static constexpr int kQuads = kLanes / kChunkWords;  // chunks of four that a register holds
  static constexpr int kAtOnce = 4;                    // units of the cache

  static TILE_FN Vec multiply_lanes(Vec acc, Vec a, Vec b) { return acc + a * b; }

  static TILE_FN void query_row(Word* out, const void* source) {
    const auto* q = static_cast<const typename Storage<Shape::kQDType>::Type*>(source);
    for (int i = 0; i < Shape::kHeadDim; i += kLanes) store(out + i, widen<Shape::kQDType>(q + i));
  }

  /// Widens `units` chunks of the cache, `stride` elements apart: part j of unit u goes to
  /// out[j * pitch + u * kChunkWords].
  static TILE_FN void stage(Word* out, int64_t pitch, const Element* chunks, int64_t stride,
                            int units) {
    constexpr int kElements = kParts * kChunkWords, kVecs = kAtOnce * kElements / kLanes;
    for (int u = 0; u < units; u += kAtOnce) {
      alignas(kCacheLine) Element gathered[kAtOnce * kElements];
      const Element* source = chunks + u * stride;
      if (stride != kElements) {
        for (int i = 0; i < kAtOnce; ++i)
          std::memcpy(gathered + i * kElements, source + i * stride, sizeof(Element) * kElements);
        source = gathered;
      }
      Vec wide[kVecs];
#pragma GCC unroll 16
      for (int i = 0; i < kVecs; ++i) wide[i] = widen<Shape::kKvDType>(source + i * kLanes);
      store_parts(out + u * kChunkWords, pitch, wide);
    }
  }

  /// Weights of 2 * kLanes tokens.
  static TILE_FN void weights(Word* out, Vec first, Vec second) {
    store(out, first);
    store(out + kLanes, second);
  }

 private:
  /// Quads [q, q + kQuads / 2) of a, then those of b.
  template <int q>
  static TILE_FN Vec halves(Vec a, Vec b) {
    IntVec order;
    for (int i = 0; i < kLanes; ++i)
      order[i] = q * kChunkWords + i % (kLanes / 2) + (i < kLanes / 2 ? 0 : kLanes);
    return __builtin_shuffle(a, b, order);
  }

  /// Every second quad of a from q on, then those of b.
  template <int q>
  static TILE_FN Vec every_second(Vec a, Vec b) {
    IntVec order;
    for (int i = 0; i < kLanes; ++i) {
      const int quad = i / kChunkWords * 2 + q;  // of a and b side by side
      order[i] = quad * kChunkWords + i % kChunkWords;
    }
    return __builtin_shuffle(a, b, order);
  }

  /// Stores part j of kAtOnce units at out + j * pitch; `wide` has units one behind the other.
  template <int kVecs>
  static TILE_FN void store_parts(Word* out, int64_t pitch, const Vec (&wide)[kVecs]) {
    if constexpr (kQuads == 1) {
      for (int i = 0; i < kVecs; ++i)
        store(out + i % kParts * pitch + i / kParts * kChunkWords, wide[i]);
    } else if constexpr (kQuads == 2) {
      constexpr int kEach = kParts / 2;  // registers of a unit
#pragma GCC unroll 2
      for (int u = 0; u < kAtOnce; u += 2)
#pragma GCC unroll 2
        for (int i = 0; i < kEach; ++i) {
          const Vec a = wide[u * kEach + i], b = wide[(u + 1) * kEach + i];
          store(out + 2 * i * pitch + u * kChunkWords, halves<0>(a, b));
          store(out + (2 * i + 1) * pitch + u * kChunkWords, halves<1>(a, b));
        }
    } else if constexpr (kParts == 2) {
      store(out, every_second<0>(wide[0], wide[1]));
      store(out + pitch, every_second<1>(wide[0], wide[1]));
    } else {
      const Vec even[2] = {every_second<0>(wide[0], wide[1]), every_second<0>(wide[2], wide[3])};
      const Vec odd[2] = {every_second<1>(wide[0], wide[1]), every_second<1>(wide[2], wide[3])};
      store(out, every_second<0>(even[0], even[1]));
      store(out + pitch, every_second<0>(odd[0], odd[1]));
      store(out + 2 * pitch, every_second<1>(even[0], even[1]));
      store(out + 3 * pitch, every_second<1>(odd[0], odd[1]));
    }
  }
};

#ifdef HIPDECODE_CPU_HAS_BF16_DOT
/// Operands as pairs of bf16: chunks of a bf16 cache are read where they lie; those of fp8 become
/// two, in order, since unpacking works within 16 bytes.
template <class Shape>
struct PagedWordsBf16 {
  using Word = uint32_t;
  using Element = typename Storage<Shape::kKvDType>::Type;
  using Base = WordsBf16<128, 128, abi::DType::bf16, Shape::kKvDType>;
  static constexpr int kPack = 2;
  static constexpr bool kStaged = kIsFp8<Shape::kKvDType>;
  static constexpr int kParts = kStaged ? 2 : 1;

  static TILE_FN Vec multiply_lanes(Vec acc, Vec a, Vec b) {
    return Base::multiply_lanes(acc, a, b);
  }

  static TILE_FN void query_row(Word* out, const void* source) {
    std::memcpy(out, source, Shape::kHeadDim * 2);
  }

  /// Four chunks of the cache, `stride` elements apart.
  static TILE_FN __m512i four_chunks(const Element* chunks, int64_t stride) {
    if (stride * sizeof(Element) == 16) return _mm512_loadu_si512(chunks);
    __m128i chunk[4];
    for (int u = 0; u < 4; ++u)
      chunk[u] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(chunks + u * stride));
    const __m512i low = _mm512_inserti32x4(_mm512_castsi128_si512(chunk[0]), chunk[1], 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(low, chunk[2], 2), chunk[3], 3);
  }

  static TILE_FN void stage(Word* out, int64_t pitch, const Element* chunks, int64_t stride,
                            int units) {
    for (int u = 0; u < units; u += 4) {
      const __m512i four = four_chunks(chunks + u * stride, stride);
      if constexpr (kStaged) {
        const auto block = Base::template widen_block<Shape::kKvDType>(four);
        _mm512_storeu_si512(out + u * kChunkWords, block.first);
        _mm512_storeu_si512(out + pitch + u * kChunkWords, block.second);
      } else {
        _mm512_storeu_si512(out + u * kChunkWords, four);
      }
    }
  }

  static TILE_FN void weights(Word* out, Vec first, Vec second) {
    _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
  }
};

template <class Shape>
using PagedWords =
    std::conditional_t<Shape::kQDType == abi::DType::bf16 && Shape::kKvDType != abi::DType::fp16,
                       PagedWordsBf16<Shape>, PagedWordsFp32<Shape>>;
#else
template <class Shape>
using PagedWords = PagedWordsFp32<Shape>;
#endif

}  // namespace hipdecode::tile
