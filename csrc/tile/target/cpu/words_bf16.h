// SPDX-License-Identifier: MIT
#pragma once

#include "vector.h"

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
#define HIPDECODE_CPU_HAS_BF16_DOT 1

namespace hipdecode::tile {

/// bf16 bits of every non-negative e4m3 code, low bytes then high bytes: two 128-byte lookups.
template <abi::DType kType>
struct Fp8ToBf16 {
  alignas(kCacheLine) uint8_t low[128], high[128];
  constexpr Fp8ToBf16() : low(), high() {
    for (int code = 0; code < 128; ++code) {
      const auto byte = static_cast<uint8_t>(code);
      const uint16_t bits =
          float_to_bf16(kType == abi::DType::fp8_e4m3fn ? fp8_e4m3fn_to_float(byte)
                                                        : fp8_e4m3fnuz_to_float(byte));
      low[code] = static_cast<uint8_t>(bits & 0xff);
      high[code] = static_cast<uint8_t>(bits >> 8);
    }
  }
};

/// Matrix operands as pairs of bf16 in 32-bit words, for vdpbf16ps: twice the rate of fp32 FMA.
/// Every fp8 value is a bf16 value, so only the weights are rounded. bf16 keys are read where they
/// lie.
template <int kHeadDimQk, int kHeadDimV, abi::DType kQDType, abi::DType kKvDType>
struct WordsBf16 {
  using Word = uint32_t;
  using KvElement = typename Storage<kKvDType>::Type;
  using Key = const KvElement*;
  static constexpr int kRowBytes = kHeadDimQk * static_cast<int>(sizeof(KvElement));
  static constexpr int kPack = 2;
  static constexpr int kTokens = 96;
  static constexpr int kDepth = kHeadDimQk / 2;
  static constexpr int kValuePitch = kHeadDimV + 16;
  static constexpr int kKeyPitch = kDepth + 16;
  static constexpr bool kStaged = kIsFp8<kKvDType>;
  static_assert(kHeadDimQk % 32 == 0 && kHeadDimV % 64 == 0);

  struct Keys {
    alignas(kCacheLine) Word staged[kStaged ? kTokens * kKeyPitch : kKeyPitch];
    alignas(kCacheLine) Word values[kTokens / 2 * kValuePitch];
    const Word* row[kTokens];

    TILE_FN Word* row_words(int n) {
      row[n] = staged + n * kKeyPitch;
      return staged + n * kKeyPitch;
    }
  };

  static TILE_FN void look_ahead(Key) {}

  static TILE_FN Vec multiply_add(Vec acc, Vec lanes, Word scalar) {
    return (Vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)lanes,
                                 (__m512bh)_mm512_set1_epi32(static_cast<int>(scalar)));
  }

  static TILE_FN Vec multiply_lanes(Vec acc, Vec a, Vec b) {
    return (Vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
  }

  /// Columns of a row of fp8, as bf16 words in the order of key_column().
  struct Block {
    __m512i first, second;
  };

  /// 64 fp8 codes to bf16. Bytes are interleaved within 128-bit lanes, hence the order of columns.
  template <abi::DType kType>
  static TILE_FN Block widen_block(__m512i codes) {
    static constexpr Fp8ToBf16<kType> kTable{};
    __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(kTable.low), codes,
                                           _mm512_load_si512(kTable.low + 64));
    __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(kTable.high), codes,
                                            _mm512_load_si512(kTable.high + 64));
    high = _mm512_or_si512(high, _mm512_and_si512(codes, _mm512_set1_epi8(-128)));
    if constexpr (kType == abi::DType::fp8_e4m3fnuz) {  // 0x80 is not minus zero but NaN
      const __mmask64 nan = _mm512_cmpeq_epi8_mask(codes, _mm512_set1_epi8(-128));
      low = _mm512_mask_mov_epi8(low, nan, _mm512_set1_epi8(-1));
      high = _mm512_mask_mov_epi8(high, nan, _mm512_set1_epi8(-1));
    }
    return {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
  }

  /// Widens columns [i, i + 64), or the last 32, of a row into `out`.
  template <abi::DType kType>
  static TILE_FN Block widen_columns(Word* out, const uint8_t* row, int i) {
    if (kHeadDimQk - i >= 64) {
      const Block block = widen_block<kType>(_mm512_loadu_si512(row + i));
      _mm512_store_si512(out + i / 2, block.first);
      _mm512_store_si512(out + i / 2 + 16, block.second);
      return block;
    }
    const Block block =
        widen_block<kType>(_mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i*)(row + i))));
    _mm256_store_si256((__m256i*)(out + i / 2), _mm512_castsi512_si256(block.first));
    _mm256_store_si256((__m256i*)(out + i / 2 + 8), _mm512_castsi512_si256(block.second));
    return block;
  }

  /// Logical column behind position p of a staged fp8 row.
  static constexpr int key_column(int p) {
    const int block = p / 64 * 64, width = kHeadDimQk - block < 64 ? 32 : 64;
    const int q = (p - block) % (width / 2);
    return block + q / 8 * 16 + q % 8 + (p - block >= width / 2 ? 8 : 0);
  }

  static TILE_FN void query_row(Word* out, const void* source) {
    static_assert(kStaged || !kIsFp8<kQDType>, "an fp8 query goes with fp8 keys");
    if constexpr (kIsFp8<kQDType>) {
      for (int i = 0; i < kHeadDimQk; i += 64)
        widen_columns<kQDType>(out, static_cast<const uint8_t*>(source), i);
    } else if constexpr (kStaged) {
      const auto* q = static_cast<const uint16_t*>(source);
      for (int p = 0; p < kHeadDimQk; p += 8)
        std::memcpy(out + p / 2, q + key_column(p), 16);  // runs of eight
    } else {
      std::memcpy(out, source, kHeadDimQk * 2);
    }
  }

  /// Makes tokens [begin, end) of a tile ready for scores, and those of fp8 for values too.
  static TILE_FN void stage_keys(Keys& keys, const Key* source, int begin, int end) {
    if constexpr (kStaged) {
      alignas(kCacheLine) static constexpr KvElement kNothing[kHeadDimQk] = {};
      for (int n = begin; n < end; n += 2) {
        Word* first = keys.row_words(n);
        Word* second = keys.row_words(n + 1);
        const KvElement* a = source[n] ? source[n] : kNothing;
        const KvElement* b = source[n + 1] ? source[n + 1] : kNothing;
        Word* out = keys.values + n / 2 * kValuePitch;
        for (int i = 0; i < kHeadDimQk; i += 64) {
          const Block x = widen_columns<kKvDType>(first, a, i),
                      y = widen_columns<kKvDType>(second, b, i);
          if (i >= kHeadDimV) continue;
          pair_up(out + i, x.first, y.first);
          pair_up(out + i + 32, x.second, y.second);
        }
      }
    } else {
      if (begin == 0) std::memset(keys.staged, 0, kDepth * sizeof(Word));
      for (int n = begin; n < end; ++n)
        keys.row[n] = source[n] ? reinterpret_cast<const Word*>(source[n]) : keys.staged;
    }
  }

  static TILE_FN void pair_up(Word* out, __m512i a, __m512i b) {
    _mm512_store_si512(out, _mm512_unpacklo_epi16(a, b));
    _mm512_store_si512(out + 16, _mm512_unpackhi_epi16(a, b));
  }

  /// Pairs up the value rows of tokens (n, n + 1) for tokens [begin, end), begin even. Rows from
  /// `limit` on read as zero whatever they hold.
  static TILE_FN void cut_values(Keys& keys, int begin, int end, int limit) {
    for (int n = begin; n < end; n += 2) {
      const Word* first = keys.row[n];
      const Word* second = n + 1 < limit ? keys.row[n + 1] : nullptr;
      Word* out = keys.values + n / 2 * kValuePitch;
      for (int i = 0; i < kHeadDimV / 2; i += 16)
        pair_up(out + 2 * i, _mm512_loadu_si512(first + i),
                second ? _mm512_loadu_si512(second + i) : _mm512_setzero_si512());
    }
  }

  /// The values of keys that have just been read.
  static TILE_FN void stage_values(Keys& keys, int begin, int end, int limit) {
    if constexpr (!kStaged) cut_values(keys, begin, end, limit);
  }

  static TILE_FN bool is_special(const Word* row) {
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    __mmask32 hits = 0;
    for (int i = 0; i < kHeadDimV / 2; i += 16)
      hits |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(_mm512_loadu_si512(row + i), exponent),
                                      exponent);
    return hits != 0;
  }

  static TILE_FN const Word* values(const Keys& keys) { return keys.values; }

  static TILE_FN void weights(Word* out, Vec first, Vec second) {
    const __m512i pair = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    const __m512i order = _mm512_or_si512(
        _mm512_cvtepi8_epi32(_mm_set_epi8(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)),
        _mm512_slli_epi32(_mm512_cvtepi8_epi32(_mm_set_epi8(31, 30, 29, 28, 27, 26, 25, 24, 23, 22,
                                                            21, 20, 19, 18, 17, 16)),
                          16));
    _mm512_storeu_si512(out, _mm512_permutexvar_epi16(order, pair));
  }

  /// Stored group of four output columns that holds logical columns [4 * logical, 4 * logical + 4):
  /// undoes the in-lane interleaving of stage_values and, for fp8, of widen_block.
  static constexpr int output_quad(int logical) {
    if constexpr (kStaged) {
      const int block = logical / 16 * 16, g = logical % 16;
      return block + g % 4 * 4 + g / 4;
    } else {
      const int block = logical / 8 * 8, g = logical % 8;
      return block + g % 2 * 4 + g / 2;
    }
  }
};

}  // namespace hipdecode::tile
#endif
