// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../concepts.h"
#include "paged_merge.h"
#include "paged_plan.h"
#include "paged_products.h"
#include "paged_queries.h"
#include "paged_ring.h"
#include "paged_rows.h"

namespace hipdecode::tile::nvptx {

/// Tiles of 16 tokens for each team of waves. A team fetches, scores and weighs its tokens alone,
/// with maxima, sums and output of its own: nothing but the result is shared by a block. Keys are
/// the long side of both products, scores^T = keys x queries^T and output^T = values^T x
/// weights^T, so that rows come by eights.
template <class Shape>
class PagedTiles {
  using Plan = PagedPlan<Shape>;
  using Cache = PagedCache<Shape>;
  using Ring = PagedRing<Shape, Plan::kStages>;
  static constexpr bool kFp8 = Plan::kFp8, kScaled = Ring::kScaled;
  static constexpr int kHeadDim = Shape::kHeadDim, kSteps = kHeadDim / 16;
  static constexpr int kTiles = Plan::kWaveRows / 8;  // of eight rows
  static constexpr int kTeams = Plan::kTeams, kTeamWaves = Plan::kTeamWaves;
  static constexpr int kAhead = Plan::kStages - 1;  // groups of a team that are on their way
  static constexpr abi::DType kOperand = kFp8 ? abi::DType::fp16 : Shape::kKvDType;
  static_assert(kFp8 || Shape::kQDType == Shape::kKvDType);
  using Incoming = QueriesOnTheirWay<kHeadDim, Shape::kQDType, kFp8>;
  static_assert(Shape::kRows / 8 <= Plan::kWaves, "a wave brings in eight rows");
  using Rows = WaveRows<kTiles, kOperand>;
  using Merge = PagedMerge<kHeadDim, Shape::kRows, kTeams, Plan::kWaves>;

 public:
  static constexpr int kRows = Shape::kRows, kWaves = Plan::kWaves;
  static constexpr int kTokens = kTeams * kGroupTokens;

  struct Shared {
    static constexpr int kBlocksTogether = Plan::kBlocksTogether;  // on a multiprocessor
    union {
      Ring rings[kTeams];
      typename Merge::Exchange exchange;
    };
    PagedQueries<kHeadDim, Shape::kRows / 8> queries;
    typename Merge::Ends ends;
  };

  /// A lane's group is that of the team's tile as many tiles on; behind the block's last there is
  /// none.
  struct Tokens {
    PagedGroup group;
    int count;
    static constexpr bool skips() { return false; }  // groups that do not exist are left out
  };

  TILE_FN PagedTiles(Shared& shared, Block block, const Cache& cache)
      : s_(shared),
        cache_(cache),
        own_wave_(block.wave()),
        team_(block.wave() / kTeamWaves),
        wave_(block.wave() % kTeamWaves) {}

  /// Brings the beginning of a list near.
  static TILE_FN void foresee(const int32_t* list, int count) {
    constexpr int kLines = 64, kOfALine = 32;
    const int line = static_cast<int>(threadIdx.x), at = line * kOfALine;
    if (line < kLines && at < count) prefetch_line(reinterpret_cast<uint64_t>(list + at));
  }

  template <class Source>
  TILE_FN void load_queries(const Source& source, int rows) {
    query_rows_ = rows;
    if (own_wave_ < kRows / 8) Incoming::load(s_.queries, source, own_wave_, rows);
    close_batch();
    rows_.clear();
    unit_ = ValueUnit::kLeast;
#pragma unroll
    for (auto& block : output_)
#pragma unroll
      for (auto& tile : block)
#pragma unroll
        for (float& value : tile) value = 0;
  }

  template <class Lookup>
  TILE_FN Tokens gather(const Lookup& lookup, int count) const {
    const int tile = lane() < kAhead ? lane() : kAhead;
    return {lookup((tile * kTeams + team_) * kGroupTokens), count};
  }

  TILE_FN void ask(const Tokens& tokens) {
    turn_ = 0;
    TILE_ROLLED
    for (int i = 0; i < kAhead; ++i) bring(tokens, i, i);
    stage_ = kAhead;
  }

  TILE_FN void settle_queries() {
    wait_for_batches<kAhead / kTeamWaves>();
    __syncwarp();
    if (own_wave_ < kRows / 8) Incoming::settle(s_.queries, own_wave_);
    __syncthreads();
  }

  TILE_FN void fetch(const Tokens& tokens) {
    ask(tokens);
    settle_queries();
  }

  /// While keys are on their way: where rows will go.
  template <class Target>
  TILE_FN void find_places(int rows, const Target& target) {
    s_.ends.find_places(rows, target);
  }

  TILE_FN void score(Tokens& tokens, const Tokens&) {
    const int freed = stage_;
    stage_ = stage_ == kAhead ? 0 : stage_ + 1;
    if (fetches(0)) wait_for_batches<(kAhead - 1) / kTeamWaves>();
    meet_team();
    bring(tokens, kAhead, freed);
    ++turn_;
    own_ = exists(tokens, 0) ? tokens.count - team_ * kGroupTokens : 0;
    if (own_ <= 0) return;
    const int first = first_token(), second = second_token();
    hidden_ = (first < own_ ? 0 : kFirst) | (second < own_ ? 0 : kSecond);
#pragma unroll
    for (auto& tile : scores_)
#pragma unroll
      for (float& score : tile) score = 0;
    const uint32_t keys = shared_address(stage().keys) + lane() * 16;
    if constexpr (kFp8) {
#pragma unroll
      for (int s = 0; s < kSteps; s += 2) {
        uint32_t words[4], low[4], high[4];
        load_matrices(words, keys + s * 256);
        widen_operands(words, low, high);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const auto queries = s_.queries.operands(wave_ * kTiles + t, s / 2);
          multiply<kOperand>(scores_[t], low, queries.first);
          multiply<kOperand>(scores_[t], high, queries.second);
        }
      }
    } else {
#pragma unroll
      for (int s = 0; s < kSteps; s += 2) {
        uint32_t first[4], second[4];
        load_matrices(first, keys + s * 512);
        load_matrices(second, keys + s * 512 + 512);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const auto queries = s_.queries.operands(wave_ * kTiles + t, s / 2);
          multiply<kOperand>(scores_[t], first, queries.first);
          multiply<kOperand>(scores_[t], second, queries.second);
        }
      }
    }
  }

  template <class Visible>
  TILE_FN void mask(const Tokens&, int, const Visible& visible) {
    if (own_ <= 0) return;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int row = row_of(t, side);
        const int end = visible(row < query_rows_ ? row : query_rows_ - 1) - team_ * kGroupTokens;
        if (first_token() >= end) hidden_ |= 1u << (t * 4 + side);
        if (second_token() >= end) hidden_ |= 1u << (t * 4 + side + 2);
      }
  }

  TILE_FN void softmax(const Tokens&, float scale) {
    if (own_ <= 0) return;
    const bool hides = __any_sync(~0u, hidden_ != 0);
    float of_key[2] = {scale, scale}, of_value[2] = {1, 1};
    if constexpr (kScaled) {
      of_key[0] *= stage().scales[0][first_token()], of_key[1] *= stage().scales[0][second_token()];
      of_value[0] = stage().scales[1][first_token()];
      of_value[1] = stage().scales[1][second_token()];
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        scores_[t][i] *=
            of_key[i / 2] * (Incoming::kScaled ? s_.queries.unscale[row_of(t, i % 2)] : 1.0f);
    if (hides) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if ((hidden_ >> (t * 4 + i) & 1) != 0) scores_[t][i] = -kInfinity;
      if (first_token() >= own_) of_value[0] = 0;
      if (second_token() >= own_) of_value[1] = 0;
    }
    const float largest = kScaled ? ValueUnit::largest_of(of_value) : 0.0f;
    if (__any_sync(~0u, rows_.may_raise(scores_) || largest > unit_)) raise(largest);
    if constexpr (kScaled)
      of_value[0] *= ValueUnit::inverse(unit_), of_value[1] *= ValueUnit::inverse(unit_);
    rows_.weigh(scores_);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if constexpr (kScaled) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores_[t][i] *= of_value[i / 2];
        if (hides) {  // zero times a scale that is none
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if ((hidden_ >> (t * 4 + i) & 1) != 0) scores_[t][i] = 0;
        }
      }
      weights_[t][0] = turned(pack<kOperand>(scores_[t][0], scores_[t][1]));
      weights_[t][1] = turned(pack<kOperand>(scores_[t][2], scores_[t][3]));
    }
  }

  template <class Visible>
  TILE_FN void accumulate(const Tokens&, int first_hidden, const Visible&) {
    if (own_ <= 0) return;
    const int hidden = first_hidden - team_ * kGroupTokens;
    const int clean = hidden < own_ ? hidden : own_;
    if (clean < kGroupTokens) keep_apart(clean > 0 ? clean : 0);
    if constexpr (kFp8) {
      const uint32_t values = shared_address(stage().values) + lane() * 16;
#pragma unroll
      for (int block = 0; block < kSteps; block += 2) {
        uint32_t words[4], low[4], high[4];
        load_matrices(words, values + block * 256);
        widen_operands(words, low, high);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          multiply<kOperand>(output_[block][t], low, weights_[t]);
          multiply<kOperand>(output_[block + 1][t], high, weights_[t]);
        }
      }
    } else {
      const uint32_t values =
          shared_address(stage().values) + lane() % 16 * 16 + lane() / 16 * (kHeadDim * 16);
#pragma unroll
      for (int block = 0; block < kSteps; ++block) {
        uint32_t words[4];
        load_matrices(words, values + block * 256);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) multiply<kOperand>(output_[block][t], words, weights_[t]);
      }
    }
  }

  template <class Target>
  TILE_FN void store(int rows, const Target& target, float value_scale) {
    find_places(rows, target);
    store(rows, value_scale);
  }

  /// Of rows whose places have been found.
  TILE_FN void store(int rows, float value_scale) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const float sum = rows_.sum(t, side);
        if (lane() < 4) s_.ends.tell(team_, row_of(t, side), rows_.base(t, side), sum);
      }
    if (lane() == 0) s_.ends.units[team_] = kScaled ? unit_ : 1.0f;
    __syncthreads();  // nobody reads keys any more
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int side = 0; side < 2; ++side) {
#pragma unroll
        for (int block = 0; block < kSteps; ++block) {
          float* to = s_.exchange.row(team_, row_of(t, side)) + 16 * block + lane() / 4;
          to[0] = output_[block][t][side];
          to[8] = output_[block][t][side + 2];
        }
      }
    s_.ends.find_factors(value_scale);
    __syncthreads();
    Merge::store(s_.exchange, s_.ends, rows);
    __syncthreads();
  }

 private:
  static constexpr uint32_t kFirst = 0x33333333u,
                            kSecond = 0xccccccccu;  // bits of a token's scores

  TILE_FN void meet_team() const {
    if constexpr (kTeamWaves == 1)
      __syncwarp();
    else
      meet(1 + team_, kTeamWaves * kLanes);
  }

  TILE_FN typename Ring::Stage& stage() const { return s_.rings[team_].stages[stage_]; }
  /// The lane; where registers are short, what follows from it is not kept in them.
  static TILE_FN int own_lane() { return kTeamWaves == 1 ? fresh_lane() : lane(); }
  /// Tokens and rows that the thread has scores of.
  static TILE_FN int first_token() { return Ring::token_at(own_lane() / 4); }
  static TILE_FN int second_token() { return Ring::token_at(own_lane() / 4 + 8); }
  TILE_FN int row_of(int t, int side) const {
    return wave_ * Plan::kWaveRows + 8 * t + own_lane() % 4 * 2 + side;
  }

  static TILE_FN PagedGroup group_of(const Tokens& tokens, int tile) {
    return {__shfl_sync(~0u, tokens.group.block, tile), __shfl_sync(~0u, tokens.group.blocks, tile),
            __shfl_sync(~0u, tokens.group.first, tile)};
  }
  static TILE_FN bool exists(const Tokens& tokens, int tile) {
    return __shfl_sync(~0u, static_cast<int>(tokens.group.exists()), tile) != 0;
  }

  TILE_FN void bring(const Tokens& tokens, int tile, int stage) {
    if (!fetches(tile)) return;
    const PagedGroup group = group_of(tokens, tile);
    if (group.exists()) s_.rings[team_].bring(stage, cache_, group);
    close_batch();
  }

  /// Whether it is this wave of the team that fetches the tile so many tiles on: they take turns.
  TILE_FN bool fetches(int tile) const {
    return kTeamWaves == 1 || static_cast<int>((turn_ + tile) % kTeamWaves) == wave_;
  }

  /// Infinities and NaNs among the values of tokens from `first` on meet the rows that see them,
  /// and no others.
  TILE_FN void keep_apart(int first) {
    Ring& ring = s_.rings[team_];
    if (!ring.has_special_values(stage_)) return;
    TILE_ROLLED
    for (int token = first; token < own_ && token < kGroupTokens; ++token) {
      const int place = Ring::place_of(token);
      const uint32_t hidden =
          __shfl_sync(~0u, hidden_, place % 8 * 4 + lane() % 4) >> place / 8 * 2;
#pragma unroll
      for (int block = 0; block < kSteps; ++block)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float value = ring.special_value(stage_, token, block * 16 + half * 8 + lane() / 4);
#pragma unroll
          for (int t = 0; t < kTiles; ++t)
#pragma unroll
            for (int side = 0; side < 2; ++side)
              if ((hidden >> (t * 4 + side) & 1) == 0) output_[block][t][side + half * 2] += value;
        }
    }
    meet_team();
    ring.clear_special_values(stage_, first);
  }

  /// Maxima and the unit, which are in the output's units, too.
  /// @param largest scale of the thread's values
  TILE_FN void raise(float largest) {
    float fitted = 1;
    if constexpr (kScaled) {
      const float unit = unit_;
      largest = wave_max(largest);
      if (largest > unit) unit_ = ValueUnit::above(largest);
      fitted = unit * ValueUnit::inverse(unit_);
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      float2 factors = rows_.raise(scores_, t);
      factors.x *= fitted, factors.y *= fitted;
#pragma unroll
      for (auto& block : output_) {
        block[t][0] *= factors.x, block[t][2] *= factors.x;
        block[t][1] *= factors.y, block[t][3] *= factors.y;
      }
    }
  }

  Shared& s_;
  const Cache cache_;
  const int own_wave_, team_, wave_;  // which team, and the wave's place there
  int query_rows_ = 0, stage_ = 0;
  uint32_t turn_ = 0;
  int own_ = 0;          // tokens of the team's group; none: it is left out
  uint32_t hidden_ = 0;  // bit 4t + i: score i of tile t is hidden
  float unit_ = ValueUnit::kLeast;
  Rows rows_;
  float scores_[kTiles][4], output_[kSteps][kTiles][4];
  uint32_t weights_[kTiles][2];
};

}  // namespace hipdecode::tile::nvptx

namespace hipdecode::tile {

template <class Shape>
struct PagedTiles : nvptx::PagedTiles<Shape> {
  using nvptx::PagedTiles<Shape>::PagedTiles;
};

}  // namespace hipdecode::tile
