// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <type_traits>

#include "../../concepts.h"
#include "swizzled.h"
#include "sync.h"

namespace hipdecode::tile::nvptx {

/// Two slots of 64 keys of 16 bits as blocks for the matrix unit. They arrive two blocks at a time
/// and leave by halves of the value columns, so that a slot fills up again while the rest of it is
/// still read.
/// @tparam kStored waves store the keys, else lanes copy them
template <class Layout, int kFetchWaves_ = 4, bool kStored = false>
struct KeyBlocks {
  static constexpr int kSlots = 2, kFetchWaves = kFetchWaves_;
  static constexpr int kShare = Layout::kTokens / kFetchWaves;
  static constexpr int kPart = 2, kParts = (Layout::kBlocks + kPart - 1) / kPart;
  static constexpr int kHalf = Layout::kValueBlocks / 2;  // blocks

  /// The blocks of a slot in the order in which they are fetched: first the half that is released
  /// first, last what is no values.
  static constexpr int block_at(int slot, int i) {
    if (slot == 0 || i >= Layout::kValueBlocks) return i;
    return (i + kHalf) % Layout::kValueBlocks;
  }

  static constexpr int kArrivals = kFetchWaves * (kStored ? 1 : kLanes + 1);

  alignas(1024) unsigned char keys[kSlots][Layout::kBytes];
  using Mask = std::conditional_t<kFetchWaves == 4, uint16_t, uint8_t>;
  alignas(8) Mask missing[kSlots][kFetchWaves];  // tokens that do not exist, a bit each
  Gate full[kSlots][kParts], empty[kSlots][2];

  /// @param waves that release a half
  TILE_FN void open(int waves) {
    for (int slot = 0; slot < kSlots; ++slot) {
      for (Gate& gate : full[slot]) gate.open(kArrivals);
      for (Gate& gate : empty[slot]) gate.open(waves);
    }
  }

  /// Tokens of a slot that do not exist, a bit each.
  TILE_FN uint64_t missing_of(int slot) const {
    return *reinterpret_cast<const uint64_t*>(missing[slot]);
  }
};

/// One of the waves that fill the slots, with every fourth 16 tokens of a pair of slots. Lanes copy
/// 16 bytes each, wherever the rows lie: pages of one token are as good as any.
template <class Layout>
class KeyFetcher {
 public:
  using Blocks = KeyBlocks<Layout>;

  TILE_FN KeyFetcher(Blocks& blocks, int wave) : b_(blocks), wave_(wave) {}

  /// The token of a pair whose key the lane looks up: the lower half of a wave has the first
  /// slot's.
  TILE_FN int token() const {
    return lane() / kShare * Layout::kTokens + wave_ * kShare + lane() % kShare;
  }

  /// The L2 starts to read the first `count` tokens and this wave's share of the queries.
  template <class QueryRows, class Source, class Element>
  TILE_FN void foresee(const Source& source, int rows, const KeyRef<Element>& key,
                       int count) const {
    QueryRows::template foresee<Blocks::kFetchWaves>(source, rows, wave_);
    if (token() >= count) return;
    const auto row = reinterpret_cast<uint64_t>(static_cast<const Element*>(key));
    if (row != 0 && row % 16 == 0) prefetch(row, Layout::kRowBytes);
  }

  /// Brings in `count` tokens of a pair. What does not exist reads as zeros.
  template <class Element>
  TILE_FN void fetch(const KeyRef<Element>& key, int count) {
    const bool asked = token() < count;
    uint64_t row = 0;
    if (asked) row = reinterpret_cast<uint64_t>(static_cast<const Element*>(key));
    const uint32_t lost = __ballot_sync(~0u, asked && row == 0);
#pragma unroll
    for (int slot = 0; slot < Blocks::kSlots; ++slot)
      if (count > slot * Layout::kTokens) fill(slot, row, lost >> (slot * kShare));
  }

 private:
  static constexpr int kShare = Blocks::kShare, kRowLanes = 8, kTurns = kShare * kRowLanes / kLanes;

  TILE_FN void fill(int slot, uint64_t row, uint32_t lost) {
    const int own = lane() / kRowLanes, chunk = lane() % kRowLanes;
    uint64_t from[kTurns];
    uint32_t to[kTurns];
    bool found[kTurns];
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int token = i * (kLanes / kRowLanes) + own;
      const uint64_t begin = row_of(row, slot * kShare + token);
      found[i] = begin != 0;
      from[i] = begin + chunk * 16;
      to[i] = shared_address(b_.keys[slot]) + swizzled(wave_ * kShare + token, chunk);
    }
#pragma unroll
    for (int turn = 0; turn < Layout::kBlocks; ++turn) {
      const int block = Blocks::block_at(slot, turn);
      if (block == 0 || block == Blocks::kHalf)
        b_.empty[slot][block / Blocks::kHalf].wait(phases_[slot] ^ 1);
      if (turn == 0 && lane() == 0) b_.missing[slot][wave_] = static_cast<uint16_t>(lost);
#pragma unroll
      for (int i = 0; i < kTurns; ++i)
        copy_chunk(to[i] + block * kBlockBytes, from[i] + block * 128, found[i]);
      if (block % Blocks::kPart != Blocks::kPart - 1 && block != Layout::kBlocks - 1) continue;
      Gate& gate = b_.full[slot][block / Blocks::kPart];
      gate.arrive_behind_chunks();
      if (lane() == 0) gate.arrive();  // for what it stored itself
    }
    phases_[slot] ^= 1;
  }

  /// The row that lane `from` has looked up.
  static TILE_FN uint64_t row_of(uint64_t row, int from) {
    const auto low = static_cast<uint32_t>(row), high = static_cast<uint32_t>(row >> 32);
    return uint64_t{__shfl_sync(~0u, high, from)} << 32 | __shfl_sync(~0u, low, from);
  }

  Blocks& b_;
  int wave_;
  uint32_t phases_[Blocks::kSlots] = {};
};

}  // namespace hipdecode::tile::nvptx
