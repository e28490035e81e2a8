// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../concepts.h"
#include "key_blocks.h"
#include "output.h"
#include "queries.h"
#include "query_rows.h"
#include "row_pair.h"
#include "wave_output.h"

namespace hipdecode::tile::nvptx {

/// Tiles of 128 tokens for 64 query rows, which fill the matrix unit's long side. Each warpgroup
/// has the scores of its own 64 tokens, and half of the columns of the output, to which both
/// warpgroups' weights go: its own from registers, the other's through shared memory. They take the
/// tokens in order, the second half a turn behind the first, so that one's softmax runs beside the
/// other's products; maxima are handed on with the weights.
template <class Shape>
class SplitBoth {
 public:
  static constexpr int kRows = Shape::kRows, kTokens = 128, kWaves = 12;
  using KvElement = typename Storage<Shape::kKvDType>::Type;

 private:
  static constexpr int kGroups = 2, kGroupWaves = 4, kGroupThreads = kGroupWaves * kLanes;
  using Layout = SwizzledKeys<Shape::kHeadDimQk, Shape::kHeadDimV, Shape::kKvDType>;
  using Q = Queries<Layout, Shape::kHeadDimQk, Shape::kQDType, kRows>;
  using Fetcher = KeyFetcher<Layout>;
  using Slots = typename Fetcher::Blocks;
  using Rows = RowPair<Layout::kOperand>;
  static constexpr int kOwnTokens = Layout::kTokens, kColumns = Shape::kHeadDimV / kGroups;
  using OwnRows = QueryRows<Layout::kBlocks>;
  using Finished = WaveOutput<kColumns, kRows>;
  static_assert(kRows == 64 && kColumns == 256);
  static_assert(Finished::kBytes * kGroups * kGroupWaves <= Q::kBytes);

 public:
  struct Shared {
    static constexpr int kComputeWaves = kGroups * kGroupWaves;
    static constexpr int kComputeRegisters = 216, kFetchRegisters = 72;
    Slots slots;
    alignas(1024) unsigned char queries[Q::kBytes];
    RowEnds<kRows> ends;
    float tops[kRows], sums[kGroups][kRows];
    int32_t raised[kGroups][kGroupWaves];
    Gate weighed[kGroups];
  };

  using Tokens = FetchedTokens<KeyRef<KvElement>>;

  TILE_FN SplitBoth(Shared& shared, Block block)
      : s_(shared),
        fetches_(block.role() == Role::fetch),
        fetcher_(shared.slots, fetches_ ? fetching_wave(Shared::kComputeWaves) : 0) {
    group_ = fetches_ ? 0 : block.wave() / kGroupWaves;
    wave_ = fetches_ ? 0 : block.wave() % kGroupWaves;
    if (first_thread(block)) {
      s_.slots.open(kGroupWaves);
      for (Gate& gate : s_.weighed) gate.open(kGroupWaves);
      publish_gates();
    }
    __syncthreads();
  }

  template <class Source>
  TILE_FN void load_queries(const Source& source, int rows) {
    if (fetches_) return;
    query_rows_ = rows;
    const int wave = group_ * kGroupWaves + wave_;
    if (!OwnRows::template copy<kGroups * kGroupWaves>(s_.queries, source, rows, wave))
      Q::load(s_.queries, nullptr, source, rows, wave, kGroups * kGroupWaves);
    publish_operand();
    meet_all();
    rows_.clear();
    end_all_products();
#pragma unroll
    for (float& value : output_) value = 0;
  }

  template <class Lookup>
  TILE_FN Tokens gather(const Lookup& lookup, int count) const {
    if (!fetches_) return {{}, count};
    return {lookup(fetcher_.token() < count ? fetcher_.token() : 0), count};
  }

  TILE_FN void fetch(const Tokens& tokens) {
    if (fetches_) fetcher_.fetch(tokens.key, tokens.count);
  }

  /// Blocks that run at once, of those that have a multiprocessor each.
  static TILE_FN int32_t blocks_at_once() {
    uint32_t multiprocessors;
    asm("mov.u32 %0, %%nsmid;" : "=r"(multiprocessors));
    return static_cast<int32_t>(multiprocessors);
  }

  /// Whether the caller has time to: the others still compute.
  TILE_FN bool foresees() const { return fetches_; }
  /// The L2 starts to read what another block will begin with.
  template <class Source>
  TILE_FN void foresee(const Source& source, int rows, const Tokens& tokens) const {
    fetcher_.template foresee<OwnRows>(source, rows, tokens.key, tokens.count);
  }

  TILE_FN void score(Tokens& tokens, const Tokens& next) {
    if (fetches_) return fetch(next);
    if (own_count(tokens) == 0) return;
    multiply_keys(tokens.count > kOwnTokens);
    tokens.lost = s_.slots.missing_of(group_) != 0;
    wait_for_products<0>();
  }

  template <class Visible>
  TILE_FN void mask(const Tokens& tokens, int first_hidden, const Visible& visible) {
    if (fetches_ || own_count(tokens) == 0) return;
    const int first = group_ * kOwnTokens, hidden = first_hidden - first;
    const uint64_t lost = s_.slots.missing_of(group_) >> own_token();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = own_row() + 8 * i;
      const int end = visible(row < query_rows_ ? row : query_rows_ - 1) - first - own_token();
#pragma unroll
      for (int word = i * 2; word < kWords; word += word % 2 == 0 ? 1 : 3) {
        const int token = word / 4 * 8 + word % 2;  // behind own_token()
        if (token >= end || (lost >> token & 1) != 0) scores_[word] = -kInfinity;
      }
    }
    if (hidden >= own_count(tokens)) return;
    meet_group();  // the scores have read the keys
    clear_special_values(hidden > 0 ? hidden : 0, own_count(tokens));
    publish_operand();
    meet_group();
  }

  TILE_FN void softmax(const Tokens& tokens, float scale) {
    const int count = own_count(tokens);
    if (fetches_ || count == 0) return;
    if (count < kOwnTokens) {
#pragma unroll
      for (int i = 0; i < kWords; ++i)
        if (own_token() + i / 4 * 8 + i % 2 >= count) scores_[i] = -kInfinity;
    }
    rows_.look(scores_, scale);
  }

  template <class Visible>
  TILE_FN void accumulate(const Tokens& tokens, int, const Visible&) {
    if (fetches_) return;
    const bool both = tokens.count > kOwnTokens;
    uint32_t weights[kWords / 2];
    end_all_products();
    if (group_ == 0) {
      const bool raised = rows_.raise();
      if (raised) rescale();
      rows_.weigh(scores_);
      give_weights(weights, raised);
      add_own(weights);
      release(0);
      if (both) {
        take_maxima(1);
        add_other_products();
        owes_ = true;
      }
    } else {
      take_maxima(0);
      add_other_products();
      if (!both) {
        wait_for_products<0>();
        release(0);
      } else {
        const bool raised = rows_.raise();
        rows_.weigh(scores_);
        give_weights(weights, raised);
        wait_for_products<0>();
        release(0);
        if (raised) rescale();
        add_own(weights);
        release(1);
      }
    }
    phases_ ^= both ? 3 : 1;
  }

  template <class Target>
  TILE_FN void store(int rows, const Target& target, float value_scale) {
    if (fetches_) return;
    end_all_products();
    release_owed();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sum = rows_.sum(i);
      if (lane() % 4 != 0) continue;
      s_.sums[group_][own_row() + 8 * i] = sum;
      if (group_ == 0) s_.tops[own_row() + 8 * i] = rows_.top(i);
    }
    meet_all();
    const int row = group_ * kGroupThreads + wave_ * kLanes + lane();
    if (row < kRows) {
      const float sum = s_.sums[0][row] + s_.sums[1][row];
      s_.ends.scale[0][row] = row_scale(sum, value_scale);
      s_.ends.set(row, rows, target, s_.tops[row] - Rows::kShift, sum);
    }
    meet_all();
    // all scores are there: the queries' room is free
    Finished::store(output_, s_.ends,
                    s_.queries + (group_ * kGroupWaves + wave_) * Finished::kBytes,
                    group_ * kColumns, wave_);
    meet_all();
  }

 private:
  static constexpr int kWords = kOwnTokens / 2;  // scores of a thread
  static constexpr int kTurn = 2 + kGroups;      // a barrier

  /// Scores of the own slot, its blocks in the order in which they arrive. Those of the second slot
  /// wait until those of the first are under way: beside each other both would be late, and neither
  /// softmax would have products beside it.
  TILE_FN void multiply_keys(bool both) {
    const int moved = group_ * Slots::kHalf;  // blocks, see Slots::block_at()
    const uint64_t queries = block_operand(shared_address(s_.queries));
    const uint64_t keys = block_operand(shared_address(s_.slots.keys[group_]));
    if (group_ == 1) meet(kTurn, kGroups * kGroupThreads);
    if (owes_ && !__all_sync(~0u, s_.slots.full[0][0].passed(phase(0)))) {
      end_all_products();  // the keys are late: the other slot is not to be
      release_owed();
    }
    begin_products();
#pragma unroll
    for (int i = 0; i < Layout::kBlocks; ++i) {
      const int block = i + (i < Slots::kHalf ? moved : i < Layout::kValueBlocks ? -moved : 0);
      if (i % Slots::kPart == 0) s_.slots.full[group_][block / Slots::kPart].wait(phase(group_));
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const int at = block * kBlockBytes + step * 32;
        multiply<Layout::kOperand>(scores_, advanced(queries, at), advanced(keys, at),
                                   i + step > 0);
      }
      if (i + 1 == Slots::kPart) {
        end_products();
        wait_for_products<1>();  // for those that were under way before
        release_owed();
      }
    }
    end_products();
    if (both && group_ == 0) announce(kTurn, kGroups * kGroupThreads);
  }

  /// At most what owes_ says is under way. The compiler is to see so wherever others than products
  /// touch the output: it would let one product wait for another else.
  static TILE_FN void end_all_products() { wait_for_products<0>(); }

  TILE_FN void meet_group() const { meet(1 + group_, kGroupThreads); }
  static TILE_FN void meet_all() { meet(1 + kGroups, kGroups * kGroupThreads); }

  /// The first of the thread's two rows, and of its tokens.
  TILE_FN int own_row() const { return 16 * wave_ + lane() / 4; }
  TILE_FN int own_token() const { return lane() % 4 * 2; }

  /// Tokens of a tile that this warpgroup has.
  TILE_FN int own_count(const Tokens& tokens) const {
    const int count = tokens.count - group_ * kOwnTokens;
    return count < 0 ? 0 : count < kOwnTokens ? count : kOwnTokens;
  }

  TILE_FN uint32_t phase(int slot) const { return phases_ >> slot & 1; }

  /// Where a slot's weights lie: in a block that scores have read, or that has no keys at all.
  TILE_FN uint32_t weights_of(int slot) const {
    return shared_address(s_.slots.keys[slot]) + Layout::kValueBlocks * kBlockBytes;
  }
  TILE_FN uint64_t values_of(int slot) const {
    return block_operand(
        shared_address(s_.slots.keys[slot]) + group_ * (Layout::kValueBlocks / 2) * kBlockBytes,
        kBlockBytes);
  }

  /// Weights as the next product's operand, for this warpgroup and for the other.
  TILE_FN void give_weights(uint32_t (&words)[kWords / 2], bool raised) {
#pragma unroll
    for (int i = 0; i < kWords / 2; ++i)
      words[i] = pack<Layout::kOperand>(scores_[2 * i], scores_[2 * i + 1]);
    const int lane = fresh_lane();
    const uint32_t to = weights_of(group_) + swizzled(16 * wave_ + lane % 16, lane / 16);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      store_matrices(to ^ i * 32, reinterpret_cast<const uint32_t (&)[4]>(words[4 * i]));
    if (raised && lane % 4 == 0) {
      s_.tops[own_row()] = rows_.top(0);
      s_.tops[own_row() + 8] = rows_.top(1);
    }
    if (lane == 0) s_.raised[group_][wave_] = raised;
    publish_operand();
    __syncwarp();
    if (lane == 0) s_.weighed[group_].arrive();
  }

  /// Waits for the other warpgroup's weights of slot `slot` and goes by its maxima.
  TILE_FN void take_maxima(int slot) {
    s_.weighed[slot].wait(phase(slot));
    if (s_.raised[slot][wave_] == 0) return;
    rows_.take(s_.tops[own_row()], s_.tops[own_row() + 8]);
    rescale();
  }

  TILE_FN void add_own(const uint32_t (&weights)[kWords / 2]) {
    const uint64_t values = values_of(group_);
    begin_products();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      add_product<Layout::kOperand>(output_, &weights[4 * step], advanced(values, step * 2048));
    end_products();
    wait_for_products<0>();
  }

  TILE_FN void add_other_products() {
    const uint64_t values = values_of(1 - group_);
    const uint64_t weights = block_operand(weights_of(1 - group_));
    begin_products();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      add_product<Layout::kOperand>(output_, advanced(weights, step * 32),
                                    advanced(values, step * 2048));
    end_products();
  }

  /// This wave has read its half of the columns of a slot for the last time.
  TILE_FN void release(int slot) {
    __syncwarp();
    if (lane() == 0) s_.slots.empty[slot][group_].arrive();
  }

  TILE_FN void release_owed() {
    if (owes_) release(1);
    owes_ = false;
  }

  TILE_FN void rescale() {
    const float factors[2] = {rows_.factor(0), rows_.factor(1)};
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) output_[i] *= factors[i / 2 % 2];
  }

  /// Zeroes the values of those tokens in [begin, end) of the own slot that have an infinity or a
  /// NaN. A row that sees such a token has a NaN for its weight already, because values are columns
  /// of keys; the others multiply the value by a weight of zero, and zero times NaN is NaN.
  TILE_FN void clear_special_values(int begin, int end) {
    constexpr uint32_t kSpecial = Layout::kOperand == abi::DType::bf16 ? 0x7f80 : 0x7c00;
    for (int token = begin + wave_; token < end; token += kGroupWaves) {
      bool special = false;
      for (int chunk = lane(); chunk < Shape::kHeadDimV / 8; chunk += kLanes) {
        const uint4 words = chunk_of(token, chunk);
        for (const uint32_t word : {words.x, words.y, words.z, words.w})
          special |= (word & kSpecial) == kSpecial || (word >> 16 & kSpecial) == kSpecial;
      }
      if (!__any_sync(~0u, special)) continue;
      for (int chunk = lane(); chunk < Shape::kHeadDimV / 8; chunk += kLanes)
        chunk_of(token, chunk) = {0, 0, 0, 0};
    }
  }
  TILE_FN uint4& chunk_of(int token, int chunk) {
    return *reinterpret_cast<uint4*>(s_.slots.keys[group_] + swizzled(token, chunk));
  }

  Shared& s_;
  const bool fetches_;
  int group_, wave_;
  bool owes_ = false;  // the second slot, while its last products are under way
  int query_rows_ = 0;
  uint32_t phases_ = 0;  // of the slots, a bit each
  Fetcher fetcher_;
  Rows rows_;
  float scores_[kWords], output_[kColumns / 2];
};

}  // namespace hipdecode::tile::nvptx
