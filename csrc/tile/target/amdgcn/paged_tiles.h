// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../concepts.h"
#include "../../softmax.h"
#include "entry.h"
#include "hk_merge.h"
#include "lane_reduce.h"
#include "paged_fetch.h"
#include "paged_queries.h"
#include "sync.h"

namespace hipdecode::tile {

/// The main loop of paged attention, see PagedPlan: a wave has all query rows and a part of each
/// tile's tokens, a maximum and an output of its own, and meets the others once, at the end.
template <class Shape>
class PagedTiles {
  using P = amdgcn::PagedPlan<Shape>;
  using M = amdgcn::Matrix16<Shape::kQDType>;        // of both products
  using Cached = amdgcn::Matrix16<Shape::kKvDType>;  // as keys and values lie in memory
  using Merge = amdgcn::HkMerge<P, P>;
  using F32x4 = amdgcn::F32x4;
  using U32x4 = amdgcn::U32x4;

 public:
  static constexpr int kRows = Shape::kRows, kTokens = P::kTokens, kWaves = P::kWaves;

  struct Shared {
    static constexpr int kQueries = amdgcn::PagedQueries<Shape>::kSharedBytes;
    alignas(
        16) unsigned char bytes[Merge::kSharedBytes > kQueries ? Merge::kSharedBytes : kQueries];
  };

  /// The groups of 16 tokens of this wave's part.
  struct Tokens {
    PagedGroup groups[P::kGroups];
    int count;                     // of the whole tile
    mutable uint32_t missing = 0;  // bit g: group g of the part does not exist

    TILE_FN bool skips() const { return missing != 0; }
  };

  TILE_FN PagedTiles(Shared& shared, Block block, const PagedCache<Shape>& cache)
      : base_(amdgcn::lds_address(shared.bytes)),
        token_wave_(block.wave()),
        first_token_(block.wave() * P::kPart),
        fetch_(cache),
        queries_(base_, block.wave()) {}

  template <class Source>
  TILE_FN void load_queries(const Source& source, int rows) {
    rows_ = rows;
    queries_.load([&](int row) { return source(row < rows ? row : rows - 1); });
    TILE_UNROLL
    for (int r = 0; r < P::kRowTiles; ++r) {
      TILE_UNROLL
      for (F32x4& out : out_[r]) out = F32x4{};
      level_[r] = kLowest;
      sum_[r] = 0;
    }
  }

  template <class Lookup>
  TILE_FN Tokens gather(const Lookup& lookup, int count) const {
    Tokens tokens;
    TILE_UNROLL
    for (int g = 0; g < P::kGroups; ++g) tokens.groups[g] = lookup(first_token_ + g * kGroupTokens);
    tokens.count = uniform(count);
    return tokens;
  }

  TILE_FN void fetch(const Tokens& tokens) {
    aim(tokens);
    fetch_.fetch_keys();
    __builtin_amdgcn_sched_barrier(0);
    fetch_.fetch_values();
    __builtin_amdgcn_sched_barrier(0);
    queries_.arrive();
  }

  /// Behind the last tile nothing is fetched. That is in code of its own, because a branch around
  /// loads in the loop would have the compiler wait as if it were always taken; 64 rows have too
  /// much of it, and bring the last group once more.
  static constexpr bool kLastApart = P::kRowTiles <= 2;
  TILE_FN void score(const Tokens&) {
    masked_ = false;
    fetching_ = false;
    multiply_keys();
  }

  TILE_FN void score(const Tokens&, const Tokens& next) {
    masked_ = false;
    fetching_ = true;
    __builtin_amdgcn_sched_barrier(0);  // the next tile's blocks are looked up behind the products
    multiply_keys();
    __builtin_amdgcn_sched_barrier(0);  // the registers of the keys are free
    aim(next);
    fetch_.fetch_keys();
    __builtin_amdgcn_sched_barrier(0);
  }

  template <class Visible>
  TILE_FN void mask(const Tokens& tokens, int first_hidden, const Visible& visible) {
    if (first_hidden - first_token_ >= P::kPart && !tokens.skips()) return;
    masked_ = true;
    TILE_UNROLL
    for (int r = 0; r < P::kRowTiles; ++r) {
      const int limit = visible(logical_row(r));
      seen_[r] = seen(tokens, limit < tokens.count ? limit : tokens.count);
    }
  }

  TILE_FN void softmax(const Tokens& tokens, float scale) {
    if (!masked_ && tokens.count - first_token_ < P::kPart) {
      masked_ = true;
      TILE_UNROLL
      for (int r = 0; r < P::kRowTiles; ++r) seen_[r] = seen(tokens, tokens.count);
    }
    if (masked_) {
      hide();
      if constexpr (P::kTokenScales) make_scale_finite();
    }
    TILE_UNROLL
    for (int r = 0; r < P::kRowTiles; ++r) weigh(r, scale);
  }

  template <class Visible>
  TILE_FN void accumulate(const Tokens&, int, const Visible&) {
    if (masked_) make_finite();
    multiply_values();
    if (!fetching_) return;
    __builtin_amdgcn_sched_barrier(0);  // the registers of the values are free
    fetch_.fetch_values();
    __builtin_amdgcn_sched_barrier(0);
  }

  template <class Target>
  TILE_FN void store(int rows, const Target& target, float value_scale) {
    const auto lane = static_cast<uint32_t>(own_lane());
    const Merge merge{base_, lane, 0, token_wave_};
    TILE_UNROLL
    for (int r = 0; r < P::kRowTiles; ++r) {
      float sum = amdgcn::across_rows(sum_[r], [](float a, float b) { return a + b; });
      amdgcn::barrier();  // LDS is free: the row tile before has been read
      merge.run(out_[r], level_[r], sum);
      const int row = r * 16 + own_lane() % 16;
      if (row >= rows) continue;
      const RowTarget to = target(row);
      if (to.o == nullptr) continue;
      const float log2_sum = tile::log2(sum);
      const float share = share_beside(to.sink, level_[r] + log2_sum,
                                       [](float x) { return __builtin_amdgcn_exp2f(x); });
      merge.write(to, out_[r], row_scale(sum, value_scale) * share);
      if (to.lse != nullptr && lane < 16 && token_wave_ == 0)
        *to.lse = row_lse(level_[r], sum, log2_sum);
    }
  }

 private:
  static constexpr float kLowest = -3e38f;  // finite, so that hidden scores subtract to no NaN
  // A row's largest weight lies between 2^kWeightShift and 2^(kWeightShift + kSlack).
  static constexpr bool kHalf = Shape::kQDType == abi::DType::fp16;
  static constexpr float kWeightShift = kHalf ? 11 : 0, kSlack = kHalf ? 4 : 8;
  // fp16 has no room for weights times any scale: there the level counts the scales of values in.
  static constexpr bool kLevelScales = kHalf && P::kTokenScales;
  static constexpr float kLeastScale = -90;  // log2: sums of weights over it must fit fp32

  uint32_t base_;
  int token_wave_, first_token_, rows_ = 0;
  bool fetching_ = false;   // a next tile is under way; known to the compiler
  bool masked_ = false;     // some row does not see all of the part
  int seen_[P::kRowTiles];  // then how many of this lane's chunk a row sees
  amdgcn::PagedFetch<Shape> fetch_;
  amdgcn::PagedQueries<Shape> queries_;
  F32x4 scores_[P::kRowTiles][P::kProducts];
  typename M::GroupWords weights_[P::kRowTiles][P::kProducts];
  F32x4 out_[P::kRowTiles][P::kColumnTiles];
  float level_[P::kRowTiles], sum_[P::kRowTiles];  // base 2; over this lane's own tokens

  /// Which of a part's four chunks this lane has.
  static TILE_FN int chunk_of_lane() { return own_lane() / 16; }

  /// Recomputed, so that what follows from it takes no registers in the loop.
  static TILE_FN int own_lane() { return static_cast<int>(amdgcn::recomputed(amdgcn::lane_id())); }

  /// This lane's query row of a row tile; the last one for lanes without.
  TILE_FN int logical_row(int r) const {
    const int row = r * 16 + own_lane() % 16;
    return row < rows_ ? row : rows_ - 1;
  }

  TILE_FN void aim(const Tokens& tokens) {
    const uint32_t missing = fetch_.aim(tokens.groups);
    const int groups = (tokens.count - first_token_ + kGroupTokens - 1) / kGroupTokens;
    tokens.missing =
        groups < P::kGroups ? missing & ((1u << (groups > 0 ? groups : 0)) - 1) : missing;
  }

  /// Of this lane's chunk those tokens that lie before token `limit` of the tile; none of a group
  /// that does not exist.
  TILE_FN int seen(const Tokens& tokens, int limit) const {
    const bool missing = (tokens.missing >> fetch_.group_of_values() & 1) != 0;
    return missing ? 0 : limit - first_token_ - chunk_of_lane() * P::kChunk;
  }

  TILE_FN void hide() {
    TILE_UNROLL
    for (int r = 0; r < P::kRowTiles; ++r) TILE_UNROLL
    for (int n = 0; n < P::kChunk; ++n)
      if (n >= seen_[r]) scores_[r][n / 4][n % 4] = -kInfinity;
  }

  /// 16 bytes of the cache as matrix operands.
  static TILE_FN U32x4 operand(U32x4 chunk, int unit) {
    using amdgcn::widen;
    if constexpr (!P::kFp8) {
      return chunk;
    } else {
      const uint32_t a = unit == 0 ? chunk.x : chunk.z, b = unit == 0 ? chunk.y : chunk.w;
      return {widen<Shape::kQDType, false>(a), widen<Shape::kQDType, true>(a),
              widen<Shape::kQDType, false>(b), widen<Shape::kQDType, true>(b)};
    }
  }

  TILE_FN void multiply_keys() {
    TILE_UNROLL
    for (int r = 0; r < P::kRowTiles; ++r) TILE_UNROLL
    for (int i = 0; i < P::kProducts; ++i) scores_[r][i] = F32x4{};
    TILE_UNROLL
    for (int j = 0; j < P::kKeyChunks; ++j) TILE_UNROLL
    for (int u = 0; u < P::kUnits; ++u) {
      U32x4 queries[P::kRowTiles];
      TILE_UNROLL
      for (int r = 0; r < P::kRowTiles; ++r) queries[r] = queries_.operand(r, j * P::kUnits + u);
      TILE_UNROLL
      for (int i = 0; i < P::kProducts; ++i) {
        const U32x4 keys = operand(fetch_.keys[j][i], u);
        TILE_UNROLL
        for (int r = 0; r < P::kRowTiles; ++r)
          scores_[r][i] = M::unit(keys, queries[r], scores_[r][i]);
      }
    }
    if constexpr (P::kTokenScales) TILE_UNROLL
    for (int r = 0; r < P::kRowTiles; ++r) fetch_.scale(fetch_.key_scale, scores_[r]);
  }

  /// The row's largest logit of this part in base 2, that of a weight with its scale where fp16
  /// asks for it.
  TILE_FN float largest(int r, float scale) const {
    float best = -kInfinity;
    if constexpr (kLevelScales) {
      const float size =
          __builtin_fmaxf(tile::log2(__builtin_fabsf(fetch_.value_scale)), kLeastScale);
      amdgcn::unrolled<P::kChunk>([&](auto n) {
        best = __builtin_fmaxf(best, __builtin_fmaf(scores_[r][n / 4][n % 4], scale,
                                                    fetch_.template scale_of<n>(size)));
      });
      return best;
    }
    TILE_UNROLL
    for (int n = 0; n < P::kChunk; ++n) best = __builtin_fmaxf(best, scores_[r][n / 4][n % 4]);
    return best * scale;
  }

  TILE_FN void weigh(int r, float scale) {
    // Weights are relative to a level that follows a row's maximum only when that has outgrown it:
    // the output is rescaled rarely, and other rows make no difference to a row's bits.
    const float level = largest(r, scale) - kWeightShift;
    if (amdgcn::any_lane(level > level_[r] + kSlack)) rescale(r, level);
    F32x4 weights[P::kProducts], sum = {};
    TILE_UNROLL
    for (int i = 0; i < P::kProducts; ++i) {
      TILE_UNROLL
      for (int e = 0; e < 4; ++e)
        weights[i][e] = tile::exp2(__builtin_fmaf(scores_[r][i][e], scale, -level_[r]));
      sum += weights[i];
    }
    // here and not behind the next branch, which has other uses for these registers
    sum_[r] = amdgcn::recomputed(sum_[r] + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
    if constexpr (P::kTokenScales) fetch_.scale(fetch_.value_scale, weights);
    TILE_UNROLL
    for (int i = 0; i < P::kProducts; ++i) {
      weights_[r][i] = M::narrow(weights[i]);
      TILE_UNROLL
      for (uint32_t& word : weights_[r][i].at) word = amdgcn::recomputed(word);
    }
  }

  TILE_FN void rescale(int r, float level) {
    level = amdgcn::across_rows(level, [](float a, float b) { return __builtin_fmaxf(a, b); });
    const float next = level > level_[r] + kSlack ? level : level_[r];
    const float factor = tile::exp2(level_[r] - next);
    level_[r] = next;
    sum_[r] *= factor;
    TILE_UNROLL
    for (int c = 0; c < P::kColumnTiles; ++c) out_[r][c] *= factor;
  }

  /// Weights of tokens [8 unit, 8 unit + 8) of this lane's chunk.
  TILE_FN U32x4 operand_of_weights(int r, int unit) const {
    const auto &low = weights_[r][2 * unit].at, &high = weights_[r][2 * unit + 1].at;
    return {low[0], low[1], high[0], high[1]};
  }

  TILE_FN void multiply_values() {
    TILE_UNROLL
    for (int c = 0; c < P::kColumnTiles; ++c) TILE_UNROLL
    for (int u = 0; u < P::kUnits; ++u) {
      const U32x4 values = operand(fetch_.values[c], u);
      TILE_UNROLL
      for (int r = 0; r < P::kRowTiles; ++r)
        out_[r][c] = M::unit(values, operand_of_weights(r, u), out_[r][c]);
    }
  }

  /// Where a token is hidden from some row, its weight of zero times a scale that is a NaN would
  /// not be zero: the scales of such a part become finite. A row that sees one which was not is a
  /// NaN from here on.
  TILE_FN void make_scale_finite() {
    const bool finite = __builtin_fabsf(fetch_.value_scale) < kInfinity;
    const uint64_t special = __builtin_amdgcn_ballot_w64(!finite) >> (chunk_of_lane() * 16);
    fetch_.value_scale = finite ? fetch_.value_scale : 0;
    TILE_UNROLL
    for (int r = 0; r < P::kRowTiles; ++r) {
      const int seen = seen_[r] < 0 ? 0 : seen_[r] < P::kChunk ? seen_[r] : P::kChunk;
      const bool broken = (static_cast<uint32_t>(special) & ((1u << seen) - 1)) != 0;
      const float row = amdgcn::across_rows(broken ? __builtin_nanf("") : 0,
                                            [](float a, float b) { return a + b; });
      TILE_UNROLL
      for (F32x4& out : out_[r]) out += row;
    }
  }

  /// Where a token is hidden from some row, its weight of zero would not keep a NaN out of that
  /// row's sum: the values of such a part become finite. A row that sees one which was not has a
  /// NaN in that column from here on.
  TILE_FN void make_finite() {
    U32x4 sees[P::kRowTiles][P::kUnits];  // 1.0 where a row sees a token
    TILE_UNROLL
    for (int r = 0; r < P::kRowTiles; ++r) {
      // recomputed: comparisons that are kept since hide() take two scalar registers each
      const int seen = amdgcn::recomputed(seen_[r]);
      TILE_UNROLL
      for (int n = 0; n < P::kChunk / 2; ++n)
        sees[r][n / 4][n % 4] =
            (2 * n < seen ? M::kOne : 0) | (2 * n + 1 < seen ? M::kOne << 16 : 0);
    }
    TILE_UNROLL
    for (int c = 0; c < P::kColumnTiles; ++c) {
      __builtin_amdgcn_sched_barrier(0);  // one after the other: registers, not time
      const U32x4 values = fetch_.values[c];
      // a byte of 1 is a positive number in fp8
      const U32x4 special = Cached::special(values) * (P::kFp8 ? 1 : M::kOne);
      fetch_.values[c] = Cached::finite(values);
      F32x4 broken[P::kRowTiles] = {};
      TILE_UNROLL
      for (int u = 0; u < P::kUnits; ++u) TILE_UNROLL
      for (int r = 0; r < P::kRowTiles; ++r)
        broken[r] = M::unit(operand(special, u), sees[r][u], broken[r]);
      TILE_UNROLL
      for (int r = 0; r < P::kRowTiles; ++r) TILE_UNROLL
      for (int e = 0; e < 4; ++e)
        if (broken[r][e] > 0) out_[r][c][e] = __builtin_nanf("");
    }
  }
};

}  // namespace hipdecode::tile
