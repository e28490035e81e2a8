// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../concepts.h"
#include "../../softmax.h"
#include "entry.h"
#include "hk_fetch.h"
#include "hk_fetch_packed.h"
#include "hk_merge.h"
#include "hk_values.h"
#include "lane_reduce.h"
#include "sync.h"

namespace hipdecode::tile::amdgcn {

/// The main loop in 16x16 form. A wave owns 16 query rows and all value columns; a lane owns query
/// row l % 16 from its queries to its output, because both products are computed transposed:
/// scores^T = keys x queries^T leaves a lane four tokens of each group of 16, and those weights are
/// the operand of output^T = values^T x weights^T as they are: the order of the depth is free.
template <class Shape, Schedule kSchedule>
class HkTiles {
 public:
  using P = HkPlan<Shape>;
  using M = Matrix16<Shape::kQDType>;
  using Values = HkValues<Shape>;
  using Merge = HkMerge<P, Values>;
  using KvElement = typename Storage<Shape::kKvDType>::Type;
  using Key = typename HkFetch<Shape>::Key;
  static constexpr int kRows = Shape::kRows, kTokens = P::kTokens, kWaves = P::kWaves;
  static constexpr int kGroups = P::kGroups;
  // A row's largest weight lies between 2^kWeightShift and 2^(kWeightShift + kSlack). In hk's fp8
  // it is one power of two: the weight that counts most is exact, at the price of more rescaling.
  static constexpr float kSlack = !M::kFp8 ? 8 : kSchedule == Schedule::hk ? 0 : 4;
  static constexpr float kWeightShift = M::kLargestPower - kSlack;

  struct Shared {
    alignas(1024) unsigned char bytes[Merge::kSharedBytes];
  };

  /// A lane looks up one token of its token wave's part: the one that its number says. What asks
  /// for an entry of the page table waits for it, so only fetching asks, and notes what it finds.
  struct Tokens {
    Key key;
    int count;                     // of the whole tile
    mutable uint64_t skipped = 0;  // bit i: token i of the part; known when the fetch has begun

    TILE_FN bool skips() const { return skipped != 0; }
  };

  TILE_FN HkTiles(Shared& shared, Block block)
      : row_wave_(P::row_wave(block.wave())),
        token_wave_(P::token_wave(block.wave())),
        base_(lds_address(shared.bytes)),
        offsets_(recomputed(key_offset(static_cast<uint32_t>(lane())) |
                            Values::lane_offset(static_cast<uint32_t>(lane())) << 16)),
        fetch_(P::row_wave(block.wave()), static_cast<uint32_t>(lane())) {}

  template <class Source>
  TILE_FN void load_queries(const Source& source, int rows) {
    rows_ = rows;
    const char* row = static_cast<const char*>(source(logical_row()));
    const auto first = static_cast<int>(fetch_.place.lane() / 16 * 16);
#pragma unroll
    for (int j = 0; j < P::kChunks; ++j) {
      const int at = 64 * j + first;
      queries_[j] = U32x4{};
      if (64 * j + 64 <= P::kRowBytes || at < P::kRowBytes)
        queries_[j] = global_read<U32x4>(row + at);
    }
#pragma unroll
    for (int c = 0; c < P::kColumnTiles; ++c) out_[c] = F32x4{};
    level_ = kLowest;
    sum_ = 0;
    filling_ = base_;
    barrier();
  }

  /// lookup(n): the key of token n of the tile. Where there is none token 0 is looked up: a branch
  /// would wait for the page table's entry.
  template <class Lookup>
  TILE_FN Tokens gather(const Lookup& lookup, int count) const {
    const int n = own_token();
    return {lookup(n < count ? n : 0), uniform(count)};
  }

  TILE_FN void fetch(const Tokens& tokens) {
    aim(tokens);
#pragma unroll
    for (int own = 0; own < P::kOwn; ++own)
#pragma unroll
      for (int i = 0; i < P::kTurns; ++i) fetch_.turn(own, i);
    arrive();
  }

  TILE_FN void score(const Tokens&, const Tokens& next) {
    fetching_ = next.count > 0;
    __builtin_amdgcn_s_setprio(2);
    if (kOneScore || fetching_)
      score_tile<true>(next);
    else
      score_tile<false>(next);
    __builtin_amdgcn_s_setprio(1);
  }

  /// Hides what visible(row) and the lookups say; called for tiles that hide something.
  template <class Visible>
  TILE_FN void mask(const Tokens& tokens, int, const Visible& visible) {
    hide(tokens, visible(logical_row()) - first_token());
  }

  TILE_FN void softmax(const Tokens& tokens, float scale) {
    if (tokens.count < kTokens) hide(tokens, tokens.count - first_token());
    float best = scores_[0][0];
#pragma unroll
    for (int i = 1; i < 4 * kGroups; ++i) best = __builtin_fmaxf(best, scores_[i / 4][i % 4]);
    // Weights are relative to a level that follows a row's maximum only when that has outgrown it:
    // the output is rescaled rarely, and other rows make no difference to a row's bits.
    const float level = best * scale - kWeightShift;
    if (any_lane(level > level_ + kSlack)) rescale(level);
    const F32x2 scales = {scale, scale}, levels = {level_, level_};
    F32x2 sum = {};
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const F32x2 low = weigh_two(scores_[g].xy, scales, levels),
                  high = weigh_two(scores_[g].zw, scales, levels);
      sum += low + high;
      weights_[g] = M::narrow({low.x, low.y, high.x, high.y});
    }
    sum_ += sum.x + sum.y;
    __builtin_amdgcn_s_setprio(0);
  }

  /// out += values x weights. Where a token is hidden from some row, its weight of zero would not
  /// keep a NaN out of that row's sum. Every value is also a key element, so a row that does see a
  /// NaN has it in its weight already: the values of such a tile are made finite, for all rows.
  template <class Visible>
  TILE_FN void accumulate(const Tokens& tokens, int first_hidden, const Visible&) {
    if (first_hidden < tokens.count) {
      meet_part();
      make_finite();
      meet_part();
    }
    const Values values(part(current_) + (recomputed(offsets_) >> 16));
    constexpr int kInFlight = Values::kInFlight, kSteps = Values::kSteps;
    typename Values::Raw raw[kInFlight];
    values.read(raw[0], 0);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const bool early = kInFlight == 2 && step + 1 < kSteps;
      if (early) values.read(raw[(step + 1) % kInFlight], step + 1);
      early ? wait_for_lds<Values::kReads>() : wait_for_lds<0>();
      pipeline_stage();
      const auto words = Values::words(raw[step % kInFlight]);
      if (kInFlight == 1 && step + 1 < kSteps) values.read(raw[0], step + 1);
      weigh(words, &out_[step * Values::kTiles]);
      pipeline_stage();
    }
    if (fetching_) arrive();
  }

  /// Normalises the rows and writes them with their LSE.
  template <class Target>
  TILE_FN void store(int rows, const Target& target, float value_scale) {
    float sum = across_rows(sum_, [](float a, float b) { return a + b; });
    const uint32_t lane = fetch_.place.lane();
    const Merge merge{base_, lane, row_wave_, token_wave_};
    if constexpr (P::kTokenWaves > 1) {
      barrier();  // LDS now serves another purpose
      merge.run(out_, level_, sum);
    }
    const int row = row_wave_ * 16 + static_cast<int>(lane % 16);
    if (row >= rows) return;
    const RowTarget to = target(row);
    if (to.o == nullptr) return;
    const float lse2 = level_ + __builtin_amdgcn_logf(sum);
    const float share =
        share_beside(to.sink, lse2, [](float x) { return __builtin_amdgcn_exp2f(x); });
    merge.write(to, out_, row_scale(sum, value_scale) * share);
    if (to.lse != nullptr && lane < 16 && token_wave_ == 0)
      *to.lse = row_lse(level_, sum, __builtin_amdgcn_logf(sum));
  }

 private:
  static constexpr float kLowest = -3e38f;  // finite, so that hidden scores subtract to no NaN

  int row_wave_, token_wave_, rows_ = 0;
  uint32_t base_, current_ = 0,
                  filling_ = 0;  // LDS addresses: all, this tile, the next
  bool fetching_ = false;        // a next tile is under way
  uint32_t offsets_;  // of what this lane reads first in a part: of keys | of values << 16
  HkFetch<Shape> fetch_;
  U32x4 queries_[P::kChunks];
  F32x4 scores_[kGroups];
  typename M::GroupWords weights_[kGroups];
  F32x4 out_[P::kColumnTiles];
  float level_ = kLowest, sum_ = 0;  // base 2; sum over this lane's own tokens

  /// This lane's query row; the last one for lanes without.
  TILE_FN int logical_row() const {
    const int row = row_wave_ * 16 + static_cast<int>(fetch_.place.lane() % 16);
    return row < rows_ ? row : rows_ - 1;
  }

  static TILE_FN uint32_t key_offset(uint32_t lane) {
    return lane % 16 * P::kTokenPitch + 16 * (lane / 16 ^ P::twist(lane % 16));
  }

  TILE_FN uint32_t part(uint32_t tile) const {
    return tile + static_cast<uint32_t>(token_wave_ * kGroups * P::kGroupPitch);
  }

  /// Waves that read the same part wait for each other; one that has a part of its own need not.
  static TILE_FN void meet_part() {
    if constexpr (P::kRowWaves > 1) {
      barrier();
    } else {
      wave_exchange();
    }
  }

  /// What was fetched is there, for all waves that read it, and becomes the current tile.
  TILE_FN void arrive() {
    if constexpr (P::kBuffers == 1) meet_part();
    fetch_.land(part(filling_));
    meet_part();
    current_ = filling_;
    if constexpr (P::kBuffers == 2) filling_ = 2 * base_ + P::kTileBytes - current_;
  }

  /// The token of a tile that this lane looks up.
  TILE_FN int own_token() const {
    return first_token() + static_cast<int>(fetch_.place.lane() % P::kPart);
  }
  TILE_FN int first_token() const { return token_wave_ * P::kPart; }

  TILE_FN void aim(const Tokens& tokens) {
    const bool exists = own_token() < tokens.count;
    const bool known = fetch_.aim(part(filling_), tokens.key, exists);
    tokens.skipped = __builtin_amdgcn_ballot_w64(exists && !known);
  }

  /// The two products are software pipelines: operands are read from LDS a few operations before
  /// the matrix unit takes them, and the compiler keeps that order.
  template <bool kFetch>
  TILE_FN void score_tile(const Tokens& next) {
    asm volatile("" : : "n"(kFetch));        // both forms begin alike: sharing that takes registers
    constexpr int kUnits = P::kFp8 ? 2 : 1;  // chunks of an operation
    constexpr int kOperations = (P::kChunks + kUnits - 1) / kUnits * kGroups;
    // where keys under way take registers, one operation a step leaves room for them
    constexpr bool kTwo = kOperations % 2 == 0 && !(P::kTight && !P::kDirect);
    constexpr int kEach = kTwo ? 2 : 1, kSteps = kOperations / kEach;
    const uint32_t even = part(current_) + (recomputed(offsets_) & 0xffff),
                   odd = even ^ 16 * P::kGroupTwist;
    // an offset has 16 bits: the later groups of a long tile count from a register of their own
    constexpr bool kLong = kGroups * P::kGroupPitch > 0x10000;
    const uint32_t base[2] = {even, kLong ? recomputed(even + 2 * P::kGroupPitch) : odd};
    U32x4 keys[2][kEach][kUnits];
    const auto read = [&](int step) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int at = step * kEach + i, g = at % kGroups, chunk = at / kGroups * kUnits;
#pragma unroll
        for (int u = 0; u < kUnits && chunk + u < P::kChunks; ++u)
          keys[step % 2][i][u] =
              lds_read<U32x4>(base[kLong ? g / 2 : g % 2] +
                              static_cast<uint32_t>((kLong ? g % 2 : g) * P::kGroupPitch +
                                                    (chunk + u) * P::kChunkPitch));
      }
    };
#pragma unroll
    for (int g = 0; g < kGroups; ++g) scores_[g] = F32x4{};
    read(0);
    unrolled<kSteps>([&](auto step) {
      constexpr bool kMore = step + 1 < kSteps;
      if constexpr (kMore) read(step + 1);
      wait_for_lds<kMore ? kEach * kUnits : 0>();
      pipeline_stage();
      unrolled<kEach>([&](auto i) {
        constexpr int kAt = step * kEach + i, kGroup = kAt % kGroups,
                      kChunk = kAt / kGroups * kUnits;
        const U32x4(&k)[kUnits] = keys[step % 2][i];
        F32x4& scores = scores_[kGroup];
        if constexpr (kUnits == 1 || kChunk + 1 == P::kChunks)
          scores = M::unit(k[0], queries_[kChunk], scores);
        else
          scores = M::two_units(k[0], k[1], queries_[kChunk], queries_[kChunk + 1], scores);
      });
      pipeline_stage();
      if constexpr (kFetch) fetch_behind<step, kSteps>(next);
    });
  }

  /// What starts after a step of the scores. Loads begin when the page lookups behind their
  /// addresses have had a third of the tile; those to LDS are spread over the rest of it.
  static constexpr bool kOneScore = !P::kDirect && !P::kWidens;
  template <int kStep, int kSteps>
  TILE_FN void fetch_behind(const Tokens& next) {
    constexpr int kFirst = kSteps / 3, kLeft = P::kDirect ? kSteps - kFirst : 1;
    constexpr int kLoads = P::kOwn * P::kTurns, kAt = kStep - kFirst;
    constexpr int kFrom = kAt * kLoads / kLeft, kTo = (kAt + 1) * kLoads / kLeft;
    if constexpr (kAt >= 0 && kFrom < kLoads) {
      if (kOneScore && !fetching_) return;
      if (kAt == 0) aim(next);
      unrolled<kTo - kFrom>(
          [&](auto load) { fetch_.turn((kFrom + load) / P::kTurns, (kFrom + load) % P::kTurns); });
    }
  }

  /// Scores of tokens from `limit` on, counted from the part, and of skipped ones become -inf.
  TILE_FN void hide(const Tokens& tokens, int limit) {
    const uint32_t own = fetch_.place.lane() / 16 * 4;
    const uint64_t skipped = tokens.skipped >> own;
    const int left = limit - static_cast<int>(own);
    const float hidden = recomputed(-kInfinity);
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (g * 16 + e >= left || (skipped >> (g * 16 + e) & 1) != 0) scores_[g][e] = hidden;
  }

  static TILE_FN F32x2 weigh_two(F32x2 scores, F32x2 scale, F32x2 level) {
    F32x2 power;
    if constexpr (P::kTight && P::kDirect)  // a scale in two vector registers is one too many
      power = {__builtin_fmaf(scores.x, scale.x, -level.x),
               __builtin_fmaf(scores.y, scale.x, -level.x)};
    else
      power = __builtin_elementwise_fma(scores, scale, -level);
    return {__builtin_amdgcn_exp2f(power.x), __builtin_amdgcn_exp2f(power.y)};
  }

  TILE_FN void rescale(float level) {
    level = across_rows(level, [](float a, float b) { return __builtin_fmaxf(a, b); });
    const float next = level > level_ + kSlack ? level : level_;
    const float factor = __builtin_amdgcn_exp2f(level_ - next);
    level_ = next;
    sum_ *= factor;
#pragma unroll
    for (int c = 0; c < P::kColumnTiles; ++c) out_[c] *= factor;
  }

  /// out[j] += values x weights over the tiles of a step; neighbours in time are independent.
  TILE_FN void weigh(const typename Values::Words& v, F32x4* out) const {
    constexpr bool kPairs = kGroups > 1 && (P::kFp8 || kTransposingReads);
#pragma unroll
    for (int g = 0; g < kGroups; g += kPairs ? 2 : 1)
#pragma unroll
      for (int j = 0; j < Values::kTiles; ++j) {
        const auto& value = v.at[j];
        if constexpr (P::kFp8 && !kPairs) {
          // half a depth: neighbours share an operand, the weights meet one and zero the other
          const U32x2 both = {v.at[j & ~1][g][0], v.at[j | 1][g][0]};
          const uint32_t w = weights_[g].at[0];
          out[j] = M::half(both, j % 2 == 0 ? U32x2{w, 0} : U32x2{0, w}, out[j]);
        } else if constexpr (P::kFp8) {
          out[j] = M::half({value[g][0], value[g + 1][0]},
                           {weights_[g].at[0], weights_[g + 1].at[0]}, out[j]);
        } else if constexpr (!kPairs) {
          out[j] =
              M::half({value[g][0], value[g][1]}, {weights_[g].at[0], weights_[g].at[1]}, out[j]);
        } else {
          const auto &low = weights_[g].at, &high = weights_[g + 1].at;
          out[j] = M::unit({value[g][0], value[g][1], value[g + 1][0], value[g + 1][1]},
                           {low[0], low[1], high[0], high[1]}, out[j]);
        }
      }
  }

  /// Replaces what is not a number by zero in the values of this token wave's part.
  TILE_FN void make_finite() const {
    constexpr uint32_t kRowUnits = P::kValueChunks * 4, kUnits = P::kPart * kRowUnits;
    const uint32_t first = static_cast<uint32_t>(row_wave_) * 64 + fetch_.place.lane();
    for (uint32_t i = first; i < kUnits; i += P::kRowWaves * 64) {
      const uint32_t token = i / kRowUnits, unit = i % kRowUnits;
      const uint32_t at = part(current_) + token / 16 * P::kGroupPitch +
                          token % 16 * P::kTokenPitch + unit / 4 * P::kChunkPitch + unit % 4 * 16;
      lds_write(at, M::finite(lds_read<U32x4>(at)));
    }
  }
};

}  // namespace hipdecode::tile::amdgcn
