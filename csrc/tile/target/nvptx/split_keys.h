// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../concepts.h"
#include "key_ring.h"
#include "merged_output.h"
#include "products.h"
#include "queries.h"
#include "running_rows.h"

namespace hipdecode::tile::nvptx {

/// Tiles of 128 tokens for few query rows: each warpgroup takes 64 tokens and keeps a whole output,
/// maxima and sums of its own, so that nothing but the queries is shared until the end. Four waves
/// bring in the keys. No row of the kernels that use them has a sink.
template <class Shape>
class SplitKeys {
 public:
  static constexpr int kRows = Shape::kRows, kTokens = 128, kWaves = 12;
  static constexpr bool kLooksUpLate = true;
  using KvElement = typename Storage<Shape::kKvDType>::Type;

 private:
  static constexpr int kGroups = 2, kGroupWaves = 4, kGroupThreads = kGroupWaves * kLanes;
  static constexpr int kBlocks = Shape::kHeadDimV / 64;  // of the output's columns
  using Layout = Keys<Shape::kHeadDimQk, Shape::kKvDType>;
  using Q = Queries<Layout, Shape::kHeadDimQk, Shape::kQDType, kRows>;
  using Rows = RunningRows<kRows, Layout::kOperand>;
  static constexpr int kSteps = Shape::kHeadDimQk / 16;  // of scores; as many at a time as fit
  static constexpr int kBatch = kSteps % 4 != 0 || (kSteps % 6 == 0 && kRows < 32) ? 6 : 4;
  using Scores = ScoreProduct<Layout, Shape::kHeadDimQk, kRows, kBatch>;
  using Values = ValueProduct<Layout, kRows, kBlocks>;
  using Merged = MergedOutput<Layout, Shape::kHeadDimV>;
  static constexpr int kWeightBytes = Layout::kTokens / 8 * kChunkBytes<kRows>;
  static constexpr int kMostBytes = 226 * 1024;  // of group memory, of which 1 KB for small things
  static constexpr int kQueryBytes = Q::kBytes > sizeof(Merged) ? Q::kBytes : sizeof(Merged);
  static constexpr int kRowBytes = kGroups * (kGroupWaves + 2) * 4 + sizeof(RowTarget);
  static constexpr int kFreeBytes =
      kMostBytes - kQueryBytes - kGroups * kWeightBytes - kRows * kRowBytes;
  static constexpr int kFit = kFreeBytes / (kGroups * (Layout::kBytes + 256));
  static constexpr int kSlots = kFit > 4 ? 4 : kFit;
  static_assert(kSlots >= 1);
  // With room for one tile each, one warpgroup's keys come behind the other's, brought by all: it
  // computes while the other's are still on their way. Else two waves bring in the keys of each.
  static constexpr bool kInTurn = kSlots == 1;
  static constexpr int kFetchWaves = kInTurn ? 4 : 4 / kGroups;
  using Ring = KeyRing<Layout, kSlots, kFetchWaves, kGroupWaves, true>;
  // barriers, of which 0 is the block's; a warpgroup's own are 1 and 2
  enum Barrier { kEverybody = 1 + kGroups, kOpened, kOpenedToAll };

 public:
  struct Shared {
    static constexpr int kComputeWaves = kGroups * kGroupWaves;
    static constexpr int kComputeRegisters = 232, kFetchRegisters = 40;
    static constexpr bool kFetchesInFront = true;
    Ring rings[kGroups];
    union alignas(128) {
      unsigned char queries[Q::kBytes];
      Merged merged;
    };
    alignas(128) unsigned char weights[kGroups][kWeightBytes];
    float4 by_wave[kGroups][kRows];  // maxima, at last sums
    float bases[kGroups][kRows], unscale[kRows];
    RowTarget targets[kRows];

    /// By all threads, before anything else.
    TILE_FN void open() {
      if (threadIdx.x != kComputeWaves * kLanes) return;
      for (Ring& ring : rings) ring.open();
      publish_gates();
    }
  };

  using Tokens = FetchedTokens<KeyRef<KvElement>>;

  /// The waves that fetch are done before the others.
  static constexpr int kSpareWaves = kWaves - Shared::kComputeWaves;
  static TILE_FN int spare_wave(Block block) {
    return block.role() == Role::fetch ? fetching_wave(Shared::kComputeWaves) : -1;
  }

  TILE_FN SplitKeys(Shared& shared, Block block)
      : s_(shared), fetches_(block.role() == Role::fetch) {
    const int wave = fetches_ ? fetching_wave(Shared::kComputeWaves) : block.wave();
    group_ = wave / (fetches_ ? kFetchWaves : kGroupWaves);
    wave_ = wave % (fetches_ ? kFetchWaves : kGroupWaves);
    // fetching waves begin at once: of what the others do first they need nothing
    if (fetches_) {
      meet(kOpened, (kWaves - Shared::kComputeWaves) * kLanes);
      announce(kOpenedToAll, kWaves * kLanes);
    } else {
      meet(kOpenedToAll, kWaves * kLanes);
    }
  }

  template <class Source>
  TILE_FN void load_queries(const Source& source, int rows) {
    if (fetches_) return;
    query_rows_ = rows;
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

  /// Where the rows go, found out while the first keys are on their way.
  template <class Target>
  TILE_FN void aim(int rows, const Target& target) {
    if (!fetches_ && group_ == 0 && wave_ == 0 && lane() < rows)
      s_.targets[lane()] = target(lane());
  }

  template <class Lookup>
  TILE_FN Tokens gather(const Lookup& lookup, int count) const {
    if (!fetches_) return {{}, count};
    // in turn: half of the lanes for each warpgroup
    const int group = kInTurn ? lane() / Ring::kShare : group_;
    const int token = group * Layout::kTokens + wave_ * Ring::kShare + lane() % Ring::kShare;
    return {lookup(token < count ? token : 0), count};
  }

  /// Nothing yet: a fetching wave brings a tile in where the others score it, so that its code is
  /// there once. They wait for it, and it runs ahead of them.
  TILE_FN void fetch(const Tokens&) {}

  TILE_FN void score(Tokens& tokens, const Tokens&) {
    if (fetches_) return bring(tokens);
    if (own_count(tokens) == 0) return;
    Ring& ring = s_.rings[group_];
    ring.full[cursor_.slot].wait(cursor_.parity);
    tokens.lost = ring.any_missing(cursor_.slot);
    Scores().run(scores_, shared_address(ring.keys[cursor_.slot]),
                 operand(shared_address(s_.queries), kChunkBytes<kRows>), wave_);
  }

  template <class Visible>
  TILE_FN void mask(const Tokens& tokens, int, const Visible& visible) {
    if (fetches_ || own_count(tokens) == 0) return;
    const int token = own_token();
    const Ring& ring = s_.rings[group_];
    const bool lost[2] = {ring.is_missing(cursor_.slot, token),
                          ring.is_missing(cursor_.slot, token + 8)};
    const int first = group_ * Layout::kTokens + token;
    const int own = lane() % kRows;  // each lane asks for one row
    const int own_end = visible(own < query_rows_ ? own : query_rows_ - 1);
#pragma unroll
    for (int v = 0; v < Rows::kValues; ++v) {
      const int end = __shfl_sync(~0u, own_end, Rows::row_of(v));
      hide(v, lost[0] || first >= end, lost[1] || first + 8 >= end);
    }
  }

  TILE_FN void softmax(const Tokens& tokens, float scale) {
    const int count = own_count(tokens);
    if (fetches_ || count == 0) return;
    const int token = own_token();
#pragma unroll
    for (int v = 0; v < Rows::kValues; ++v) {
      const float factor = Q::kScaled ? scale * s_.unscale[Rows::row_of(v)] : scale;
      scores_[v / 2 * 4 + v % 2] *= factor;
      scores_[v / 2 * 4 + v % 2 + 2] *= factor;
      if (count < Layout::kTokens) hide(v, token >= count, token + 8 >= count);
    }
    // rarely; and what was there is no longer read by the matrix unit
    raised_ = meet_any(1 + group_, kGroupThreads, rows_.may_raise(scores_)) && raise_maxima();
    rows_.weigh(scores_);
    store_weights<Layout, kRows>(shared_address(s_.weights[group_]), scores_, 0, wave_);
    publish_operand();
  }

  template <class Visible>
  TILE_FN void accumulate(const Tokens& tokens, int first_hidden, const Visible&) {
    const int count = own_count(tokens);
    if (fetches_ || count == 0) return;
    Ring& ring = s_.rings[group_];
    const int hidden = first_hidden - group_ * Layout::kTokens;
    if (hidden < count) {
      meet_group();
      clear_special_values<Layout, Shape::kHeadDimV>(
          ring.keys[cursor_.slot], hidden > 0 ? hidden : 0, count, wave_, kGroupWaves);
      meet_group();
    }
    Values values;
    values.start(shared_address(ring.keys[cursor_.slot]), 0, wave_);
    meet_group();
    if (raised_) rescale();
    values.run(output_, operand(shared_address(s_.weights[group_]), kChunkBytes<kRows>));
    ring.release(cursor_);
    wait_for_products<0>();
  }

  template <class Target>
  TILE_FN void store(int rows, const Target&, float value_scale) {
    if (fetches_) return;
    if (wave_ == 0) s_.bases[group_][Rows::own_row()] = rows_.own_base();
#pragma unroll
    for (int v = 0; v < Rows::kValues; ++v) {
      const float sum = rows_.sum(v);
      if (lane() < 4) reinterpret_cast<float*>(&s_.by_wave[group_][Rows::row_of(v)])[wave_] = sum;
    }
#pragma unroll
    for (int first = 0; first < kRows; first += Merged::kRows) {
      meet_all();  // nobody reads any more what is overwritten
      s_.merged.lay_down(output_, first, group_, wave_);
      const auto end = end_of(first + lane() % Merged::kRows, rows, value_scale);
      meet_all();
      TILE_ROLLED
      for (int row = 0; row < Merged::kRows; row += kGroups * kGroupWaves)
        s_.merged.write(row + group_ * kGroupWaves + wave_, end);
    }
    meet_all();
  }

 private:
  TILE_FN void bring(const Tokens& tokens) {
    TILE_ROLLED
    for (int turn = 0; turn < (kInTurn ? kGroups : 1); ++turn) {
      if (kInTurn) group_ = turn;
      const int count = own_count(tokens);
      if (count != 0) s_.rings[group_].fill(cursor_, wave_, tokens.key, count, turn * Ring::kShare);
      if (kInTurn) {
        const Cursor next = other_;
        other_ = cursor_;
        cursor_ = next;
      }
    }
  }

  TILE_FN void meet_group() const { meet(1 + group_, kGroupThreads); }
  static TILE_FN void meet_all() { meet(kEverybody, kGroups * kGroupThreads); }

  /// Tokens of a tile that this warpgroup has.
  TILE_FN int own_count(const Tokens& tokens) const {
    const int count = tokens.count - group_ * Layout::kTokens;
    return count < 0 ? 0 : count < Layout::kTokens ? count : Layout::kTokens;
  }
  /// The first of the two tokens that this thread has scores of.
  TILE_FN int own_token() const { return 16 * wave_ + lane() / 4; }

  TILE_FN void hide(int value, bool first, bool second) {
    if (first) scores_[value / 2 * 4 + value % 2] = -kInfinity;
    if (second) scores_[value / 2 * 4 + value % 2 + 2] = -kInfinity;
  }

  TILE_FN bool raise_maxima() {
    float4& waves = s_.by_wave[group_][Rows::own_row()];
    reinterpret_cast<float*>(&waves)[wave_] = Rows::largest(scores_);
    meet_group();
    const float4 most = waves;
    return rows_.raise(fmaxf(fmaxf(most.x, most.y), fmaxf(most.z, most.w)));
  }
  TILE_FN void rescale() {
#pragma unroll
    for (int v = 0; v < Rows::kValues; ++v) scale_row(v, rows_.factor(v));
  }
  TILE_FN void scale_row(int value, float factor) {
#pragma unroll
    for (auto& block : output_) {
      block[value / 2 * 4 + value % 2] *= factor;
      block[value / 2 * 4 + value % 2 + 2] *= factor;
    }
  }

  /// Where a row goes and what brings both warpgroups' to one base and normalises: each lane has a
  /// row. The wave that writes a row writes its LSE.
  TILE_FN typename Merged::End end_of(int row, int rows, float value_scale) const {
    typename Merged::End end{};
    if (row >= rows) return end;
    const RowTarget& to = s_.targets[row];
    const float most = fmaxf(s_.bases[0][row], s_.bases[1][row]);
    float total = 0;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const float base = s_.bases[group][row];
      const float4 waves = s_.by_wave[group][row];
      end.scales[group] = base == most ? 1.0f : exp2(base - most);
      total += end.scales[group] * (waves.x + waves.y + waves.z + waves.w);
    }
    const float log2_sum = log2(total);
    if (to.lse != nullptr && to.o != nullptr && group_ == 0 && wave_ == 0 && lane() < Merged::kRows)
      *to.lse = row_lse(most, total, log2_sum);
    const float scale = row_scale(total, value_scale);
#pragma unroll
    for (float& of_group : end.scales) of_group *= scale;
    end.o = reinterpret_cast<uint64_t>(to.o);
    end.type = to.type;
    return end;
  }

  Shared& s_;
  const bool fetches_;
  bool raised_ = false;
  int group_, wave_;  // which warpgroup it is or serves, and the wave's place there
  int query_rows_ = 0;
  Cursor cursor_, other_;  // in turn a fetching wave has one for each warpgroup
  Rows rows_;
  float scores_[kRows / 2], output_[kBlocks][kRows / 2];
};

}  // namespace hipdecode::tile::nvptx
