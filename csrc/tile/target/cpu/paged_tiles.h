// SPDX-License-Identifier: MIT
#pragma once

#include "../../concepts.h"
#include "paged_words.h"
#include "row.h"

namespace hipdecode::tile {

/// The tiles of paged attention on the CPU. A cache's chunks have units side by side (tokens of
/// keys, columns of values), which is what chunk_product() reads: scores and output come out in
/// rows, and no key is ever transposed. Groups of 16 tokens are staged where their chunks are no
/// operands: keys before their scores, values a few columns at a time, all in the first-level
/// cache.
template <class Shape>
struct PagedTiles {
  static constexpr int kHeadDim = Shape::kHeadDim;
  using Cache = PagedCache<Shape>;
  using Element = typename Cache::Element;
  using W = PagedWords<Shape>;
  using Word = typename W::Word;

  static constexpr int kRows = Shape::kRows;  // query rows of a tile at most
  static constexpr int kTokens = 128;         // a column block of their values is 4 KiB of bf16
  static constexpr int kWaves = 1;
  static constexpr bool kTokenScales = Shape::kScales == PagedScales::token;
  static constexpr int kGroups = kTokens / kGroupTokens;
  static constexpr int kDepth = kHeadDim / W::kPack;  // words of a query row
  static constexpr int kChunkTokens = kChunkWords * W::kPack;
  static constexpr int kGroupChunks = kGroupTokens / kChunkTokens;
  static constexpr int kUnits = kLanes;                    // of one chunk_product()
  static constexpr int kUnitWords = kUnits * kChunkWords;  // of a chunk of them
  static_assert(kGroupTokens % kUnits == 0 && kHeadDim % kUnits == 0 &&
                kTokens % (2 * kLanes) == 0);

  /// Where the groups of a tile lie; null: they do not exist.
  struct Tokens {
    const Element* keys[kGroups];
    const Element* values[kGroups];
    const float* key_scales[kGroups];
    const float* value_scales[kGroups];
    int count;
    bool skipped;

    bool skips() const { return skipped; }
    int groups() const { return (count + kGroupTokens - 1) / kGroupTokens; }
  };

  struct Shared {
    alignas(kCacheLine) Word queries[kRows * kDepth];
    alignas(kCacheLine) float scores[kRows * kTokens];
    alignas(kCacheLine) Word weights[kRows * kTokens / W::kPack];
    alignas(kCacheLine) float out[kRows * kHeadDim];
    alignas(kCacheLine) float running_max[kRows], running_sum[kRows], rescale[kRows];
    alignas(kCacheLine) Word keys[kDepth * kGroupTokens];  // of one group: [chunk][token]
    alignas(kCacheLine) Word values[kTokens / kChunkTokens * kUnitWords];  // [chunk][column]
    const Word* chunks[kTokens / kChunkTokens];  // where those of a column block lie
  };

  PagedTiles(Shared& shared, Block, const Cache& cache) : s_(shared), cache_(cache) {}

  template <class RowSource>
  void load_queries(const RowSource& source, int rows) {
    TILE_ASSERT(rows > 0 && rows <= kRows);
    rows_ = rows;
    for (int r = 0; r < rows; ++r) {
      W::query_row(s_.queries + r * kDepth, source(r));
      s_.running_max[r] = -kInfinity;
      s_.running_sum[r] = 0;
    }
    std::memset(s_.out, 0, static_cast<size_t>(rows) * kHeadDim * sizeof(float));
  }

  template <class Lookup>
  Tokens gather(const Lookup& lookup, int count) const {
    Tokens tokens;
    tokens.count = count;
    tokens.skipped = false;
    for (int g = 0; g < tokens.groups(); ++g) {
      const PagedGroup group = lookup(g * kGroupTokens);
      const bool exists = group.exists();
      tokens.skipped |= !exists;
      tokens.keys[g] = exists ? cache_.keys_of(group) : nullptr;
      tokens.values[g] = exists ? cache_.values_of(group) : nullptr;
      if constexpr (kTokenScales) {
        tokens.key_scales[g] = exists ? cache_.key_scales_of(group) : nullptr;
        tokens.value_scales[g] = exists ? cache_.value_scales_of(group) : nullptr;
      }
    }
    return tokens;
  }

  /// Keys are read where they lie, so nothing starts early.
  void fetch(const Tokens&) {}

  /// scores = queries x keys^T, times the scales of the keys; minus infinity where there is no key.
  /// Keys and values of `next` come into the second-level cache behind the arithmetic.
  void score(const Tokens& tokens, const Tokens& next) {
    TILE_ASSERT(tokens.count > 0 && tokens.count <= kTokens);
    for (int g = 0; g < tokens.groups(); ++g) {
      const bool known = g < next.groups() && next.keys[g] != nullptr;
      const Ahead ahead{cache_, known ? &next : nullptr, g};
      if (tokens.keys[g] == nullptr)
        hide(g * kGroupTokens, (g + 1) * kGroupTokens);
      else
        score_group(tokens, g, ahead);
    }
    if (tokens.count % kGroupTokens != 0) hide(tokens.count, tokens.groups() * kGroupTokens);
  }

  template <class Visible>
  void mask(const Tokens& tokens, int first, const Visible& visible) {
    if (first >= tokens.count) return;  // what does not exist has been hidden
    for (int r = 0; r < rows_; ++r) {
      float* scores = s_.scores + r * kTokens;
      for (int n = visible(r); n < tokens.count; ++n) scores[n] = -kInfinity;
    }
  }

  /// Online softmax of one tile in base 2: updates maximum and sum, leaves the rescale factors of
  /// the output and the weights of the tile, times the scales of the values.
  void softmax(const Tokens& tokens, float scale) {
    const int count = tokens.groups() * kGroupTokens;
    for (int r = 0; r < rows_; ++r) {
      const float* scores = s_.scores + r * kTokens;
      Vec most = splat(-kInfinity);
      for (int n = 0; n < count; n += kLanes) most = max(load(scores + n) * scale, most);
      const float before = s_.running_max[r],
                  here = across(most, [](Vec a, Vec b) { return max(a, b); });
      const float best = here > before ? here : before;
      // a row that has seen nothing yet stays at -inf; subtracting it would give NaN
      const float shift = best == -kInfinity ? 0 : best;
      Vec sum = Vec{};
      for (int n = 0; n < count; n += 2 * kLanes) {
        const Vec first = exp2(load(scores + n) * scale - shift);
        const bool both = n + kLanes < count;
        const Vec second = both ? exp2(load(scores + n + kLanes) * scale - shift) : Vec{};
        sum += first + second;
        W::weights(s_.weights + (r * kTokens + n) / W::kPack, scaled(first, tokens, n),
                   both ? scaled(second, tokens, n + kLanes) : second);
      }
      s_.rescale[r] = exp2(before - shift);
      s_.running_max[r] = best;
      s_.running_sum[r] =
          s_.running_sum[r] * s_.rescale[r] + across(sum, [](Vec a, Vec b) { return a + b; });
    }
  }

  /// out = out * rescale + weights x values, and never a value that its row may not see: zero times
  /// NaN is NaN, so where the hidden tail holds one, rows get their own cut of the values.
  template <class Visible>
  void accumulate(const Tokens& tokens, int first_hidden, const Visible& visible) {
    if (!has_special_values(tokens, first_hidden)) return weigh(tokens, tokens.count, 0, rows_);
    for (int begin = 0, end; begin < rows_; begin = end) {
      const int limit = visible(begin);
      for (end = begin + 1; end < rows_ && visible(end) == limit;) ++end;
      weigh(tokens, limit, begin, end);
    }
  }

  template <class Target>
  void store(int rows, const Target& target, float value_scale) const {
    for (int r = 0; r < rows; ++r) {
      const RowTarget to = target(r);
      if (to.o == nullptr) continue;
      const float sum = s_.running_sum[r];
      write_row(to.o, s_.out + r * kHeadDim, row_scale(sum, value_scale), kHeadDim, to.type);
      if (to.lse != nullptr) *to.lse = row_lse(s_.running_max[r], sum, log2(sum));
    }
  }

 private:
  static constexpr int kElementBytes = static_cast<int>(sizeof(Element));
  static constexpr int kKeyChunks = kHeadDim / Cache::kChunk;        // of a token of the cache
  static constexpr int kValueChunks = kGroupTokens / Cache::kChunk;  // of a column of a group

  /// The next tile's group, brought in by step c out of kDepth / kChunkWords.
  struct Ahead {
    const Cache& cache;
    const Tokens* next;  // null: nothing to do
    int group;

    // inlined early, or gcc takes a function of nothing but prefetches for one without effect
    __attribute__((always_inline)) void operator()(int c) const {
      if (next == nullptr) return;
      constexpr int kSteps = kDepth / kChunkWords;
      constexpr int kLine = kCacheLine / kElementBytes;
      constexpr int kKeyLines = kKeyChunks * kGroupTokens * 16 / kCacheLine;
      constexpr int kKeysEach = (kKeyLines + kSteps - 1) / kSteps, kColumns = kHeadDim / kSteps;
      if (kTokenScales && c == 0) {
        __builtin_prefetch(next->key_scales[group], 0, 2);
        __builtin_prefetch(next->value_scales[group], 0, 2);
      }
      const Element* keys = next->keys[group];
      for (int i = c * kKeysEach; i < (c + 1) * kKeysEach && i < kKeyLines; ++i)
        __builtin_prefetch(keys + i / 4 * cache.key_chunk_stride() + i % 4 * kLine, 0, 2);
      const int64_t column = cache.value_column_stride();
      const int step = column >= kLine ? 1 : static_cast<int>(kLine / column);
      const int chunks = column == Cache::kChunk ? kValueChunks : 1;
      for (int k = 0; k < chunks; ++k) {
        const Element* values = next->values[group] + k * cache.value_chunk_stride();
        for (int d = c * kColumns; d < (c + 1) * kColumns; d += step)
          __builtin_prefetch(values + d * column, 0, 2);
      }
    }
  };

  void hide(int begin, int end) {
    for (int r = 0; r < rows_; ++r)
      for (int n = begin; n < end; ++n) s_.scores[r * kTokens + n] = -kInfinity;
  }

  void score_group(const Tokens& tokens, int g, const Ahead& ahead) {
    const Word* keys = s_.keys;
    int64_t pitch = kGroupTokens * kChunkWords;
    if constexpr (W::kStaged) {
      for (int c = 0; c < kKeyChunks; ++c)
        W::stage(s_.keys + c * W::kParts * pitch, pitch,
                 tokens.keys[g] + c * cache_.key_chunk_stride(), Cache::kChunk, kGroupTokens);
    } else {
      keys = reinterpret_cast<const Word*>(tokens.keys[g]);
      pitch = cache_.key_chunk_stride() / W::kPack;
    }
    for (int t = 0; t < kGroupTokens; t += kUnits) {
      const int n = g * kGroupTokens + t;
      const Vec scale = kTokenScales ? load(tokens.key_scales[g] + t) : Vec{};
      const auto chunk_at = [=](int c) { return keys + c * pitch + t * kChunkWords; };
      in_blocks(0, rows_, [&]<int kHeight>(std::integral_constant<int, kHeight>, int r) {
        Vec sums[kHeight];
        const Word* queries = s_.queries + r * kDepth;
        if (r == 0 && t == 0)
          chunk_product<W>(sums, queries, kDepth, kDepth / kChunkWords, chunk_at, ahead);
        else
          chunk_product<W>(sums, queries, kDepth, kDepth / kChunkWords, chunk_at, [](int) {});
        for (int i = 0; i < kHeight; ++i)
          tile::store(s_.scores + (r + i) * kTokens + n, kTokenScales ? sums[i] * scale : sums[i]);
      });
    }
  }

  /// Weights of tokens [n, n + kLanes) times the scales of their values, of which those of hidden
  /// tokens may be anything.
  static Vec scaled(Vec weights, const Tokens& tokens, int n) {
    if constexpr (!kTokenScales) return weights;
    const float* scales = tokens.value_scales[n / kGroupTokens];
    if (scales == nullptr) return weights;
    const Vec product = weights * load(scales + n % kGroupTokens);
    return weights == 0 ? Vec{} : product;
  }

  /// Columns [d, d + kUnits) of the values of tokens [0, limit): s_.chunks points at them.
  void stage_values(const Tokens& tokens, int d, int limit) {
    const int64_t column = cache_.value_column_stride();
    for (int g = 0; g * kGroupTokens < limit; ++g) {
      const bool whole = (g + 1) * kGroupTokens <= limit;
      Word* staged = s_.values + g * kGroupChunks * kUnitWords;
      for (int c = 0; c < kGroupChunks; ++c)
        s_.chunks[g * kGroupChunks + c] = staged + c * kUnitWords;
      if (tokens.values[g] == nullptr) {
        std::memset(staged, 0, kGroupChunks * kUnitWords * sizeof(Word));
        continue;
      }
      for (int c = 0; c < kValueChunks; ++c) {
        const Element* chunks = tokens.values[g] + c * cache_.value_chunk_stride() + d * column;
        if (!W::kStaged && whole && column == Cache::kChunk)
          s_.chunks[g * kGroupChunks + c] = reinterpret_cast<const Word*>(chunks);
        else
          W::stage(staged + c * W::kParts * kUnitWords, kUnitWords, chunks, column, kUnits);
      }
      if (!whole) cut(staged, limit - g * kGroupTokens);
    }
  }

  /// Tokens of a staged group from `limit` on read as zero whatever they hold.
  static void cut(Word* staged, int limit) {
    for (int c = 0; c < kGroupChunks; ++c) {
      alignas(16) uint8_t kept[16];
      for (int i = 0; i < 16; ++i) kept[i] = c * kChunkTokens + i * W::kPack / 4 < limit ? 0xff : 0;
      const BitVec mask = (BitVec)load_chunk(kept);
      for (int i = 0; i < kUnitWords; i += kLanes) {
        Word* words = staged + c * kUnitWords + i;
        tile::store(words, load<BitVec>(words) & mask);
      }
    }
  }

  void weigh(const Tokens& tokens, int limit, int begin, int end) {
    const int chunks = (limit + kChunkTokens - 1) / kChunkTokens;
    for (int d = 0; d < kHeadDim; d += kUnits) {
      stage_values(tokens, d, limit);
      const auto chunk_at = [this](int c) { return s_.chunks[c]; };
      in_blocks(begin, end, [&]<int kHeight>(std::integral_constant<int, kHeight>, int r) {
        Vec sums[kHeight];
        constexpr int64_t kPitch = kTokens / W::kPack;
        chunk_product<W>(sums, s_.weights + r * kPitch, kPitch, chunks, chunk_at, [](int) {});
        for (int i = 0; i < kHeight; ++i) {
          float* out = s_.out + (r + i) * kHeadDim + d;
          tile::store(out, load(out) * s_.rescale[r + i] + sums[i]);
        }
      });
    }
  }

  /// Whether a value among tokens [begin, count) is an infinity or a NaN.
  bool has_special_values(const Tokens& tokens, int begin) const {
    for (int n = begin; n < tokens.count; ++n) {
      const Element* group = tokens.values[n / kGroupTokens];
      if (group == nullptr) continue;
      const int t = n % kGroupTokens;
      const Element* value =
          group + t / Cache::kChunk * cache_.value_chunk_stride() + t % Cache::kChunk;
      for (int d = 0; d < kHeadDim; ++d)
        if (is_special(value[d * cache_.value_column_stride()])) return true;
    }
    return false;
  }

  static bool is_special(Element bits) {
    switch (Shape::kKvDType) {
      case abi::DType::bf16:
        return (bits & 0x7f80) == 0x7f80;
      case abi::DType::fp16:
        return (bits & 0x7c00) == 0x7c00;
      case abi::DType::fp8_e4m3fn:
        return (bits & 0x7f) == 0x7f;
      default:
        return bits == 0x80;
    }
  }

  Shared& s_;
  const Cache cache_;
  int rows_ = 0;
};

}  // namespace hipdecode::tile
