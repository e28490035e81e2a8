// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../concepts.h"
#include "key_ring.h"
#include "output.h"
#include "products.h"
#include "queries.h"
#include "running_rows.h"

namespace hipdecode::tile::nvptx {

/// Tiles of 64 tokens for 64 query rows: both warpgroups take all tokens, half of the rows for
/// scores and softmax, half of the columns for values. Where there is room for three tiles, the
/// values of a tile follow the scores of the next, so that neither warpgroup waits for the other's
/// weights.
template <class Shape>
class SplitColumns {
 public:
  static constexpr int kRows = Shape::kRows, kTokens = 64, kWaves = 12;
  using KvElement = typename Storage<Shape::kKvDType>::Type;

 private:
  static constexpr int kGroups = 2, kGroupWaves = 4, kGroupThreads = kGroupWaves * kLanes;
  static constexpr int kFetchWaves = 4, kOwnRows = kRows / kGroups;
  static constexpr int kColumns = Shape::kHeadDimV / kGroups, kBlocks = kColumns / 64;
  using Layout = Keys<Shape::kHeadDimQk, Shape::kKvDType>;
  using Q = Queries<Layout, Shape::kHeadDimQk, Shape::kQDType, kRows>;
  using Rows = RunningRows<kOwnRows, Layout::kOperand>;
  static constexpr int kSteps = Shape::kHeadDimQk / 16;  // of scores; as many at a time as fit
  static constexpr int kBatch = Layout::kFp8 ? 4 : kSteps % 3 == 0 ? 3 : 2;
  using Scores = ScoreProduct<Layout, Shape::kHeadDimQk, kRows, kBatch>;
  using Values = ValueProduct<Layout, kRows, kBlocks>;
  static constexpr int kWeightBytes = kTokens * kRows * 2;
  static constexpr int kMostBytes = 226 * 1024;
  static constexpr bool kDelayed = Q::kBytes + 2 * kWeightBytes + 3 * Layout::kBytes <= kMostBytes;
  static constexpr int kSlots = kDelayed ? 3 : 2, kBuffers = kDelayed ? 2 : 1;
  using Ring = KeyRing<Layout, kSlots, kFetchWaves, kGroups * kGroupWaves>;
  static_assert(kRows <= Layout::kTokens);  // by_wave() finds a place for each
  static_assert(sizeof(RowEnds<kRows>) <= kWeightBytes);

 public:
  struct Shared {
    static constexpr int kComputeWaves = kGroups * kGroupWaves;
    static constexpr int kComputeRegisters = 232, kFetchRegisters = 40;
    Ring ring;
    alignas(128) unsigned char queries[Q::kBytes];
    alignas(128) unsigned char weights[kBuffers][kWeightBytes];
    float factors[kBuffers][kRows], unscale[Q::kScaled ? kRows : 1];
    int32_t raised[kBuffers][kGroups];
    Gate weighed[kBuffers], valued[kBuffers];
  };

  /// Fetching waves know a token's key each, the others find out from the ring what is missing.
  struct Tokens {
    KeyRef<KvElement> key;
    int count;
    bool lost = false;  // some of them, by score()

    TILE_FN bool skips() const { return lost; }
  };

  TILE_FN SplitColumns(Shared& shared, Block block)
      : s_(shared), fetches_(block.role() == Role::fetch) {
    const int wave = fetches_ ? fetching_wave(Shared::kComputeWaves) : block.wave();
    group_ = fetches_ ? 0 : wave / kGroupWaves;
    wave_ = wave % kGroupWaves;
    if (first_thread(block)) {
      s_.ring.open();
      for (int i = 0; i < kBuffers; ++i) {
        s_.weighed[i].open(kGroups * kGroupWaves);
        s_.valued[i].open(kGroups * kGroupWaves);
      }
      publish_gates();
    }
    __syncthreads();
  }

  template <class Source>
  TILE_FN void load_queries(const Source& source, int rows) {
    if (fetches_) return;
    query_rows_ = rows;
    pending_ = false;
    Q::load(s_.queries, s_.unscale, source, rows, group_ * kGroupWaves + wave_,
            kGroups * kGroupWaves);
    publish_operand();
    meet_all();
    rows_.clear();
#pragma unroll
    for (auto& block : output_)
#pragma unroll
      for (float& value : block) value = 0;
  }

  template <class Lookup>
  TILE_FN Tokens gather(const Lookup& lookup, int count) const {
    if (!fetches_) return {{}, count};
    const int token = wave_ * Ring::kShare + lane() % Ring::kShare;
    return {lookup(token < count ? token : 0), count};
  }

  TILE_FN void fetch(const Tokens& tokens) {
    if (fetches_ && tokens.count > 0) s_.ring.fill(filled_, wave_, tokens.key, tokens.count);
  }

  TILE_FN void score(Tokens& tokens, const Tokens& next) {
    if (fetches_) return fetch(next);
    s_.ring.full[scored_.slot].wait(scored_.parity);
    tokens.lost = s_.ring.any_missing(scored_.slot);
    Scores().run(scores_, shared_address(s_.ring.keys[scored_.slot]),
                 operand(shared_address(s_.queries) + group_ * kOwnRows * 16, kChunkBytes<kRows>),
                 wave_);
  }

  template <class Visible>
  TILE_FN void mask(const Tokens&, int, const Visible& visible) {
    if (fetches_) return;
    const int token = own_token();
    const bool lost[2] = {s_.ring.is_missing(scored_.slot, token),
                          s_.ring.is_missing(scored_.slot, token + 8)};
#pragma unroll
    for (int v = 0; v < Rows::kValues; ++v) {
      const int row = group_ * kOwnRows + Rows::row_of(v);
      const int end = visible(row < query_rows_ ? row : query_rows_ - 1);
      hide(v, lost[0] || token >= end, lost[1] || token + 8 >= end);
    }
  }

  TILE_FN void softmax(const Tokens& tokens, float scale) {
    if (fetches_) return;
    const int token = own_token();
#pragma unroll
    for (int v = 0; v < Rows::kValues; ++v) {
      const int row = group_ * kOwnRows + Rows::row_of(v);
      const float factor = Q::kScaled ? scale * s_.unscale[Q::kScaled ? row : 0] : scale;
      scores_[v / 2 * 4 + v % 2] *= factor;
      scores_[v / 2 * 4 + v % 2 + 2] *= factor;
      if (tokens.count < kTokens) hide(v, token >= tokens.count, token + 8 >= tokens.count);
    }
    float4& waves = by_wave(group_ * kOwnRows + Rows::own_row());
    reinterpret_cast<float*>(&waves)[wave_] = Rows::largest(scores_);
    meet_group();
    const float4 most = waves;
    const bool raised = rows_.raise(fmaxf(fmaxf(most.x, most.y), fmaxf(most.z, most.w)));
    rows_.weigh(scores_);
    give_weights(raised);
  }

  template <class Visible>
  TILE_FN void accumulate(const Tokens& tokens, int first_hidden, const Visible&) {
    if (fetches_) return;
    if (first_hidden < tokens.count) {
      meet_all();
      clear_special_values<Layout, Shape::kHeadDimV>(s_.ring.keys[scored_.slot], first_hidden,
                                                     tokens.count, group_ * kGroupWaves + wave_,
                                                     kGroups * kGroupWaves);
      meet_all();
    }
    if (!kDelayed || pending_) add_values();
    pending_ = true;
    scored_.template advance<kSlots>();
  }

  template <class Target>
  TILE_FN void store(int rows, const Target& target, float value_scale) {
    if (fetches_) return;
    if (kDelayed && pending_) add_values();
    meet_all();  // nobody reads a factor or a weight any more
    float* bases = s_.factors[0];
    if (wave_ == 0) bases[group_ * kOwnRows + Rows::own_row()] = rows_.own_base();
#pragma unroll
    for (int v = 0; v < Rows::kValues; ++v) {
      const float sum = rows_.sum(v);
      if (lane() < 4)
        reinterpret_cast<float*>(&by_wave(group_ * kOwnRows + Rows::row_of(v)))[wave_] = sum;
    }
    meet_all();
    auto& ends = *reinterpret_cast<RowEnds<kRows>*>(s_.weights[0]);
    const int row = group_ * kGroupThreads + wave_ * kLanes + lane();
    if (row < kRows) {
      const float4 waves = by_wave(row);
      const float sum = waves.x + waves.y + waves.z + waves.w;
      ends.scale[0][row] = row_scale(sum, value_scale);
      ends.set(row, rows, target, bases[row], sum);
    }
    meet_all();
#pragma unroll
    for (int v = 0; v < kRows / 4; ++v) scale_row(v, ends.scale[0][Rows::row_of(v)]);
    Output<Layout, kBlocks, kRows>::store(output_, ends, group_ * kColumns, wave_);
    meet_all();
  }

 private:
  TILE_FN void meet_group() const { meet(1 + group_, kGroupThreads); }
  static TILE_FN void meet_all() { meet(1 + kGroups, kGroups * kGroupThreads); }

  /// The first of the two tokens that this thread has scores of.
  TILE_FN int own_token() const { return 16 * wave_ + lane() / 4; }

  /// A word for each wave of a row: the bytes between the keys of the first slot are nobody's.
  TILE_FN float4& by_wave(int row) const {
    return *reinterpret_cast<float4*>(s_.ring.keys[0] + row * Layout::kPitch + Layout::kRowBytes);
  }

  TILE_FN void hide(int value, bool first, bool second) {
    if (first) scores_[value / 2 * 4 + value % 2] = -kInfinity;
    if (second) scores_[value / 2 * 4 + value % 2 + 2] = -kInfinity;
  }

  /// Weights, and what the output is multiplied by before they count, for both warpgroups.
  TILE_FN void give_weights(bool raised) {
    const int buffer = kDelayed ? weighed_.slot : 0;
    if constexpr (kDelayed)
      s_.valued[buffer].wait(weighed_.parity ^ 1);
    else
      meet_all();  // the one buffer has been read
    if (wave_ == 0) {
      s_.factors[buffer][group_ * kOwnRows + Rows::own_row()] = rows_.own_factor();
      if (lane() == 0) s_.raised[buffer][group_] = raised;
    }
    store_weights<Layout, kRows>(shared_address(s_.weights[buffer]), scores_, group_ * kOwnRows,
                                 wave_);
    publish_operand();
    if constexpr (kDelayed) {
      __syncwarp();
      if (lane() == 0) s_.weighed[buffer].arrive();
      weighed_.template advance<2>();
    } else {
      meet_all();
    }
  }

  /// The values of the oldest tile that has weights.
  TILE_FN void add_values() {
    const int buffer = kDelayed ? valued_.slot : 0;
    Values values;
    values.start(shared_address(s_.ring.keys[emptied_.slot]), group_ * kColumns, wave_);
    if constexpr (kDelayed) s_.weighed[buffer].wait(valued_.parity);
    if (s_.raised[buffer][0] | s_.raised[buffer][1]) {
#pragma unroll
      for (int v = 0; v < kRows / 4; ++v) scale_row(v, s_.factors[buffer][Rows::row_of(v)]);
    }
    values.run(output_, operand(shared_address(s_.weights[buffer]), kChunkBytes<kRows>));
    s_.ring.release(emptied_);
    wait_for_products<0>();
    if constexpr (kDelayed) {
      __syncwarp();
      if (lane() == 0) s_.valued[buffer].arrive();
      valued_.template advance<2>();
    }
  }

  TILE_FN void scale_row(int value, float factor) {
#pragma unroll
    for (auto& block : output_) {
      block[value / 2 * 4 + value % 2] *= factor;
      block[value / 2 * 4 + value % 2 + 2] *= factor;
    }
  }

  Shared& s_;
  const bool fetches_;
  bool pending_ = false;
  int group_, wave_;
  int query_rows_ = 0;
  Cursor filled_, scored_, emptied_;  // slots of the ring
  Cursor weighed_, valued_;           // buffers of weights
  Rows rows_;
  float scores_[kOwnRows / 2], output_[kBlocks][kRows / 2];
};

}  // namespace hipdecode::tile::nvptx
