// SPDX-License-Identifier: MIT
#pragma once

#include "../../key_format.h"
#include "words_bf16.h"
#include "words_fp32.h"

namespace hipdecode::tile {

/// Fetches what score() does not: the line of a key's scales where they lie apart.
template <KeyFormat kFormat>
TILE_FN void prefetch_scales(const PackedKey& key) {
  if constexpr (kFormat == KeyFormat::v4) __builtin_prefetch(key.scales, 0, 2);
}

/// The scale of each group of a key, in fp32.
template <class Layout>
struct GroupScales {
  float value[Layout::kLatent / Layout::kGroup];

  explicit GroupScales(const uint8_t* scales) {
    typename Layout::Scale stored[Layout::kLatent / Layout::kGroup];
    std::memcpy(stored, scales, sizeof(stored));
    for (int g = 0; g < Layout::kLatent / Layout::kGroup; ++g)
      value[g] = Layout::scale_value(stored[g]);
  }
};

/// WordsFp32 of packed keys: dequantised once per tile.
template <KeyFormat kFormat, abi::DType kKvDType, abi::DType kExtraDType>
struct WordsPackedFp32 : WordsFp32<KeyLayout<kFormat>::kHeadDimQk, KeyLayout<kFormat>::kHeadDimV,
                                   abi::DType::bf16, kKvDType> {
  using Layout = KeyLayout<kFormat>;
  using Base = WordsFp32<Layout::kHeadDimQk, Layout::kHeadDimV, abi::DType::bf16, kKvDType>;
  using Word = float;
  using Key = PackedKey;
  static constexpr int kRowBytes = Layout::kDataBytes;

  static TILE_FN void look_ahead(const Key& key) { prefetch_scales<kFormat>(key); }

  template <abi::DType kType>
  static TILE_FN void widen_latent(Word* row, const PackedKey& key) {
    const GroupScales<Layout> scales(key.scales);
    for (int i = 0; i < Layout::kLatent; i += kLanes) {
      alignas(kCacheLine) uint16_t rounded[kLanes];
      narrow<abi::DType::bf16>(rounded,
                               widen<kType>(key.data + i) * scales.value[i / Layout::kGroup]);
      store(row + i, widen<abi::DType::bf16>(rounded));
    }
  }

  static TILE_FN void stage_keys(typename Base::Keys& keys, const Key* source, int begin, int end) {
    for (int n = begin; n < end; ++n) {
      Word* row = keys.staged + n * Base::kValuePitch;
      keys.row[n] = row;
      if (source[n] == nullptr) {
        std::memset(row, 0, Layout::kHeadDimQk * sizeof(Word));
        continue;
      }
      source[n].extra ? widen_latent<kExtraDType>(row, source[n])
                      : widen_latent<kKvDType>(row, source[n]);
      for (int i = 0; i < Layout::kHeadDimQk - Layout::kLatent; i += kLanes) {
        alignas(kCacheLine) uint16_t rope[kLanes];
        std::memcpy(rope, source[n].data + Layout::kRopeOffset + 2 * i, sizeof(rope));
        store(row + Layout::kLatent + i, widen<abi::DType::bf16>(rope));
      }
    }
  }
};

#ifdef HIPDECODE_CPU_HAS_BF16_DOT
/// WordsBf16 of packed keys: dequantised and paired up once per tile. Latent columns lie in the
/// order that unpacking within 128-bit lanes leaves, in runs of four; rotary ones as they are.
template <KeyFormat kFormat, abi::DType kKvDType, abi::DType kExtraDType>
struct WordsPackedBf16 : WordsBf16<KeyLayout<kFormat>::kHeadDimQk, KeyLayout<kFormat>::kHeadDimV,
                                   abi::DType::bf16, kKvDType> {
  using Layout = KeyLayout<kFormat>;
  using Base = WordsBf16<Layout::kHeadDimQk, Layout::kHeadDimV, abi::DType::bf16, kKvDType>;
  using Word = uint32_t;
  using Key = PackedKey;
  using Keys = typename Base::Keys;
  static constexpr int kRowBytes = Layout::kDataBytes;
  static_assert(Layout::kGroup % 64 == 0 && Layout::kLatent % 64 == 0);

  static TILE_FN void look_ahead(const Key& key) { prefetch_scales<kFormat>(key); }

  /// 32 bf16 times a scale, rounded to bf16; runs of four change places.
  static TILE_FN __m512i scaled(__m512i words, __m512 scale) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512 low = _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, words));
    const __m512 high = _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, words));
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(high, scale), _mm512_mul_ps(low, scale));
  }

  /// Position, in runs of four, of run `logical` of a row.
  static constexpr int run_position(int logical) {
    const int block = logical / 16 * 16, run = logical % 16;
    return 4 * logical < Layout::kLatent ? block + run % 4 * 4 + run / 4 : logical;
  }

  static TILE_FN void query_row(Word* out, const void* source) {
    const auto* q = static_cast<const uint16_t*>(source);
    for (int run = 0; run < Layout::kHeadDimQk / 4; ++run)
      std::memcpy(out + 2 * run_position(run), q + 4 * run, 8);
  }

  template <abi::DType kType>
  static TILE_FN void widen_latent(Word* row, const PackedKey& key) {
    const GroupScales<Layout> scales(key.scales);
    for (int i = 0; i < Layout::kLatent; i += 64) {
      const auto block = Base::template widen_block<kType>(_mm512_loadu_si512(key.data + i));
      const __m512 scale = _mm512_set1_ps(scales.value[i / Layout::kGroup]);
      _mm512_store_si512(row + i / 2, scaled(block.first, scale));
      _mm512_store_si512(row + i / 2 + 16, scaled(block.second, scale));
    }
  }

  static TILE_FN void stage_key(Word* row, const PackedKey& key) {
    if (key == nullptr) {
      std::memset(row, 0, Layout::kHeadDimQk * 2);
      return;
    }
    key.extra ? widen_latent<kExtraDType>(row, key) : widen_latent<kKvDType>(row, key);
    std::memcpy(row + Layout::kLatent / 2, key.data + Layout::kRopeOffset,
                (Layout::kHeadDimQk - Layout::kLatent) * 2);
  }

  static TILE_FN void stage_keys(Keys& keys, const Key* source, int begin, int end) {
    for (int n = begin; n < end; ++n) stage_key(keys.row_words(n), source[n]);
    Base::cut_values(keys, begin, end, end);
  }

  static constexpr int output_quad(int logical) {
    const int position = run_position(logical), block = position / 8 * 8, g = position % 8;
    return block + g % 2 * 4 + g / 2;
  }
};
#endif

}  // namespace hipdecode::tile
