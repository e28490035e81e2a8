// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../concepts.h"
#include "key_ring.h"
#include "output.h"
#include "products.h"
#include "queries.h"

namespace hipdecode::tile::nvptx {

/// Tiles of 64 tokens for 64 query rows. One warpgroup computes the scores of every tile; two
/// others take half of the rows' weights and of the output's columns each. So the matrix unit
/// always has one product to do while the waves of the other are busy with exponents.
template <class Shape>
class SplitRoles {
 public:
  static constexpr int kRows = Shape::kRows, kTokens = 64, kWaves = 16;
  using KvElement = typename Storage<Shape::kKvDType>::Type;

 private:
  static constexpr int kGroups = 2, kGroupWaves = 4, kFetchWaves = 4;
  static constexpr int kValueWaves = kGroups * kGroupWaves, kValueThreads = kValueWaves * kLanes;
  static constexpr int kMeetingWaves = kValueWaves + kGroupWaves;  // all that do not fetch
  static constexpr int kColumns = Shape::kHeadDimV / kGroups, kBlocks = kColumns / 64;
  static constexpr int kSlots = 3, kBuffers = 2;
  using Layout = Keys<Shape::kHeadDimQk, Shape::kKvDType>;
  using Q = Queries<Layout, Shape::kHeadDimQk, Shape::kQDType, kRows>;
  static constexpr int kSteps = Shape::kHeadDimQk / 16;
  using Scores = ScoreProduct<Layout, Shape::kHeadDimQk, kRows, kSteps % 6 == 0 ? 6 : 4>;
  // Batch of a tile's scores, the last, behind which the values of the tile before begin. Earlier,
  // two warpgroups of three would take the matrix unit from the scores, which weights wait for, and
  // leave it idle while those are handed over.
  static constexpr int kAllows = Scores::kBatches - 1;
  using Values = ValueProduct<Layout, kRows, kBlocks>;
  using Ring = KeyRing<Layout, kSlots, kFetchWaves, kValueWaves>;
  static constexpr int kWeightBytes = kTokens * kRows * 2;
  static constexpr int kValues = kRows / 4;  // rows that a thread has products of, two words each
  // of a score row in shared memory, words: both who writes and who reads find banks of their own
  static constexpr int kPitch = kTokens + 4;
  static constexpr int kShare = kRows / kValueWaves;  // rows that a wave has the weights of
  static constexpr int kRowLanes = kLanes / kShare;   // lanes that share a row
  static constexpr int kOwn = kTokens / kRowLanes;    // weights of a lane
  // weights are relative to a base below the maximum, which a row raises by more than kSlack only
  static constexpr float kSlack = 4, kShift = 11, kNothing = -0x1p126f;
  static_assert(Layout::kFp8 && kRows == 64);
  static_assert(sizeof(RowEnds<kRows>) <= Q::kBytes);

 public:
  struct Shared {
    static constexpr int kComputeWaves = kValueWaves, kScoreWaves = kGroupWaves;
    static constexpr int kComputeRegisters = 184, kScoreRegisters = 120, kFetchRegisters = 24;
    Ring ring;
    union alignas(128) {
      unsigned char queries[Q::kBytes];
      RowEnds<kRows> ends;  // of a work that is over
    };
    alignas(128) unsigned char weights[kBuffers][kWeightBytes];
    alignas(16) float scores[kRows][kPitch];
    float factors[kBuffers][kRows], unscale[Q::kScaled ? kRows : 1];
    // two: the scores may be a tile further when a value wave looks
    Gate scored, taken, allowed[kBuffers];
  };

  using Tokens = FetchedTokens<KeyRef<KvElement>>;

  TILE_FN SplitRoles(Shared& shared, Block block) : s_(shared), role_(block.role()) {
    const int wave = role_ == Role::compute ? block.wave() : fetching_wave(0);
    group_ = wave / kGroupWaves;
    wave_ = wave % kGroupWaves;
    if (first_thread(block)) {
      s_.ring.open();
      s_.scored.open(kGroupWaves);
      s_.taken.open(kValueWaves);
      for (Gate& gate : s_.allowed) gate.open(kGroupWaves);
      publish_gates();
    }
    __syncthreads();
  }

  template <class Source>
  TILE_FN void load_queries(const Source& source, int rows) {
    if (fetches()) return;
    query_rows_ = rows;
    Q::load(s_.queries, s_.unscale, source, rows, group_ * kGroupWaves + wave_, kMeetingWaves);
    publish_operand();
    meet_all();
    if (scores()) return;
    base_ = kNothing, sum_ = 0;
#pragma unroll
    for (auto& block : output_)
#pragma unroll
      for (float& value : block) value = 0;
  }

  template <class Lookup>
  TILE_FN Tokens gather(const Lookup& lookup, int count) const {
    if (!fetches()) return {{}, count};
    const int token = wave_ * Ring::kShare + lane() % Ring::kShare;
    return {lookup(token < count ? token : 0), count};
  }

  TILE_FN void fetch(const Tokens& tokens) {
    if (fetches() && tokens.count > 0) s_.ring.fill(tile_, wave_, tokens.key, tokens.count);
  }

  TILE_FN void score(Tokens& tokens, const Tokens& next) {
    if (fetches()) return fetch(next);
    if (!scores()) return;
    // late keys keep no values waiting
    if (owes_ && !__all_sync(~0u, s_.ring.full[tile_.slot].passed(tile_.parity))) allow();
    s_.ring.full[tile_.slot].wait(tile_.parity);
    tokens.lost = s_.ring.any_missing(tile_.slot);
    Scores().run(scores_, shared_address(s_.ring.keys[tile_.slot]),
                 operand(shared_address(s_.queries), kChunkBytes<kRows>), wave_, [&](int batch) {
                   if (batch == kAllows && owes_) allow();
                 });
    last_ = next.count == 0;
  }

  template <class Visible>
  TILE_FN void mask(const Tokens&, int, const Visible& visible) {
    if (!scores()) return;
    const int lane = fresh_lane(), token = own_token(lane);
    const bool lost[2] = {s_.ring.is_missing(tile_.slot, token),
                          s_.ring.is_missing(tile_.slot, token + 8)};
    int own_end[2];  // each lane asks for two of the 64 rows
    for (int i = 0; i < 2; ++i) {
      const int row = lane + i * 32;
      own_end[i] = visible(row < query_rows_ ? row : query_rows_ - 1);
    }
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      const int end = __shfl_sync(~0u, own_end[v / (kValues / 2)], row_of(v, lane) % 32);
      hide(v, lost[0] || token >= end, lost[1] || token + 8 >= end);
    }
  }

  TILE_FN void softmax(const Tokens& tokens, float scale) {
    if (fetches()) return;
    if (scores())
      give_scores(tokens.count);
    else
      weigh(scale);
    turn_ ^= 1;
  }

  template <class Visible>
  TILE_FN void accumulate(const Tokens& tokens, int first_hidden, const Visible&) {
    if (fetches()) return;
    if (scores()) {
      owes_ = true;
      if (last_) allow();
      return tile_.template advance<kSlots>();
    }
    if (first_hidden < tokens.count) {
      clear_special_values<Layout, Shape::kHeadDimV>(s_.ring.keys[tile_.slot], first_hidden,
                                                     tokens.count, group_ * kGroupWaves + wave_,
                                                     kValueWaves);
      meet_values();
    }
    add_values();
  }

  template <class Target>
  TILE_FN void store(int rows, const Target& target, float value_scale) {
    if (fetches()) return;
    if (!scores()) {
      finish_row(rows, target, value_scale);
      meet_values();
#pragma unroll
      for (int v = 0; v < kValues; ++v) scale_row(v, s_.ends.scale[0][row_of(v, lane())]);
      Output<Layout, kBlocks, kRows>::store(output_, s_.ends, group_ * kColumns, wave_);
    }
    meet_all();
  }

 private:
  TILE_FN bool fetches() const { return role_ == Role::fetch; }
  TILE_FN bool scores() const { return role_ == Role::score; }

  static TILE_FN void meet_values() { meet(1, kValueThreads); }
  static TILE_FN void meet_all() { meet(2, kMeetingWaves * kLanes); }

  /// The warpgroups of values meet. @return whether something holds for one of their threads
  static TILE_FN bool meet_any(bool own) {
    uint32_t any;
    asm volatile(
        "{\n.reg .pred own, any;\nsetp.ne.b32 own, %1, 0;\n"
        "bar.red.or.pred any, 1, %2, own;\nselp.b32 %0, 1, 0, any;\n}"
        : "=r"(any)
        : "r"(static_cast<uint32_t>(own)), "n"(kValueThreads)
        : "memory");
    return any != 0;
  }

  /// Where the products of value v are: of two tokens or columns, the second two words further on.
  static constexpr int low(int value) { return value / 2 * 4 + value % 2; }
  static TILE_FN int row_of(int value, int lane) {
    return value / 2 * 8 + lane % 4 * 2 + value % 2;
  }
  /// The first of the two tokens that a thread has scores of.
  TILE_FN int own_token(int lane) const { return 16 * wave_ + lane / 4; }
  /// The row that a thread weighs some tokens of.
  TILE_FN int own_row() const {
    const int place = lane() / kRowLanes;
    return (group_ * kGroupWaves + wave_) * kShare + place / 2 + place % 2 * (kShare / 2);
  }

  TILE_FN void hide(int value, bool first, bool second) {
    if (first) scores_[low(value)] = -kInfinity;
    if (second) scores_[low(value) + 2] = -kInfinity;
  }

  TILE_FN void give_scores(int count) {
    const int token = own_token(lane());
    if (count < kTokens) {
#pragma unroll
      for (int v = 0; v < kValues; ++v) hide(v, token >= count, token + 8 >= count);
    }
    s_.taken.wait(turn_ ^ 1);
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      float* row = s_.scores[row_of(v, lane())];
      row[token] = scores_[low(v)];
      row[token + 8] = scores_[low(v) + 2];
    }
    __syncwarp();
    if (lane() == 0) s_.scored.arrive();
  }

  /// Scores become weights. A row's base is raised where one of them is too far above it.
  TILE_FN void weigh(float scale) {
    const int row = own_row(), part = lane() % kRowLanes;
    const float exact = Q::kScaled ? scale * s_.unscale[Q::kScaled ? row : 0] : scale;
    const float factor = exact == 0 ? 0x1p-126f : exact;  // hidden scores remain -inf
    s_.scored.wait(turn_);
    float weights[kOwn], most = -kInfinity;
#pragma unroll
    for (int i = 0; i < kOwn; i += 4) {
      const float4 four = *reinterpret_cast<float4*>(&s_.scores[row][4 * (i + part)]);
      weights[i] = four.x * factor, weights[i + 1] = four.y * factor;
      weights[i + 2] = four.z * factor, weights[i + 3] = four.w * factor;
      most = fmaxf(most,
                   fmaxf(fmaxf(weights[i], weights[i + 1]), fmaxf(weights[i + 2], weights[i + 3])));
    }
    __syncwarp();
    if (lane() == 0) s_.taken.arrive();
#pragma unroll
    for (int distance = 1; distance < kRowLanes; distance *= 2)
      most = fmaxf(most, __shfl_xor_sync(~0u, most, distance));
    raised_ = most - base_ > kShift + kSlack;
    const float base = raised_ ? most - kShift : base_;
    const float rescale = raised_ ? exp2(base_ - base) : 1.0f;
    base_ = base;
    if (part == 0) s_.factors[buffer_.slot][row] = rescale;
    sum_ *= rescale;
    unsigned char* to =
        s_.weights[buffer_.slot] + part / 2 * kChunkBytes<kRows> + row * 16 + part % 2 * 8;
#pragma unroll
    for (int i = 0; i < kOwn; i += 4) {
      float* w = &weights[i];
#pragma unroll
      for (int n = 0; n < 4; ++n) w[n] = exp2(w[n] - base);
      sum_ += (w[0] + w[1]) + (w[2] + w[3]);
      *reinterpret_cast<uint2*>(to + i / 2 * kChunkBytes<kRows>) = {
          pack<Layout::kOperand>(w[0], w[1]), pack<Layout::kOperand>(w[2], w[3])};
    }
    publish_operand();
  }

  TILE_FN void add_values() {
    Values values;
    values.start(shared_address(s_.ring.keys[tile_.slot]), group_ * kColumns, wave_);
    if (meet_any(raised_)) {
#pragma unroll
      for (int v = 0; v < kValues; ++v) scale_row(v, s_.factors[buffer_.slot][row_of(v, lane())]);
    }
    s_.allowed[buffer_.slot].wait(buffer_.parity);
    values.run(output_, operand(shared_address(s_.weights[buffer_.slot]), kChunkBytes<kRows>));
    s_.ring.release(tile_);
    wait_for_products<0>();
    buffer_.template advance<kBuffers>();
  }

  /// The values of the tile whose scores were given last may begin.
  TILE_FN void allow() {
    __syncwarp();
    if (lane() == 0) s_.allowed[buffer_.slot].arrive();
    buffer_.template advance<kBuffers>();
    owes_ = false;
  }

  TILE_FN void scale_row(int value, float factor) {
#pragma unroll
    for (auto& block : output_) {
      block[low(value)] *= factor;
      block[low(value) + 2] *= factor;
    }
  }

  /// What the output is multiplied by at last and where it goes. The queries are not needed any
  /// more: all scores are there.
  template <class Target>
  TILE_FN void finish_row(int rows, const Target& target, float value_scale) {
    float sum = sum_;
#pragma unroll
    for (int distance = 1; distance < kRowLanes; distance *= 2)
      sum += __shfl_xor_sync(~0u, sum, distance);
    if (lane() % kRowLanes != 0) return;
    s_.ends.scale[0][own_row()] = row_scale(sum, value_scale);
    s_.ends.set(own_row(), rows, target, base_, sum);
  }

  Shared& s_;
  const Role role_;
  bool raised_ = false;
  bool owes_ = false, last_ = false;  // of scores: a tile's values wait; no tile follows
  int group_, wave_;
  int query_rows_ = 0;
  uint32_t turn_ = 0;
  float base_, sum_;
  Cursor tile_, buffer_;  // slot of the ring, of the weights
  float scores_[kRows / 2], output_[kBlocks][kRows / 2];
};

}  // namespace hipdecode::tile::nvptx
