// SPDX-License-Identifier: MIT
#pragma once

#include "../../concepts.h"
#include "../../schedule.h"
#include "../../softmax.h"
#include "global.h"
#include "key_tile.h"
#include "operand.h"
#include "output_tile.h"

namespace hipdecode::tile {

/// The tiles of the persistent kernel on gfx950. Four waves, 512 registers each: 32 query rows stay
/// in registers, and so does their output, transposed: scores^T = keys x queries^T gives a lane the
/// scores of one query row, which become the weights of out^T = values^T x weights^T in place. Both
/// products read the same LDS tile of 64 keys, rows for one and columns for the other, while the
/// next tile comes in beside it. With fewer than 128 rows the waves share the columns of the output
/// (and each computes all scores of its rows).
template <class Shape>
struct DecodeTiles<Shape, Schedule::persistent> {
  static constexpr int kHeadDimQk = Shape::kHeadDimQk, kHeadDimV = Shape::kHeadDimV;
  static constexpr int kRows = Shape::kRows, kTokens = 64, kWaves = 4;
  static constexpr int kRowWaves = kRows < 32 ? 1 : kRows / 32;
  static constexpr int kMostColumnWaves = kHeadDimV / 32;
  static constexpr int kColumnWaves =
      kWaves / kRowWaves < kMostColumnWaves ? kWaves / kRowWaves : kMostColumnWaves;
  static constexpr int kColumns = kHeadDimV / kColumnWaves;  // of the output of one wave

  using Operand = amdgcn::Operand32<Shape::kQDType>;
  using Register = typename Operand::Register;
  using KvElement = typename Storage<Shape::kKvDType>::Type;
  static constexpr int kElement = Operand::kElementBytes;
  using Keys = amdgcn::KeyTile<kHeadDimQk * kElement>;
  using Output = amdgcn::OutputTile<kColumns>;

  static constexpr int kKeyBytes = kHeadDimQk * kElement;
  static constexpr int kStepBytes = 2 * Operand::kRunBytes;  // of a key row, per product
  static constexpr int kSteps = (kKeyBytes + kStepBytes - 1) / kStepBytes;
  static constexpr int kTokenBlocks = kTokens / 32, kColumnBlocks = kColumns / 32;
  static constexpr int kWeightSteps = kTokens / Operand::kDepth;
  static constexpr int kWideLanes = Keys::piece_at(0).lanes;
  static constexpr int kTailLanes = Keys::piece_at(kKeyBytes - 1).lanes;
  static_assert(Shape::kQDType == Shape::kKvDType);
  static_assert(Keys::piece_at(kHeadDimV* kElement - 1).lanes == kWideLanes);
  static_assert(kRows % 16 == 0 && kRowWaves * kColumnWaves <= kWaves);

  struct Shared {
    alignas(16) union {
      unsigned char keys[2][Keys::kBytes];
      typename Output::Shared output[kWaves];
    };
  };

  /// One tile's keys: a lane knows the key that it looked up.
  struct Tokens {
    KeyRef<KvElement> key;
    int count;
    mutable uint64_t skipped = 0;  // by lane; known when the tile has been asked for

    TILE_FN bool skips() const { return skipped != 0; }
  };

  TILE_FN DecodeTiles(Shared& shared, Block block)
      : lds_(amdgcn::lds_address(&shared)), wave_(static_cast<uint32_t>(block.wave())) {
    const uint32_t lane = amdgcn::lane_id(), half = lane / 32;
    column_wave_ = wave_ / kRowWaves;
    token_ = static_cast<int>(Keys::token_of_lane(lane, wave_));
    tile_ = lds_;
    wide_rows_ = Keys::token_offset(lane % 32, kWideLanes) + half * Operand::kRunBytes;
    tail_rows_ = Keys::token_offset(lane % 32, kTailLanes) +
                 (kTailLanes * 16 < kStepBytes ? 0 : half * Operand::kRunBytes);
    columns_ = Keys::token_offset(Operand::column_token(lane), kWideLanes) +
               Operand::column_byte(lane) +
               Keys::wide_offset(column_wave_ % kColumnWaves * kColumns * kElement);
  }

  /// Packed row r of the tile is at source(r). All of the block is done with what it did before.
  template <class Source>
  TILE_FN void load_queries(const Source& source, int rows) {
    rows_ = rows;
    static_assert(kKeyBytes % kStepBytes == 0 || kKeyBytes % kStepBytes == Operand::kRunBytes);
    amdgcn::barrier();
    tile_ = lds_;
    const auto* row = static_cast<const char*>(source(clamped_row()));
    const uint32_t run = amdgcn::recomputed(amdgcn::lane_id()) / 32 * Operand::kRunBytes;
    amdgcn::unrolled<kSteps>([&](auto step) {
      constexpr int kByte = step * kStepBytes;
      queries_[step] = Register{};
      if (kByte + kStepBytes <= kKeyBytes || run == 0)
        queries_[step] = amdgcn::global_read<Register>(row + kByte + run);
    });
    amdgcn::unrolled<kColumnBlocks>([&](auto block) { out_[block] = amdgcn::F32x16{}; });
    base_ = kLowest;
    sum_ = amdgcn::F32x2{};
  }

  /// An empty tile asks for token 0 as well: without a branch the page table's entry stays on its
  /// way until the address is needed.
  template <class Lookup>
  TILE_FN Tokens gather(const Lookup& lookup, int count) const {
    return {lookup(token_ < count ? token_ : 0), count};
  }

  TILE_FN void fetch(const Tokens& tokens) {
    load(tile_, tokens);
    meet();
  }

  TILE_FN void score(const Tokens&, const Tokens& next) {
    const uint32_t wide = tile_ + wide_rows_, tail = tile_ + tail_rows_;
    amdgcn::unrolled<kTokenBlocks>([&](auto block) { scores_[block] = amdgcn::F32x16{}; });
    amdgcn::pipelined<Register, kSteps * kTokenBlocks, Operand::kKeyStage>(
        [&](auto n) {
          constexpr int kByte = n / kTokenBlocks * kStepBytes;
          constexpr bool kIsTail = Keys::piece_at(kByte).lanes != kWideLanes;
          return Operand::rows((kIsTail ? tail : wide) + Keys::template kOffset<kByte> +
                               n % kTokenBlocks * 2 * Keys::kGroupOffset);
        },
        [&](auto n, Register keys) {
          if constexpr (n == kSteps * kTokenBlocks / 2)
            if (next.count > 0) load(other_tile(), next);
          auto& scores = scores_[n % kTokenBlocks];
          scores = amdgcn::mma_32x32(keys, queries_[n / kTokenBlocks], scores);
        });
    most_ = largest_score();
  }

  /// Rows see only their first visible(r) tokens of the tile, and no token that is skipped.
  template <class Visible>
  TILE_FN void mask(const Tokens& tokens, int, const Visible& visible) {
    hide_from(visible(clamped_row()));
    if (!tokens.skips()) return;
    const auto first = static_cast<uint32_t>(first_token());
    each_score([&](float& score, int token) {
      const uint32_t lane = Keys::lane_of_token(static_cast<uint32_t>(token) + first, wave_);
      if (tokens.skipped >> lane & 1) score = -kInfinity;
    });
    most_ = largest_score();
  }

  /// Online softmax in base 2 of scores * scale. The weights are relative to a base that follows
  /// the maximum only when a row grew by more than kSlack, so the output is rescaled rarely.
  TILE_FN void softmax(const Tokens& tokens, float scale) {
    if (tokens.count < kTokens && !hidden_) hide_from(tokens.count);
    hidden_ = false;
    const auto best = amdgcn::both_halves(most_);
    const float most = __builtin_fmaxf(best.x, best.y) * scale - Operand::kWeightShift;
    if (amdgcn::any_lane(most > base_ + Operand::kSlack)) rescale(__builtin_fmaxf(most, base_));
    const amdgcn::F32x2 scales = {scale, scale}, base = {base_, base_};
#pragma unroll
    for (int quad = 0; quad < kTokens / 8; ++quad) {
      const auto& scores = scores_[quad / 4];
      const int at = quad % 4 * 4;
      const auto low = weigh_two({scores[at], scores[at + 1]}, scales, base),
                 high = weigh_two({scores[at + 2], scores[at + 3]}, scales, base);
      sum_ += low;
      sum_ += high;
      Operand::pack(weights_ + quad * Operand::kWeightWords, low.x, low.y, high.x, high.y);
    }
  }

  /// out += weights x values, and no value that a row may not see: zero times NaN is NaN. Rows that
  /// see a token with a NaN have a NaN for its weight already, because values are columns of keys;
  /// for the others the token's values have to go.
  template <class Visible>
  TILE_FN void accumulate(const Tokens& tokens, int first_hidden, const Visible&) {
    if (first_hidden < tokens.count) clear_special_values(first_hidden, tokens.count);
    amdgcn::pipelined<Register, kColumnBlocks * kWeightSteps, kValueStage>(
        [&](auto n) { return values<n / kWeightSteps, n % kWeightSteps>(); },
        [&](auto n, Register v) {
          auto& out = out_[n / kWeightSteps];
          out = amdgcn::mma_32x32(v, weights<n % kWeightSteps>(), out);
        });
    tile_ = other_tile();
    meet();
  }

  /// Writes rows and their LSE where target(r) says.
  template <class Target>
  TILE_FN void store(int rows, const Target& target, float value_scale) {
    const auto halves = amdgcn::both_halves(sum_.x + sum_.y);
    const float sum = halves.x + halves.y, scale = row_scale(sum, value_scale);
    RowTarget to = target(clamped_row());
    if (row() >= rows || column_wave_ >= kColumnWaves) to.o = nullptr;
    if (to.o != nullptr && to.lse != nullptr && column_wave_ == 0 && amdgcn::lane_id() < 32)
      *to.lse = row_lse(base_, sum, __builtin_amdgcn_logf(sum));
    Output::store(lds_ + wave_ * sizeof(typename Output::Shared), out_, scale, to,
                  column_wave_ * kColumns);
  }

 private:
  static constexpr float kLowest = -3e38f;  // finite, so that hidden rows subtract to no NaN
  static constexpr uint32_t kValueChunks = kHeadDimV * kElement / Keys::kChunk;
  static constexpr int kMostValues = kColumnBlocks * kWeightSteps;
  static constexpr int kValueStage =
      Operand::kValueStage < kMostValues ? Operand::kValueStage : kMostValues;

  /// The next tile is there, and nobody reads the one before it any more.
  static TILE_FN void meet() {
    amdgcn::wait_for_loads<0>();
    amdgcn::barrier();
  }

  /// Starts to bring this wave's part of the keys in. Where there is no token, zeros.
  TILE_FN void load(uint32_t tile, const Tokens& tokens) const {
    auto key = tokens.key;
    key.page = amdgcn::recomputed(key.page);  // and nothing waits for it earlier
    const bool wanted = token_ < tokens.count, exists = key.exists();
    tokens.skipped = __builtin_amdgcn_ballot_w64(wanted & !exists);
    const auto row = reinterpret_cast<uintptr_t>(key.unchecked());
    const auto zeros = reinterpret_cast<uintptr_t>(amdgcn::zero_row);
    Keys::load(tile, (wanted & exists) ? row : zeros, wave_);
  }

  TILE_FN uint32_t other_tile() const { return 2 * lds_ + Keys::kBytes - tile_; }
  /// The query row whose scores the lane has.
  TILE_FN int row() const {
    return static_cast<int>(wave_ % kRowWaves * 32 + amdgcn::recomputed(amdgcn::lane_id()) % 32);
  }
  TILE_FN int clamped_row() const { return row() < rows_ ? row() : rows_ - 1; }

  template <int kBlock, int kStep>
  TILE_FN Register values() const {
    return Operand::template columns<Keys>(tile_ + columns_ +
                                           Keys::template kOffset<kBlock * 32 * kElement> +
                                           kStep * Keys::kGroupOffset);
  }
  template <int kStep>
  TILE_FN Register weights() const {
    constexpr int kWords = kTokens / 8 * Operand::kWeightWords / kWeightSteps;
    return Operand::weights(weights_ + kStep * kWords);
  }

  /// Calls f with each score of the lane and its token, less the first token of the lane.
  template <class F>
  TILE_FN void each_score(const F& f) {
    amdgcn::unrolled<kTokens / 2>([&](auto n) {
      float score = scores_[n / 16][n % 16];
      f(score, n / 4 * 8 + n % 4);
      scores_[n / 16][n % 16] = score;
    });
  }

  static TILE_FN int first_token() {
    return static_cast<int>(amdgcn::recomputed(amdgcn::lane_id()) / 32 * 4);
  }

  TILE_FN void hide_from(int end) {
    const int left = end - first_token();
    each_score([&](float& score, int token) { score = token < left ? score : -kInfinity; });
    most_ = largest_score();
    hidden_ = true;
  }

  TILE_FN float largest_score() const {
    float most = scores_[0][0];
#pragma unroll
    for (int n = 1; n < kTokens / 2; ++n) most = __builtin_fmaxf(most, scores_[n / 16][n % 16]);
    return most;
  }

  static TILE_FN amdgcn::F32x2 weigh_two(amdgcn::F32x2 scores, amdgcn::F32x2 scale,
                                         amdgcn::F32x2 base) {
    const auto power = __builtin_elementwise_fma(scores, scale, -base);
    return {__builtin_amdgcn_exp2f(power.x), __builtin_amdgcn_exp2f(power.y)};
  }

  TILE_FN void rescale(float base) {
    const float factor = __builtin_amdgcn_exp2f(base_ - base);
    const bool empty = !amdgcn::any_lane(base_ > kLowest);
    base_ = base;
    if (empty) return;  // the first tile: there is nothing yet
    sum_ *= factor;
#pragma unroll
    for (int block = 0; block < kColumnBlocks; ++block) out_[block] *= factor;
  }

  /// Zeroes the values of those tokens in [begin, end) that have an infinity or a NaN.
  TILE_FN void clear_special_values(int begin, int end) const {
    uint64_t special = 0;  // by token; the same in all waves
    for (int token = begin; token < end; ++token) {
      bool mine = false;
      if (amdgcn::lane_id() < kValueChunks) {
        const auto chunk = amdgcn::lds_read<amdgcn::U32x4>(value_chunk(token));
        mine = Operand::special(chunk.x) || Operand::special(chunk.y) ||
               Operand::special(chunk.z) || Operand::special(chunk.w);
      }
      if (amdgcn::any_lane(mine)) special |= uint64_t{1} << token;
    }
    if (special == 0) return;
    amdgcn::barrier();
    for (int token = begin; token < end; ++token)
      if (special >> token & 1 && wave_ == 0 && amdgcn::lane_id() < kValueChunks)
        amdgcn::lds_write(value_chunk(token), amdgcn::U32x4{});
    amdgcn::barrier();
  }

  /// Where chunk `lane` of the values of a token is.
  TILE_FN uint32_t value_chunk(int token) const {
    const uint32_t lane = amdgcn::lane_id();
    return tile_ + lane / kWideLanes * (kWideLanes * Keys::kSlabPitch) +
           lane % kWideLanes * Keys::kChunk +
           Keys::token_offset(static_cast<uint32_t>(token), kWideLanes);
  }

  uint32_t lds_, wave_, column_wave_;
  uint32_t tile_;                             // the LDS tile that is being computed with
  uint32_t wide_rows_, tail_rows_, columns_;  // what the lane adds to offsets in a tile
  int token_;                                 // whose key the lane looks up
  int rows_ = 0;
  bool hidden_ = false;  // tokens past the tile's count, by mask()
  Register queries_[kSteps];
  amdgcn::F32x16 scores_[kTokenBlocks], out_[kColumnBlocks];
  uint32_t weights_[kTokens / 8 * Operand::kWeightWords];
  float most_;  // of the lane's scores
  float base_;  // of the weights' exponents
  amdgcn::F32x2 sum_;
};

}  // namespace hipdecode::tile
