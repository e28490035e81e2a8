// SPDX-License-Identifier: MIT
#pragma once

#include "lds.h"
#include "mfma.h"

namespace hipdecode::tile::amdgcn {

#if defined(__gfx950__)
/// What a 32x32 product takes of one element type: the operand registers, how they are read from a
/// KeyTile by rows and by columns, and how weights become one.
///
/// A lane that got the scores of a block of 32 tokens from mma_32x32 has, of its query row, tokens
/// 8 g + 4 h + 0 ... 3 in registers 4 g ... 4 g + 3 (h = lane / 32). As the weights of the next
/// product they stay where they are; the values are read in that order of the depth instead.
template <abi::DType kType>
struct Operand32 {  // bf16, fp16: depth 16
  using Register = std::conditional_t<kType == abi::DType::bf16, Bf16x8, F16x8>;
  static constexpr int kElementBytes = 2, kDepth = 16, kRunBytes = 16;
  static constexpr int kKeyStage = 2, kValueStage = 4;  // operands that are loaded together
  static constexpr float kWeightShift = 0, kSlack = 8;  // weights reach 2^8
  static constexpr int kWeightWords = 2;                // dwords of four weights

  static TILE_FN Register rows(uint32_t address) { return lds_read<Register>(address); }

  /// Values of 16 tokens, from column_token() and that + 8.
  template <class Keys>
  static TILE_FN Register columns(uint32_t address) {
    const U32x2 low = lds_read_columns_b16(address),
                high = lds_read_columns_b16(address + Keys::kEightTokens);
    return std::bit_cast<Register>(U32x4{low.x, low.y, high.x, high.y});
  }
  static TILE_FN uint32_t column_token(uint32_t lane) { return lane / 32 * 4 + lane % 16 / 4; }
  static TILE_FN uint32_t column_byte(uint32_t lane) { return lane / 16 % 2 * 32 + lane % 4 * 8; }

  static TILE_FN void pack(uint32_t* words, float a, float b, float c, float d) {
    words[0] = pack2<kType>(a, b);
    words[1] = pack2<kType>(c, d);
  }
  static TILE_FN Register weights(const uint32_t* words) {
    return std::bit_cast<Register>(U32x4{words[0], words[1], words[2], words[3]});
  }

  /// Whether one of two elements is an infinity or a NaN.
  static TILE_FN bool special(uint32_t word) {
    constexpr uint32_t kExponent = kType == abi::DType::bf16 ? 0x7f807f80 : 0x7c007c00;
    constexpr uint32_t kOne = kType == abi::DType::bf16 ? 0x00800080 : 0x04000400;
    return (((word & kExponent) + kOne) & 0x80008000) != 0;
  }
};

template <>
struct Operand32<kFp8> {  // depth 64
  using Register = U32x8;
  static constexpr int kElementBytes = 1, kDepth = 64, kRunBytes = 32;
  static constexpr int kKeyStage = 2, kValueStage = 2;
  static constexpr float kWeightShift = 4, kSlack = 4;  // weights reach 2^8; 448 is the most
  static constexpr int kWeightWords = 1;

  static TILE_FN Register rows(uint32_t address) {
    const auto low = lds_read<U32x4>(address), high = lds_read<U32x4>(address + 16);
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
  }

  /// Values of 64 tokens: 16 at a time from column_token().
  template <class Keys>
  static TILE_FN Register columns(uint32_t address) {
    const U32x2 a = lds_read_columns_b8(address),
                b = lds_read_columns_b8(address + Keys::kGroupOffset),
                c = lds_read_columns_b8(address + 2 * Keys::kGroupOffset),
                d = lds_read_columns_b8(address + 3 * Keys::kGroupOffset);
    return Register{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y};
  }
  static TILE_FN uint32_t column_token(uint32_t lane) {
    const uint32_t row = lane % 16 / 2;
    return lane / 32 * 4 + row % 4 + row / 4 * 8;
  }
  static TILE_FN uint32_t column_byte(uint32_t lane) { return lane / 16 % 2 * 16 + lane % 2 * 8; }

  static TILE_FN void pack(uint32_t* words, float a, float b, float c, float d) {
    words[0] = pack4_fp8(a, b, c, d);
  }
  static TILE_FN Register weights(const uint32_t* words) {
    return Register{words[0], words[1], words[2], words[3], words[4], words[5], words[6], words[7]};
  }

  /// Whether one of four elements is a NaN; e4m3fn has no infinity.
  static TILE_FN bool special(uint32_t word) {
    return (((word & 0x7f7f7f7f) + 0x01010101) & 0x80808080) != 0;
  }
};

/// Uses all of kCount operands, each loaded one stage of kGroup ahead. A stage uses what it loaded
/// last first: one wait covers the others.
template <class Register, int kCount, int kGroup, class Load, class Use>
TILE_FN void pipelined(const Load& load, const Use& use) {
  static_assert(kCount % kGroup == 0);
  Register ring[2][kGroup];
  unrolled<kGroup>([&](auto i) { ring[0][i] = load(i); });
  unrolled<kCount / kGroup>([&](auto stage) {
    constexpr int kNow = stage % 2, kFirst = stage * kGroup, kNext = kFirst + kGroup;
    pipeline_stage();
    if constexpr (kNext < kCount)
      unrolled<kGroup>([&](auto i) { ring[1 - kNow][i] = load(Constant<kNext + i>{}); });
    pipeline_stage();
    unrolled<kGroup>([&](auto i) {
      constexpr int kLast = kGroup - 1 - i;
      use(Constant<kFirst + kLast>{}, ring[kNow][kLast]);
    });
  });
}
#endif

}  // namespace hipdecode::tile::amdgcn
