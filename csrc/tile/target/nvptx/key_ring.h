// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../concepts.h"
#include "../../dtypes.h"
#include "memory.h"
#include "sync.h"

namespace hipdecode::tile::nvptx {

/// Which of the waves that fetch the caller's is, behind those that compute.
TILE_FN int fetching_wave(int compute_waves) {
  return __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kLanes, 0) - compute_waves;
}

/// A tile's tokens. Fetching waves know a token's key each, the others find out from what was
/// fetched which are missing.
template <class Key>
struct FetchedTokens {
  Key key;
  int count;
  bool lost = false;  // some of those that the asking warpgroup has, by score()

  TILE_FN bool skips() const { return lost; }
};

/// Keys of 64 tokens as they lie in shared memory: rows as in global memory, 16 bytes apart, so
/// that the eight rows of a matrix fall into different banks whichever way it is read.
template <int kHeadDim, abi::DType kType>
struct Keys {
  static constexpr bool kFp8 = kIsFp8<kType>, kSwizzled = false;
  static constexpr abi::DType kOperand = kFp8 ? abi::DType::fp16 : kType;  // what is computed with
  static constexpr int kElement = kFp8 ? 1 : 2;
  static constexpr int kTokens = 64, kRowBytes = kHeadDim * kElement, kPitch = kRowBytes + 16;
  static constexpr int kBytes = kTokens * kPitch;
  static_assert(kPitch / 16 % 2 == 1);
};

/// Which slot of a ring comes next, and which time round it is.
struct Cursor {
  int slot = 0;
  uint32_t parity = 0;

  template <int kSlots>
  TILE_FN void advance() {
    const bool last = slot == kSlots - 1;
    slot = last ? 0 : slot + 1;
    parity ^= last;
  }
};

/// Slots that kFetchWaves waves fill and kComputeWaves waves empty, all of them every slot.
/// @tparam kOnce no other block reads these keys: they wait in the L2 for a slot, then leave it
template <class Keys, int kSlots, int kFetchWaves, int kComputeWaves, bool kOnce = false>
struct KeyRing {
  static constexpr int kShare = Keys::kTokens / kFetchWaves;  // tokens that a wave brings in
  static constexpr uint32_t kAll = kShare == kLanes ? ~0u : (1u << kShare) - 1;
  static_assert(kShare <= kLanes && (kFetchWaves == 2 || kFetchWaves == 4));

  alignas(128) unsigned char keys[kSlots][Keys::kBytes];
  alignas(16) uint32_t missing[kSlots][4];  // tokens that do not exist, a bit each
  Gate full[kSlots], empty[kSlots];

  TILE_FN void open() {
    for (int i = 0; i < kSlots; ++i) {
      full[i].open(kFetchWaves);
      empty[i].open(kComputeWaves);
    }
  }

  /// Brings in the tokens below `count`, of which each lane from `lane_from` on has one's key. What
  /// is not brought in reads as zeros.
  template <class Element>
  TILE_FN void fill(Cursor& cursor, int wave, const KeyRef<Element>& key, int count,
                    int lane_from = 0) {
    const int own = count - wave * kShare, run = own < kShare ? own : kShare;
    const int place = lane() - lane_from;
    const bool asked = place >= 0 && place < run;
    const uint32_t to = shared_address(keys[cursor.slot]) + wave * kShare * Keys::kPitch;
    const bool late = kOnce && !empty[cursor.slot].passed(cursor.parity ^ 1);
    if (late) bring_near(key, asked, lane_from);
    empty[cursor.slot].wait(cursor.parity ^ 1);
    // while the page may still be on its way
    if (own < kShare) clear(to, own > 0 ? own * Keys::kPitch : 0, kShare * Keys::kPitch);
    const auto row = reinterpret_cast<uint64_t>(static_cast<const Element*>(key));
    const uint32_t found = __ballot_sync(~0u, asked && row != 0) >> lane_from;
    const uint32_t lost = __ballot_sync(~0u, asked && row == 0) >> lane_from;
    TILE_ROLLED
    for (uint32_t left = lost; left != 0; left &= left - 1) {
      const int n = __ffs(static_cast<int>(left)) - 1;
      clear(to, n * Keys::kPitch, (n + 1) * Keys::kPitch);
    }
    __syncwarp();
    Gate& gate = full[cursor.slot];
    if (lane() == 0) {
      missing[cursor.slot][wave] = lost;
      gate.arrive_expecting(__popc(found) * Keys::kRowBytes);
    }
    __syncwarp();
    const uint64_t policy = l2_policy<kOnce>();
    // rows at one distance from each other, as in a page: one lane asks for all
    const uint64_t first = __shfl_sync(~0u, row, lane_from),
                   step = __shfl_sync(~0u, row, lane_from + 1) - first;
    if (lost == 0 && __all_sync(~0u, !asked || row == first + place * step)) {
      copy_rows(run, to, Keys::kPitch, first, step, Keys::kRowBytes, gate, policy);
      cursor.advance<kSlots>();
      return;
    }
    const auto low = static_cast<uint32_t>(row), high = static_cast<uint32_t>(row >> 32);
#pragma unroll 2
    for (int n = 0; n < kShare; ++n) {
      const uint64_t from = uint64_t{__shfl_sync(~0u, high, lane_from + n)} << 32 |
                            __shfl_sync(~0u, low, lane_from + n);
      copy(to + n * Keys::kPitch, from, Keys::kRowBytes, gate, (found >> n & 1) != 0, policy);
    }
    cursor.advance<kSlots>();
  }

  TILE_FN bool is_missing(int slot, int token) const {
    return missing[slot][token / kShare] >> token % kShare & 1;
  }
  TILE_FN bool any_missing(int slot) const {
    const uint4 bits = *reinterpret_cast<const uint4*>(missing[slot]);
    return (kFetchWaves == 2 ? bits.x | bits.y : bits.x | bits.y | bits.z | bits.w) != 0;
  }

  /// The calling wave has read the slot for the last time.
  TILE_FN void release(Cursor& cursor) {
    __syncwarp();
    if (lane() == 0) empty[cursor.slot].arrive();
    cursor.advance<kSlots>();
  }

 private:
  /// While there is no room for them the rows wait in the L2. Those that follow one another, as in
  /// a page, are asked for at once, which DRAM answers faster than the row by row of a copy.
  template <class Element>
  static TILE_FN void bring_near(const KeyRef<Element>& key, bool asked, int lane_from) {
    const auto row = reinterpret_cast<uint64_t>(static_cast<const Element*>(key));
    const uint32_t found = __ballot_sync(~0u, asked && row != 0);
    const uint64_t first = __shfl_sync(~0u, row, lane_from);
    const bool follows = !asked || row == first + (lane() - lane_from) * Keys::kRowBytes;
    if (__all_sync(~0u, found >> lane_from == kAll && follows)) {
      if (lane() == 0) prefetch(first, kShare * Keys::kRowBytes);
    } else if (!Keys::kFp8 && (found >> lane() & 1) != 0) {  // of shorter rows it costs more
      prefetch(row, Keys::kRowBytes);
    }
  }

  /// Zeroes bytes [begin, end) of a slot's share.
  static TILE_FN void clear(uint32_t to, int begin, int end) {
#pragma unroll 2
    for (int i = begin + lane() * 16; i < end; i += kLanes * 16)
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to + i), "r"(0) : "memory");
  }
};

/// Zeroes the values of those tokens in [begin, end) of a slot that have an infinity or a NaN. A
/// row that sees such a token has a NaN for its weight already, because values are columns of keys;
/// the others multiply the value by a weight of zero, and zero times NaN is NaN.
template <class Keys, int kHeadDimV>
TILE_FN void clear_special_values(unsigned char* slot, int begin, int end, int wave, int waves) {
  constexpr int kWords = kHeadDimV * Keys::kElement / 4;
  // exponents of all ones; e4m3fn has only the NaN, of seven ones
  constexpr uint32_t kSpecial = Keys::kFp8                           ? 0x7f
                                : Keys::kOperand == abi::DType::bf16 ? 0x7f80
                                                                     : 0x7c00;
  for (int token = begin + wave; token < end; token += waves) {
    auto* words = reinterpret_cast<uint32_t*>(slot + token * Keys::kPitch);
    bool special = false;
    for (int i = lane(); i < kWords; i += kLanes) {
#pragma unroll
      for (int at = 0; at < 32; at += 8 * Keys::kElement)
        special |= (words[i] >> at & kSpecial) == kSpecial;
    }
    if (!__any_sync(~0u, special)) continue;
    for (int i = lane(); i < kWords; i += kLanes) words[i] = 0;
  }
}

}  // namespace hipdecode::tile::nvptx
