// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../key_format.h"
#include "convert.h"
#include "key_blocks.h"

namespace hipdecode::tile::nvptx {

/// One of the waves that fill the slots from packed keys, with eight tokens of every slot. Keys are
/// dequantised on their way through registers, where the next slot's wait: a call stores what the
/// one before it has named. Nobody but the readers fences what is stored, because a fence would
/// wait for the loads.
template <class Layout, KeyFormat kFormat>
class PackedFetcher {
 public:
  static constexpr int kWaves = 8;
  using Blocks = KeyBlocks<Layout, kWaves, true>;
  using Key = PackedKeyRef<kFormat>;

  TILE_FN PackedFetcher(Blocks& blocks, int wave) : b_(blocks), wave_(wave) {}

  /// The token of a slot whose key the lane looks up: four lanes share one.
  TILE_FN int token() const { return wave_ * kShare + lane() / 4; }

  /// Begins to read the first `count` tokens. What does not exist reads as zeros.
  TILE_FN void start(const Key& key, int count) {
    take(key, count);
    read_scale();
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) load(unit);
  }

  /// Brings in the tokens of the call before and begins to read the next `count`.
  TILE_FN void fetch(const Key& key, int count) {
    const uint32_t lost = lost_;
    take(key, count);
    uint32_t scales[4];
    spread_scale(scales);
    read_scale();
    fill(lost, scales);
    ++turn_;
  }

 private:
  using Format = KeyLayout<kFormat>;
  static constexpr int kShare = Blocks::kShare;
  static constexpr bool kApart = kFormat == KeyFormat::v4;  // scales have an address of their own
  // A unit is what a wave reads at once, 16 bytes a lane: 64 fp8 of 8 tokens, then the rotary part
  // of 4 tokens.
  static constexpr int kLatentUnits = Format::kLatent / 64, kUnits = kLatentUnits + kShare / 4;
  static_assert(kShare == 8 && Layout::kBlocks == kLatentUnits + 1);
  static_assert(Format::kLatent % 64 == 0 && Format::kRopeOffset % 16 == 0);

  TILE_FN void take(const Key& key, int count) {
    const int lane = fresh_lane();
    const bool asked = wave_ * kShare + lane / 4 < count;
    const bool found = asked && key.exists();
    const PackedKey at = key.unchecked();
    from_ = found ? reinterpret_cast<uint64_t>(at.data) + lane % 4 * 16 : 0;
    if constexpr (kApart) apart_ = reinterpret_cast<uint64_t>(at.scales) + lane % 4 * 2;
    // here, so that what is read is an offset away
    asm volatile("" : "+l"(from_));
    if (found) {
      // to the L2 at once: registers ask for it one after another
      prefetch_line(from_ + lane % 4 * 112);
      if (512 + lane % 4 * 128 < Format::kDataBytes) prefetch_line(from_ + 512 + lane % 4 * 112);
    }
    lost_ = __ballot_sync(~0u, __shfl_sync(~0u, asked && !found, lane * 4 % kLanes)) & 0xff;
  }

  /// Four lanes share a token's scales, too.
  TILE_FN void read_scale() {
    if constexpr (kApart)
      scale_ = read_half(apart_, from_ != 0);
    else
      scale_ = read_word(from_ + Format::kLatent - fresh_lane() % 4 * 12, from_ != 0);
  }

  TILE_FN void load(int unit) {
    if (unit < kLatentUnits) {
      held_[unit] = read_chunk(from_ + unit * 64, from_ != 0);
    } else {
      const int lane = fresh_lane();
      const uint64_t row = of_lane(from_, (unit - kLatentUnits) * 16 + lane / 8 * 4);
      held_[unit] = read_chunk(row + Format::kRopeOffset + lane % 8 * 16, row != 0);
    }
  }

  TILE_FN void fill(uint32_t lost, const uint32_t (&scales)[4]) {
    const int slot = turn_ % Blocks::kSlots, lane = fresh_lane();
    const uint32_t parity = turn_ / Blocks::kSlots % 2 ^ 1;
    const uint32_t rows = shared_address(b_.keys[slot]) + wave_ * (kShare * 128);
    const uint32_t even = rows + swizzled(lane / 4, lane % 4 * 2);
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const int block = unit < kLatentUnits ? unit : kLatentUnits;
      if (unit == 0) {
        b_.empty[slot][0].wait(parity);
        if (lane == 0) b_.missing[slot][wave_] = static_cast<uint8_t>(lost);
      }
      if (unit == Blocks::kHalf) b_.empty[slot][1].wait(parity);
      const uint4 held = held_[unit];
      if (unit < kLatentUnits) {
        const float by = scale_of(scales[block / 2], block);
        store_chunk(even + block * kBlockBytes, scaled(held.x, held.y, by));
        store_chunk((even ^ 16) + block * kBlockBytes, scaled(held.z, held.w, by));
      } else {
        const int token = (unit - kLatentUnits) * 4 + lane / 8;
        store_chunk(rows + block * kBlockBytes + swizzled(token, lane % 8), held);
      }
      load(unit);
      const bool last = unit == kUnits - 1;
      if (!last && (unit >= kLatentUnits || block % Blocks::kPart != Blocks::kPart - 1 ||
                    block / Blocks::kPart == Blocks::kParts - 1))
        continue;
      __syncwarp();
      if (lane == 0) b_.full[slot][block / Blocks::kPart].arrive();
    }
  }

  /// Of a token's four lanes each has what two blocks need.
  TILE_FN void spread_scale(uint32_t (&scales)[4]) const {
    const int first = fresh_lane() & ~3;
#pragma unroll
    for (int i = 0; i < 4; ++i) scales[i] = __shfl_sync(~0u, scale_, first + i);
  }

  /// The scale of a block's columns.
  static TILE_FN float scale_of(uint32_t word, int block) {
    if constexpr (kApart)
      return Format::scale_value(static_cast<uint8_t>(block % 2 == 0 ? word : word >> 8));
    else
      return Format::scale_value(__uint_as_float(word));
  }
  static_assert(Format::kGroup == (kApart ? 64 : 128));

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
  int wave_;
  uint32_t turn_ = 0, lost_ = 0, scale_ = 0;
  uint64_t from_ = 0, apart_ = 0;  // of the lane's token; 0: none
  uint4 held_[kUnits];
};

}  // namespace hipdecode::tile::nvptx
