// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../key_format.h"
#include "convert.h"
#include "key_blocks.h"

namespace hipdecode::tile::nvptx {

/// One of the waves that fill the slots from packed keys, with every fourth 16 tokens of a pair of
/// slots. Keys are dequantised on their way through registers, where kAhead loads wait for their
/// turn, also those of the next pair: a call stores what the one before it has named. Nobody but
/// the readers fences what is stored, because a fence would wait for these loads.
template <class Layout, KeyFormat kFormat>
class PackedFetcher {
 public:
  using Blocks = KeyBlocks<Layout, true>;
  using Key = PackedKeyRef<kFormat>;

  TILE_FN PackedFetcher(Blocks& blocks, int wave) : b_(blocks), wave_(wave) {}

  /// The token of a pair whose key the lane looks up: the lower half of a wave has the first
  /// slot's.
  TILE_FN int token() const {
    return lane() / kShare * Layout::kTokens + wave_ * kShare + lane() % kShare;
  }

  /// Brings in the tokens of the call before and begins to read `count` tokens of a pair. What does
  /// not exist reads as zeros.
  TILE_FN void fetch(const Key& key, int count) {
    const int at_hand = count_;
    if (at_hand == 0) {
      take(key, count);
      aim(0);
#pragma unroll
      for (int unit = 0; unit < kAhead; ++unit) load(unit);
      return;
    }
    TILE_ROLLED
    for (int slot = 0; slot < Blocks::kSlots; ++slot) {
      if (at_hand <= slot * Layout::kTokens) break;
      const bool last = at_hand <= (slot + 1) * Layout::kTokens || slot == Blocks::kSlots - 1;
      scales_[0] = next_scales_[0], scales_[1] = next_scales_[1];
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        store(slot, unit);
        if (unit == kUnits - kAhead) {
          if (last) take(key, count);
          aim(last ? 0 : slot + 1);
        }
        load((unit + kAhead) % kUnits);
      }
      phases_ ^= 1u << slot;
    }
  }

 private:
  using Format = KeyLayout<kFormat>;
  static constexpr int kShare = Blocks::kShare;
  static constexpr bool kApart = kFormat == KeyFormat::v4;  // scales have an address of their own
  static constexpr int kGroupBlocks = Format::kGroup / 64;
  // A unit is what a wave reads at once, 16 bytes a lane: 64 fp8 of 8 tokens, then the rotary part
  // of 4 tokens.
  static constexpr int kLatentBlocks = Format::kLatent / 64;
  static constexpr int kLatentUnits = 2 * kLatentBlocks, kKeyUnits = kLatentUnits + kShare / 4;
  static constexpr int kAhead =
      kApart ? 5 : 6;  // loads under way: as many as there are registers for
  // a slot's units go round a ring of kAhead whole: the last may be nothing
  static constexpr int kUnits = (kKeyUnits + kAhead - 1) / kAhead * kAhead;
  static_assert(kShare == 16 && kKeyUnits - kAhead > 0 && Layout::kBlocks == kLatentBlocks + 1);
  static_assert(Format::kLatent % 64 == 0 && Format::kRopeOffset % 16 == 0);

  TILE_FN void take(const Key& key, int count) {
    const bool asked = token() < count;
    const bool found = asked && key.exists();
    const PackedKey at = key.unchecked();
    row_ = found ? reinterpret_cast<uint64_t>(at.data) : 0;
    if constexpr (kApart) apart_ = reinterpret_cast<uint64_t>(at.scales);
    lost_ = __ballot_sync(~0u, asked && !found);
    count_ = count;
  }

  /// What is loaded from here on is of slot `slot`. Four lanes share a token, and its scales.
  TILE_FN void aim(int slot) {
    aimed_ = slot * kShare;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int from = aimed_ + half * 8 + lane() / 4;
      const uint64_t row = of_lane(row_, from);
      from_[half] = row == 0 ? 0 : row + lane() % 4 * 16;
      if constexpr (kApart)
        next_scales_[half] = read_half(of_lane(apart_, from) + lane() % 4 * 2, row != 0);
      else
        next_scales_[half] = read_word(row + Format::kLatent + lane() % 4 * 4, row != 0);
    }
  }

  TILE_FN void load(int unit) {
    if (unit < kLatentUnits) {
      held_[unit % kAhead] = read_chunk(from_[unit % 2] + unit / 2 * 64, from_[unit % 2] != 0);
    } else if (unit < kKeyUnits) {
      const uint64_t row = of_lane(row_, aimed_ + (unit - kLatentUnits) * 4 + lane() / 8);
      held_[unit % kAhead] = read_chunk(row + Format::kRopeOffset + lane() % 8 * 16, row != 0);
    }
  }

  TILE_FN void store(int slot, int unit) {
    if (unit >= kKeyUnits) return;
    const int block = unit < kLatentUnits ? unit / 2 : kLatentBlocks;
    if (unit == 0) {
      b_.empty[slot][0].wait(parity(slot));
      if (lane() == 0) b_.missing[slot][wave_] = static_cast<uint16_t>(lost_ >> (slot * kShare));
    }
    if (unit == 2 * Blocks::kHalf) b_.empty[slot][1].wait(parity(slot));
    const uint32_t to = shared_address(b_.keys[slot]) + block * kBlockBytes;
    const uint4 held = held_[unit % kAhead];
    if (unit < kLatentUnits) {
      const uint32_t even =
          to + swizzled(wave_ * kShare + lane() / 4, lane() % 4 * 2) + unit % 2 * (8 * 128);
      const float scale = scale_of(unit % 2, block);
      store_chunk(even, scaled(held.x, held.y, scale));
      store_chunk(even ^ 16, scaled(held.z, held.w, scale));
      if (unit % 2 == 0) return;
    } else {
      const int four = unit - kLatentUnits;
      store_chunk(to + swizzled(wave_ * kShare + four * 4 + lane() / 8, lane() % 8), held);
      if (unit != kKeyUnits - 1) return;
    }
    if (block % Blocks::kPart != Blocks::kPart - 1 && block != Layout::kBlocks - 1) return;
    __syncwarp();
    if (lane() == 0) b_.full[slot][block / Blocks::kPart].arrive();
  }

  TILE_FN uint32_t parity(int slot) const { return (phases_ >> slot & 1) ^ 1; }

  /// The scale of a block's columns: of four lanes each has what two blocks need.
  TILE_FN float scale_of(int half, int block) const {
    const uint32_t word = __shfl_sync(~0u, scales_[half], (lane() & ~3) + block / 2);
    if constexpr (kApart)
      return Format::scale_value(static_cast<uint8_t>(block % 2 == 0 ? word : word >> 8));
    else
      return Format::scale_value(__uint_as_float(word));
  }
  static_assert(kApart ? kGroupBlocks == 1 : kGroupBlocks == 2);

  /// Eight fp8 times a scale, each rounded to bf16 once.
  static TILE_FN uint4 scaled(uint32_t first, uint32_t second, float scale) {
    uint32_t half[4];
    widen(first, half[0], half[1]);
    widen(second, half[2], half[3]);
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 two = widen_half(half[i]);
      words[i] = pack<abi::DType::bf16>(two.x * scale, two.y * scale);
    }
    return {words[0], words[1], words[2], words[3]};
  }

  static TILE_FN uint64_t of_lane(uint64_t value, int from) {
    const auto low = static_cast<uint32_t>(value), high = static_cast<uint32_t>(value >> 32);
    return uint64_t{__shfl_sync(~0u, high, from)} << 32 | __shfl_sync(~0u, low, from);
  }

  Blocks& b_;
  int wave_, count_ = 0;          // of tokens whose units are at hand
  uint64_t row_ = 0, apart_ = 0;  // of the token that the lane knows; 0: none
  uint64_t from_[2] = {};         // of the lane's tokens in the slot that is aimed at
  int aimed_ = 0;
  uint32_t phases_ = 0, lost_ = 0, scales_[2] = {}, next_scales_[2] = {};
  uint4 held_[kAhead] = {};
};

/// How the keys of a kernel's shape lie in shared memory, and who brings them there.
template <class Shape>
struct SwizzledSource {
  using Layout = SwizzledKeys<Shape::kHeadDimQk, Shape::kHeadDimV, Shape::kKvDType>;
  using Fetcher = KeyFetcher<Layout>;
  using Key = KeyRef<typename Storage<Shape::kKvDType>::Type>;
  // copies that a gate has counted are there for the matrix unit, too
  static constexpr bool kReaderFences = false;
  static constexpr int kComputeRegisters = 224, kFetchRegisters = 56;
};
template <class Shape>
  requires kIsPacked<Shape>
struct SwizzledSource<Shape> {
  static_assert(Shape::kKvDType == abi::DType::fp8_e4m3fn &&
                Shape::kExtraDType == abi::DType::fp8_e4m3fn && Shape::kQDType == abi::DType::bf16);
  using Layout = SwizzledKeys<Shape::kHeadDimQk, Shape::kHeadDimV, abi::DType::bf16>;
  using Fetcher = PackedFetcher<Layout, Shape::kFormat>;
  using Key = PackedKeyRef<Shape::kFormat>;
  static constexpr bool kReaderFences = true;
  static constexpr int kComputeRegisters = 216, kFetchRegisters = 72;
};

}  // namespace hipdecode::tile::nvptx
