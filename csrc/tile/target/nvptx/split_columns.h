// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../concepts.h"
#include "clustered_rows.h"
#include "packed_fetch.h"
#include "queries.h"
#include "row_pair.h"

namespace hipdecode::tile::nvptx {

/// Tiles of 64 packed keys for 64 query rows. One warpgroup scores and weighs all of them, and both
/// keep half of the output's columns: one by the weights in its registers, the other by those in
/// shared memory. That leaves eight waves the registers to hold a whole slot of keys which they
/// dequantise while the products of the slot before run.
template <class Shape>
class SplitColumns {
 public:
  static constexpr int kRows = Shape::kRows, kTokens = 64, kWaves = 16;
  static constexpr bool kMergesInCluster = true;

 private:
  static constexpr int kGroups = 2, kGroupWaves = 4, kGroupThreads = kGroupWaves * kLanes;
  using Layout = SwizzledKeys<Shape::kHeadDimQk, Shape::kHeadDimV, abi::DType::bf16>;
  using Q = Queries<Layout, Shape::kHeadDimQk, Shape::kQDType, kRows>;
  using Fetcher = PackedFetcher<Layout, Shape::kFormat>;
  using Slots = typename Fetcher::Blocks;
  using Rows = RowPair<Layout::kOperand>;
  using Clustered = ClusteredRows<Shape::kHeadDimV, kRows, kWaves>;
  static constexpr int kColumns = Shape::kHeadDimV / kGroups, kParts = 2;
  static_assert(kRows == 64 && kColumns == 256 && kTokens == Layout::kTokens);
  static_assert(Shape::kKvDType == abi::DType::fp8_e4m3fn &&
                Shape::kExtraDType == abi::DType::fp8_e4m3fn && Shape::kQDType == abi::DType::bf16);

 public:
  struct Shared {
    static constexpr int kComputeWaves = kGroupWaves, kScoreWaves = kGroupWaves;
    static constexpr int kComputeRegisters = 176, kScoreRegisters = 208, kFetchRegisters = 64;
    Slots slots;
    alignas(1024) unsigned char queries[Q::kBytes];
    float factors[Slots::kSlots][kRows], tops[kRows], sums[kRows];
    int32_t raised[Slots::kSlots][kGroupWaves];
    Gate weighed[Slots::kSlots];
  };

  using Tokens = FetchedTokens<typename Fetcher::Key>;

  using Share = typename Clustered::Share;

  TILE_FN SplitColumns(Shared& shared, Block block)
      : s_(shared),
        role_(block.role()),
        fetcher_(shared.slots, role_ == Role::fetch ? fetching_wave(kGroups * kGroupWaves) : 0) {
    wave_ = fetching_wave(0) % kGroupWaves;
    if (first_thread(block)) {
      s_.slots.open(kGroupWaves);
      for (Gate& gate : s_.weighed) gate.open(kGroupWaves);
      publish_gates();
    }
    __syncthreads();
  }

  template <class Source>
  TILE_FN void load_queries(const Source& source, int rows) {
    if (role_ == Role::fetch) return;
    Q::load(s_.queries, nullptr, source, rows, group() * kGroupWaves + wave_,
            kGroups * kGroupWaves);
    publish_operand();
    meet_all();
    rows_.clear();
#pragma unroll
    for (auto& part : output_)
#pragma unroll
      for (float& value : part) value = 0;
  }

  /// A tile's slots are read a tile before they are asked for.
  template <class Lookup>
  TILE_FN Tokens gather(const Lookup& lookup, int count) {
    if (role_ != Role::fetch) return {{}, count};
    const int token = fetcher_.token();
    typename Fetcher::Key key = lookup(token);
    if (looked_) key.slot = ahead_;
    looked_ = true;
    ahead_ = lookup(token + kTokens).slot;
    return {key, count};
  }

  TILE_FN void fetch(const Tokens& tokens) {
    if (role_ == Role::fetch) fetcher_.start(tokens.key, tokens.count);
  }

  TILE_FN void score(Tokens& tokens, const Tokens& next) {
    if (role_ == Role::fetch) return fetcher_.fetch(next.key, next.count);
    if (role_ != Role::score) return;
    // of the first tile; those of others are computed behind the values of the tile before
    if (turn_ == 0) {
      begin_products();
      add_scores(0, 0, Layout::kBlocks);
      end_products();
      wait_for_products<0>();
    }
    more_ = next.count > 0;
    tokens.lost = s_.slots.missing_of(slot()) != 0;
  }

  /// Rows hide no key from each other; some keys do not exist.
  template <class Visible>
  TILE_FN void mask(const Tokens&, int, const Visible&) {
    if (role_ != Role::score) return;
    const uint64_t lost = s_.slots.missing_of(slot()) >> own_token();
#pragma unroll
    for (int word = 0; word < kWords; ++word)
      if ((lost >> (word / 4 * 8 + word % 2) & 1) != 0) scores_[word] = -kInfinity;
  }

  TILE_FN void softmax(const Tokens& tokens, float scale) {
    if (role_ != Role::score) return;
    if (tokens.count < kTokens) {
#pragma unroll
      for (int i = 0; i < kWords; ++i)
        if (own_token() + i / 4 * 8 + i % 2 >= tokens.count) scores_[i] = -kInfinity;
    }
    rows_.look(scores_, scale);
  }

  template <class Visible>
  TILE_FN void accumulate(const Tokens&, int, const Visible&) {
    if (role_ == Role::fetch) return;
    if (role_ == Role::score) {
      const bool raised = rows_.raise();
      if (raised) rescale(rows_.factor(0), rows_.factor(1));
      rows_.weigh(scores_);
      uint32_t weights[kWords / 2];
      give_weights(weights, raised);
      begin_products();
#pragma unroll
      for (int step = 0; step < 4; ++step) add_values(&weights[4 * step], step);
      end_products();
      if (more_) {
        begin_products();
        add_scores(turn_ + 1, 0, Slots::kPart);
        end_products();
        wait_for_products<1>();
        release();
        begin_products();
        add_scores(turn_ + 1, Slots::kPart, Layout::kBlocks);
        end_products();
        wait_for_products<0>();
      } else {
        wait_for_products<0>();
      }
    } else {
      s_.weighed[slot()].wait(phase());
      if (s_.raised[slot()][wave_] != 0)
        rescale(s_.factors[slot()][own_row()], s_.factors[slot()][own_row() + 8]);
      const uint64_t weights = block_operand(weights_at());
      begin_products();
#pragma unroll
      for (int step = 0; step < 4; ++step) add_values(advanced(weights, step * 32), step);
      end_products();
      wait_for_products<0>();
      release();
    }
    ++turn_;
  }

  /// Lays the rows down where write() finds them.
  TILE_FN void stage(int rows) {
    if (role_ == Role::fetch) return;
    if (role_ == Role::score) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float sum = rows_.sum(i);
        if (lane() % 4 != 0) continue;
        s_.sums[own_row() + 8 * i] = sum;
        s_.tops[own_row() + 8 * i] = rows_.top(i);
      }
    }
    meet_all();
    // nobody reads the keys any more: rows pass through their place
    if (16 * wave_ >= rows) return;
    float* staged = Clustered::place(s_.slots.keys, own_row()) + group() * kColumns;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
        const float* two = &output_[j / kEach][j % kEach * 4 + 2 * i];
        *reinterpret_cast<float2*>(staged + i * 8 * Clustered::kPitch + own_token() + 8 * j) =
            float2{two[0], two[1]};
      }
  }

  /// Writes rows whose keys several blocks of a cluster have shared: see ClusteredRows.
  template <class Target>
  static TILE_FN void write(Shared& shared, Block block, int rows, const Target& target,
                            const Share& share) {
    Clustered{shared.slots.keys, shared.tops, shared.sums}.write(block.wave(), rows, target, share);
  }

 private:
  static constexpr int kWords = kTokens / 2;  // scores of a thread
  static constexpr int kEach = kColumns / 8 / kParts;
  static_assert(Clustered::kBytes <= sizeof(Slots::keys));

  static TILE_FN void meet_all() { meet(1, kGroups * kGroupThreads); }

  /// Which half of the columns is the caller's.
  TILE_FN int group() const { return role_ == Role::score ? 0 : 1; }
  TILE_FN int slot() const { return turn_ % Slots::kSlots; }
  TILE_FN uint32_t phase() const { return turn_ / Slots::kSlots % 2; }
  /// The first of the thread's two rows, and of its tokens.
  TILE_FN int own_row() const { return 16 * wave_ + lane() / 4; }
  TILE_FN int own_token() const { return lane() % 4 * 2; }

  /// Where a slot's weights lie: in a block that scores have read, or that has no keys at all.
  TILE_FN uint32_t weights_at() const {
    return shared_address(s_.slots.keys[slot()]) + Layout::kValueBlocks * kBlockBytes;
  }

  /// Weights as the next product's operand, for this warpgroup and for the other.
  TILE_FN void give_weights(uint32_t (&words)[kWords / 2], bool raised) {
#pragma unroll
    for (int i = 0; i < kWords / 2; ++i)
      words[i] = pack<Layout::kOperand>(scores_[2 * i], scores_[2 * i + 1]);
    const int lane = fresh_lane();
    const uint32_t to = weights_at() + swizzled(16 * wave_ + lane % 16, lane / 16);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      store_matrices(to ^ i * 32, reinterpret_cast<const uint32_t (&)[4]>(words[4 * i]));
    if (raised && lane % 4 == 0) {
      s_.factors[slot()][own_row()] = rows_.factor(0);
      s_.factors[slot()][own_row() + 8] = rows_.factor(1);
    }
    if (lane == 0) s_.raised[slot()][wave_] = raised;
    publish_operand();
    __syncwarp();
    if (lane == 0) s_.weighed[slot()].arrive();
  }

  /// This wave has read its half of the columns of a slot for the last time.
  TILE_FN void release() {
    __syncwarp();
    if (lane() == 0) s_.slots.empty[slot()][group()].arrive();
  }

  /// scores += queries x keys over some blocks of columns; the first begins them.
  TILE_FN void add_scores(uint32_t turn, int first, int end) {
    const uint32_t slot = turn % Slots::kSlots, phase = turn / Slots::kSlots % 2;
    const uint64_t queries = block_operand(shared_address(s_.queries));
    const uint64_t keys = block_operand(shared_address(s_.slots.keys[slot]));
#pragma unroll
    for (int part = first / Slots::kPart; part * Slots::kPart < end; ++part)
      s_.slots.full[slot][part].wait(phase);
    publish_operand();  // once: it waits for whatever the thread has under way
#pragma unroll
    for (int block = first; block < end; ++block) {
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const int at = block * kBlockBytes + step * 32;
        multiply<Layout::kOperand>(scores_, advanced(queries, at), advanced(keys, at),
                                   block + step > 0);
      }
    }
  }

  /// output += weights x values of 16 tokens.
  template <class Weights>
  TILE_FN void add_values(Weights weights, int step) {
    const uint32_t values =
        shared_address(s_.slots.keys[slot()]) + group() * (Layout::kValueBlocks / 2) * kBlockBytes;
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      add_product<Layout::kOperand>(
          output_[part], weights,
          advanced(block_operand(values, kBlockBytes), step * 2048 + part * 2 * kBlockBytes));
  }

  TILE_FN void rescale(float first, float second) {
#pragma unroll
    for (auto& part : output_)
#pragma unroll
      for (int i = 0; i < kColumns / 2 / kParts; ++i) part[i] *= i / 2 % 2 == 0 ? first : second;
  }

  Shared& s_;
  const Role role_;
  int wave_;
  uint32_t turn_ = 0;  // tiles done
  Fetcher fetcher_;
  bool looked_ = false, more_ = false;  // a tile follows
  uint32_t ahead_ = 0;                  // a slot of the next tile
  Rows rows_;
  float scores_[kWords], output_[kParts][kColumns / 2 / kParts];
};

}  // namespace hipdecode::tile::nvptx
