// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>

#include "../../concepts.h"
#include "../../schedule.h"
#include "micro_kernels.h"
#include "row.h"
#include "words_bf16.h"
#include "words_fp32.h"
#include "words_packed.h"

namespace hipdecode::tile {

#ifdef HIPDECODE_CPU_HAS_BF16_DOT
template <int kQk, int kV, abi::DType kQ, abi::DType kKv>
using Words = std::conditional_t<kQ == abi::DType::fp16 || kKv == abi::DType::fp16,
                                 WordsFp32<kQk, kV, kQ, kKv>, WordsBf16<kQk, kV, kQ, kKv>>;
template <KeyFormat kFormat, abi::DType kKv, abi::DType kExtra>
using WordsPacked = WordsPackedBf16<kFormat, kKv, kExtra>;
#else
template <int kQk, int kV, abi::DType kQ, abi::DType kKv>
using Words = WordsFp32<kQk, kV, kQ, kKv>;
template <KeyFormat kFormat, abi::DType kKv, abi::DType kExtra>
using WordsPacked = WordsPackedFp32<kFormat, kKv, kExtra>;
#endif

/// The operands of a kernel's shape: keys of one type, or packed.
template <class Shape>
struct WordsOf {
  using Type = Words<Shape::kHeadDimQk, Shape::kHeadDimV, Shape::kQDType, Shape::kKvDType>;
};
template <class Shape>
  requires kIsPacked<Shape>
struct WordsOf<Shape> {
  using Type = WordsPacked<Shape::kFormat, Shape::kKvDType, Shape::kExtraDType>;
};

/// The tiles of a decode kernel on the CPU. Scores are held transposed, [token][query row], so that
/// softmax needs no horizontal sums and its result is what the value product broadcasts. Row `r`
/// and token `n` are the logical coordinates of a kernel; everything else is this target's
/// business.
template <class Shape, Schedule kSchedule>
struct DecodeTiles {
  static constexpr int kHeadDimQk = Shape::kHeadDimQk, kHeadDimV = Shape::kHeadDimV;
  using W = typename WordsOf<Shape>::Type;
  using Word = typename W::Word;
  using KvElement = typename W::KvElement;

  static constexpr int kRows = Shape::kRows;  // query rows of a tile at most
  static constexpr int kTokens = W::kTokens;
  static constexpr int kWaves = 1;
  static constexpr int kGroup =
      12;  // tokens whose scores fit the registers beside two vectors of rows
  static_assert(kTokens % (2 * kGroup) == 0 && kTokens % W::kPack == 0 &&
                kRows % (2 * kLanes) == 0);

  /// Where the keys of a tile lie; null: no such token, or one to be skipped.
  struct Tokens {
    typename W::Key row[kTokens];
    int count;
    bool skipped;

    bool skips() const { return skipped; }
  };

  struct Shared {
    alignas(kCacheLine) Word queries[kRows * W::kDepth];  // panels of [depth][two vectors of rows]
    alignas(kCacheLine) float scores[kTokens * kRows];
    alignas(kCacheLine) Word weights[kTokens / W::kPack * kRows];
    alignas(kCacheLine) float out[kRows * kHeadDimV];
    alignas(kCacheLine) float running_max[kRows], running_sum[kRows], rescale[kRows];
    alignas(kCacheLine) int32_t visible[kRows];  // tokens of the current tile that a row may see
    alignas(kCacheLine) Word staging[W::kDepth];
    typename W::Keys keys;
  };

  DecodeTiles(Shared& shared, Block) : s_(shared) {}

  /// Packs query rows into panels and empties the accumulators. `source(r)` points at row r.
  template <class RowSource>
  void load_queries(const RowSource& source, int rows) {
    TILE_ASSERT(rows > 0 && rows <= kRows);
    rows_ = rows;
    if (rows <= kMostFew) return load_few_queries(source);
    few_ = 0;
    const int width = padded();
    for (int r = 0; r < width; ++r) {
      const int panel = r / (2 * kLanes) * (2 * kLanes);
      const int panel_width = width - panel < 2 * kLanes ? kLanes : 2 * kLanes;
      Word* column = s_.queries + static_cast<int64_t>(panel) * W::kDepth + (r - panel);
      if (r < rows) W::query_row(s_.staging, source(r));
      for (int k = 0; k < W::kDepth; ++k)
        column[static_cast<int64_t>(k) * panel_width] = r < rows ? s_.staging[k] : Word{};
      s_.running_max[r] = -kInfinity;
      s_.running_sum[r] = 0;
    }
    std::memset(s_.out, 0, static_cast<size_t>(rows) * kHeadDimV * sizeof(float));
  }

  /// Looks up the keys of a tile: `lookup(n)` points at token n's key, or is null.
  template <class Lookup>
  Tokens gather(const Lookup& lookup, int count) const {
    Tokens tokens;
    tokens.count = count;
    tokens.skipped = false;
    for (int n = 0; n < kTokens; ++n) {
      tokens.row[n] = n < count ? typename W::Key(lookup(n)) : typename W::Key{};
      W::look_ahead(tokens.row[n]);
      tokens.skipped |= n < count && tokens.row[n] == nullptr;
    }
    return tokens;
  }

  /// The keys are read where they lie, so nothing starts early.
  void fetch(const Tokens&) {}

  /// scores = queries x keys^T for one tile, staging keys and values group by group while they are
  /// in the first-level cache, and fetching `next` behind the arithmetic.
  void score(const Tokens& tokens, const Tokens& next) {
    Shared& s = s_;
    TILE_ASSERT(tokens.count > 0 && tokens.count <= kTokens);
    const int width = padded();
    for (int n = 0; n < tokens.count; n += 2 * kGroup) {
      W::stage_keys(s.keys, tokens.row, n, n + 2 * kGroup);
      const bool both = tokens.count - n > kGroup;
      const char* ahead[2 * kGroup];
      for (int i = 0; i < 2 * kGroup; ++i) {
        const bool known = n + i < next.count && next.row[n + i] != nullptr;
        const KvElement* row = known ? next.row[n + i] : tokens.row[0];
        ahead[i] = reinterpret_cast<const char*>(row);
      }
      Prefetch prefetch{n < next.count ? ahead : nullptr, W::kRowBytes};
      const Word* const* keys = s.keys.row + n;
      float* out = s.scores + static_cast<int64_t>(n) * width;
      if (few_ != 0)
        score_few_rows(out, keys, prefetch);
      else
        score_panels(out, keys, prefetch, both);
      W::stage_values(s.keys, n, n + 2 * kGroup < tokens.count ? n + 2 * kGroup : tokens.count,
                      tokens.count);
    }
  }

  /// Rows see only their first `visible(r)` tokens of this tile, at least `first`, and no token
  /// that is skipped.
  template <class Visible>
  void mask(const Tokens& tokens, int first, const Visible& visible) {
    const int width = padded();
    for (int r = 0; r < width; ++r) s_.visible[r] = visible(r < rows_ ? r : rows_ - 1);
    for (int n = 0; n < tokens.count; ++n) {
      const bool skipped = tokens.row[n] == nullptr;
      if (n < first && !skipped) continue;
      for (int r = 0; r < width; r += kLanes) {
        float* score = s_.scores + static_cast<int64_t>(n) * width + r;
        const IntVec hidden = skipped ? ~IntVec{} : (IntVec)(load<IntVec>(s_.visible + r) <= n);
        tile::store(score, hidden ? splat(-kInfinity) : load(score));
      }
    }
  }

  /// Online softmax of one tile in base 2: updates maximum and sum, leaves the rescale factors of
  /// the output and the weights of the tile.
  void softmax(const Tokens& tokens, float scale) {
    Shared& s = s_;
    const int width = padded(), count = tokens.count;
    for (int r = 0; r < width; r += kLanes) {
      const float* column = s.scores + r;
      const Vec before = load(s.running_max + r);
      Vec best = before, other = before;
      int n = 0;
      for (; n + 1 < count; n += 2) {
        best = max(load(column + static_cast<int64_t>(n) * width) * scale, best);
        other = max(load(column + static_cast<int64_t>(n + 1) * width) * scale, other);
      }
      if (n < count) best = max(load(column + static_cast<int64_t>(n) * width) * scale, best);
      best = max(other, best);
      // a row that has seen nothing yet stays at -inf; subtracting it would give NaN
      const Vec shift = best == -kInfinity ? Vec{} : best;
      Vec sum = Vec{}, sum_other = Vec{};
      for (n = 0; n < count; n += 2) {
        const Vec p0 = exp2(load(column + static_cast<int64_t>(n) * width) * scale - shift);
        const Vec p1 =
            n + 1 < count ? exp2(load(column + static_cast<int64_t>(n + 1) * width) * scale - shift)
                          : Vec{};
        sum += p0;
        sum_other += p1;
        Word* weight = s.weights + static_cast<int64_t>(n / W::kPack) * width + r;
        W::weights(weight, p0, p1);
        if constexpr (W::kPack == 1) W::weights(weight + width, p1, p1);
      }
      const Vec rescale = exp2(before - shift);
      tile::store(s.rescale + r, rescale);
      tile::store(s.running_max + r, best);
      tile::store(s.running_sum + r, load(s.running_sum + r) * rescale + (sum + sum_other));
    }
  }

  /// out = out * rescale + weights x values, and never a value that its row may not see: zero times
  /// NaN is NaN, so where the hidden tail holds one, rows get their own cut of the values.
  template <class Visible>
  void accumulate(const Tokens& tokens, int first_hidden, const Visible& visible) {
    if (!has_special_values(first_hidden, tokens.count)) return weigh(tokens.count, 0, rows_);
    for (int begin = 0, end; begin < rows_; begin = end) {
      const int limit = visible(begin);
      for (end = begin + 1; end < rows_ && visible(end) == limit;) ++end;
      W::cut_values(s_.keys, 0, limit, limit);
      weigh(limit, begin, end);
    }
  }

  /// Writes rows and their LSE where `target(r)` says, in logical column order.
  template <class Target>
  void store(int rows, const Target& target, float value_scale) const {
    alignas(kCacheLine) float ordered[kHeadDimV];
    for (int r = 0; r < rows; ++r) {
      const RowTarget to = target(r);
      if (to.o == nullptr) continue;
      const float* out = s_.out + static_cast<int64_t>(r) * kHeadDimV;
      for (int quad = 0; quad < kHeadDimV / 4; ++quad)
        std::memcpy(ordered + 4 * quad, out + kOutputOffsets.at[quad], 4 * sizeof(float));
      const float sum = s_.running_sum[r];
      const float share =
          share_beside(to.sink, s_.running_max[r] + log2(sum), [](float x) { return exp2(x); });
      write_row(to.o, ordered, row_scale(sum, value_scale) * share, kHeadDimV, to.type);
      if (to.lse != nullptr) *to.lse = row_lse(s_.running_max[r], sum, log2(sum));
    }
  }

 private:
  static constexpr int kMostFew = kLanes / 2;  // rows that are not worth a vector of rows

  /// Queries as rows, for score_few(); the lanes of absent rows hold zeros from here on.
  template <class RowSource>
  void load_few_queries(const RowSource& source) {
    for (few_ = 1; few_ < rows_;) few_ *= 2;
    for (int r = 0; r < few_; ++r) {
      Word* row = s_.queries + static_cast<int64_t>(r) * W::kDepth;
      if (r < rows_)
        W::query_row(row, source(r));
      else
        std::memset(row, 0, W::kDepth * sizeof(Word));
    }
    std::memset(s_.scores, 0, static_cast<size_t>(kTokens) * kLanes * sizeof(float));
    std::memset(s_.out, 0, static_cast<size_t>(rows_) * kHeadDimV * sizeof(float));
    tile::store(s_.running_max, splat(-kInfinity));
    tile::store(s_.running_sum, Vec{});
  }

  int padded() const { return (rows_ + kLanes - 1) / kLanes * kLanes; }

  /// out = out * rescale + weights x values over the first `count` tokens of the tile, rows [begin,
  /// end).
  void weigh(int count, int begin, int end) {
    Shared& s = s_;
    constexpr int kMost = 6, kVecs = kManyRegisters ? 4 : 2;
    const int width = padded(), depth = (count + W::kPack - 1) / W::kPack;
    TILE_ASSERT(count >= 0 && begin <= end && end <= rows_);
    const int total = end - begin, groups = (total + kMost - 1) / kMost;
    for (int d = 0; d < kHeadDimV; d += kVecs * kLanes) {
      int r = begin;
      for (int g = 0; g < groups; ++g) {
        const int height = total / groups + (g < total % groups);
        float* out = s.out + static_cast<int64_t>(r) * kHeadDimV + d;
        const Word* values = W::values(s.keys) + d;
        switch (height) {
          case 6:
            value_block<W, 6, kVecs>(out, kHeadDimV, s.weights + r, width, values, depth,
                                     s.rescale + r);
            break;
          case 5:
            value_block<W, 5, kVecs>(out, kHeadDimV, s.weights + r, width, values, depth,
                                     s.rescale + r);
            break;
          case 4:
            value_block<W, 4, kVecs>(out, kHeadDimV, s.weights + r, width, values, depth,
                                     s.rescale + r);
            break;
          case 3:
            value_block<W, 3, kVecs>(out, kHeadDimV, s.weights + r, width, values, depth,
                                     s.rescale + r);
            break;
          case 2:
            value_block<W, 2, kVecs>(out, kHeadDimV, s.weights + r, width, values, depth,
                                     s.rescale + r);
            break;
          default:
            value_block<W, 1, kVecs>(out, kHeadDimV, s.weights + r, width, values, depth,
                                     s.rescale + r);
        }
        r += height;
      }
    }
  }

  /// Whether a value row among tokens [begin, end) holds an infinity or a NaN.
  bool has_special_values(int begin, int end) const {
    bool special = false;
    for (int n = begin; n < end; ++n) special |= W::is_special(s_.keys.row[n]);
    return special;
  }

  struct OutputOffsets {
    int16_t at[kHeadDimV / 4];
    constexpr OutputOffsets() : at() {
      for (int quad = 0; quad < kHeadDimV / 4; ++quad)
        at[quad] = static_cast<int16_t>(4 * W::output_quad(quad));
    }
  };
  static constexpr OutputOffsets kOutputOffsets{};

  template <int kVecs>
  static void score_rows(float* out, int64_t pitch, const Word* const* keys, const Word* queries,
                         Prefetch next, bool both) {
    constexpr int kTall = kManyRegisters ? kGroup * 2 / kVecs : kGroup / kVecs;
    for (int n = 0; n < (both ? 2 : 1) * kGroup; n += kTall) {
      if (kTall > kGroup && !both) {
        score_group<W, kGroup, kVecs>(out, pitch, keys, queries, next);
      } else {
        score_group<W, kTall, kVecs>(out + n * pitch, pitch, keys + n, queries, next);
      }
      if (next.row != nullptr) next.row += kTall;
    }
  }

  /// Scores of the 2 * kGroup tokens that have been staged, or of the first half; few_ == 0.
  void score_panels(float* out, const Word* const* keys, Prefetch next, bool both) const {
    const int width = padded();
    int r = 0;
    for (; r + 2 * kLanes <= width; r += 2 * kLanes) {
      const Word* queries = s_.queries + static_cast<int64_t>(r) * W::kDepth;
      score_rows<2>(out + r, width, keys, queries, next, both);
      next.row = nullptr;
    }
    if (r < width)
      score_rows<1>(out + r, width, keys, s_.queries + static_cast<int64_t>(r) * W::kDepth, next,
                    both);
  }

  /// The same where few_ != 0.
  void score_few_rows(float* out, const Word* const* keys, Prefetch next) const {
    switch (few_) {
      case 1:
        return score_few_tokens<1>(out, keys, next);
      case 2:
        return score_few_tokens<2>(out, keys, next);
      case 4:
        if constexpr (kMostFew >= 4) return score_few_tokens<4>(out, keys, next);
        break;
      default:
        if constexpr (kMostFew >= 8) return score_few_tokens<8>(out, keys, next);
    }
  }

  template <int kFew>
  void score_few_tokens(float* out, const Word* const* keys, Prefetch next) const {
    constexpr int kStep = kFewTokens<kFew>;
    static_assert(2 * kGroup % kStep == 0);
    for (int n = 0; n < 2 * kGroup; n += kStep) {
      score_few<W, kFew>(out + n * kLanes, kLanes, keys + n, s_.queries, next);
      if (next.row != nullptr) next.row += kStep;
    }
  }

  Shared& s_;
  int rows_ = 0;
  int few_ = 0;  // rows rounded up to a power of two where the depth is in the lanes, else 0
};

}  // namespace hipdecode::tile
