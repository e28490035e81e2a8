// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>

#include "micro_kernels.h"
#include "words_bf16.h"
#include "words_fp32.h"

namespace hipdecode::tile {

#ifdef HIPDECODE_CPU_HAS_BF16_DOT
template <int kQk, int kV, abi::DType kQ, abi::DType kKv>
using Words = std::conditional_t<kQ == abi::DType::fp16 || kKv == abi::DType::fp16,
                                 WordsFp32<kQk, kV, kQ, kKv>, WordsBf16<kQk, kV, kQ, kKv>>;
#else
template <int kQk, int kV, abi::DType kQ, abi::DType kKv>
using Words = WordsFp32<kQk, kV, kQ, kKv>;
#endif

/// The tiles of a decode kernel on the CPU. Scores are held transposed, [token][query row], so that
/// softmax needs no horizontal sums and its result is what the value product broadcasts. Row `r`
/// and token `n` are the logical coordinates of a kernel; everything else is this target's
/// business.
template <int kHeadDimQk, int kHeadDimV, abi::DType kQDType, abi::DType kKvDType>
struct DecodeTiles {
  using W = Words<kHeadDimQk, kHeadDimV, kQDType, kKvDType>;
  using Word = typename W::Word;
  using KvElement = typename W::KvElement;

  static constexpr int kRows = 128;  // query rows of a tile at most
  static constexpr int kTokens = W::kTokens;
  static constexpr int kGroup =
      12;  // tokens whose scores fit the registers beside two vectors of rows
  static_assert(kTokens % (2 * kGroup) == 0 && kTokens % W::kPack == 0 &&
                kRows % (2 * kLanes) == 0);

  /// Where the keys of a tile lie; null: no such token, or one to be skipped.
  struct TokenRows {
    const KvElement* row[kTokens];
    int count;
    bool skips;  // some row below count is null
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

  static TILE_FN int padded(int rows) { return (rows + kLanes - 1) / kLanes * kLanes; }

  /// Packs query rows into panels and empties the accumulators. `source(r)` points at row r.
  template <class RowSource>
  static TILE_FN void load_queries(Shared& s, const RowSource& source, int rows) {
    TILE_ASSERT(rows > 0 && rows <= kRows);
    const int width = padded(rows);
    for (int r = 0; r < width; ++r) {
      const int panel = r / (2 * kLanes) * (2 * kLanes);
      const int panel_width = width - panel < 2 * kLanes ? kLanes : 2 * kLanes;
      Word* column = s.queries + static_cast<int64_t>(panel) * W::kDepth + (r - panel);
      if (r < rows) W::query_row(s.staging, source(r));
      for (int k = 0; k < W::kDepth; ++k)
        column[static_cast<int64_t>(k) * panel_width] = r < rows ? s.staging[k] : Word{};
      s.running_max[r] = -kInfinity;
      s.running_sum[r] = 0;
    }
    std::memset(s.out, 0, static_cast<size_t>(rows) * kHeadDimV * sizeof(float));
  }

  /// scores = queries x keys^T for one tile, staging keys and values group by group while they are
  /// in the first-level cache, and fetching `next` behind the arithmetic.
  static TILE_FN void score(Shared& s, const TokenRows& tokens, const TokenRows& next, int rows) {
    TILE_ASSERT(tokens.count > 0 && tokens.count <= kTokens);
    const int width = padded(rows);
    for (int n = 0; n < tokens.count; n += 2 * kGroup) {
      W::stage_keys(s.keys, tokens.row, n, n + 2 * kGroup);
      const bool both = tokens.count - n > kGroup;
      const char* ahead[2 * kGroup];
      for (int i = 0; i < 2 * kGroup; ++i)
        ahead[i] = reinterpret_cast<const char*>(
            n + i < next.count && next.row[n + i] ? next.row[n + i] : tokens.row[0]);
      Prefetch prefetch{n < next.count ? ahead : nullptr,
                        kHeadDimQk * static_cast<int>(sizeof(KvElement))};
      const Word* const* keys = s.keys.row + n;
      float* out = s.scores + static_cast<int64_t>(n) * width;
      int r = 0;
      for (; r + 2 * kLanes <= width; r += 2 * kLanes) {
        const Word* queries = s.queries + static_cast<int64_t>(r) * W::kDepth;
        score_rows<2>(out + r, width, keys, queries, prefetch, both);
        prefetch.row = nullptr;
      }
      if (r < width)
        score_rows<1>(out + r, width, keys, s.queries + static_cast<int64_t>(r) * W::kDepth,
                      prefetch, both);
      W::stage_values(s.keys, n, n + 2 * kGroup < tokens.count ? n + 2 * kGroup : tokens.count,
                      tokens.count);
    }
  }

  /// Rows see only their first `visible[r]` tokens of this tile, and no token that is skipped.
  static TILE_FN void mask(Shared& s, const TokenRows& tokens, int first, int rows) {
    const int width = padded(rows);
    for (int n = 0; n < tokens.count; ++n) {
      const bool skipped = tokens.row[n] == nullptr;
      if (n < first && !skipped) continue;
      for (int r = 0; r < width; r += kLanes) {
        float* score = s.scores + static_cast<int64_t>(n) * width + r;
        const IntVec hidden = skipped ? ~IntVec{} : (IntVec)(load<IntVec>(s.visible + r) <= n);
        store(score, hidden ? splat(-kInfinity) : load(score));
      }
    }
  }

  /// Online softmax of one tile in base 2: updates maximum and sum, leaves the rescale factors of
  /// the output and the weights of the tile.
  static TILE_FN void softmax(Shared& s, int count, int rows, float scale) {
    const int width = padded(rows);
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
      store(s.rescale + r, rescale);
      store(s.running_max + r, best);
      store(s.running_sum + r, load(s.running_sum + r) * rescale + (sum + sum_other));
    }
  }

  /// out = out * rescale + weights x values over the first `count` tokens of the tile, rows [begin,
  /// end).
  static TILE_FN void accumulate(Shared& s, int count, int begin, int end, int rows) {
    constexpr int kMost = 6, kVecs = kManyRegisters ? 4 : 2;
    const int width = padded(rows), depth = (count + W::kPack - 1) / W::kPack;
    TILE_ASSERT(count >= 0 && begin <= end && end <= rows);
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

  /// Whether a value row among tokens [begin, end) holds an infinity or a NaN: a weight of zero
  /// would not keep it out of the sum.
  static TILE_FN bool has_special_values(const Shared& s, int begin, int end) {
    bool special = false;
    for (int n = begin; n < end; ++n) special |= W::is_special(s.keys.row[n]);
    return special;
  }

  /// Re-stages the values of a tile so that tokens from `limit` on are zero.
  static TILE_FN void cut_values(Shared& s, int limit) { W::cut_values(s.keys, 0, limit, limit); }

  /// Row r of the output in logical column order, times `scale`.
  static TILE_FN void store_row(Shared& s, int r, float scale, void* destination, abi::DType type) {
    alignas(kCacheLine) float ordered[kHeadDimV];
    const float* out = s.out + static_cast<int64_t>(r) * kHeadDimV;
    for (int quad = 0; quad < kHeadDimV / 4; ++quad)
      std::memcpy(ordered + 4 * quad, out + kOutputOffsets.at[quad], 4 * sizeof(float));
    write_row(destination, ordered, scale, kHeadDimV, type);
  }

 private:
  struct OutputOffsets {
    int16_t at[kHeadDimV / 4];
    constexpr OutputOffsets() : at() {
      for (int quad = 0; quad < kHeadDimV / 4; ++quad)
        at[quad] = static_cast<int16_t>(4 * W::output_quad(quad));
    }
  };
  static constexpr OutputOffsets kOutputOffsets{};

  template <int kVecs>
  static TILE_FN void score_rows(float* out, int64_t pitch, const Word* const* keys,
                                 const Word* queries, Prefetch next, bool both) {
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
};

}  // namespace hipdecode::tile
