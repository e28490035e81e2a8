// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "hk_plan.h"
#include "mfma.h"

namespace hipdecode::tile::amdgcn {

/// 16x16 matrix operations of one kind of word. Lane l: row or column l % 16, depth by l / 16;
/// every operation takes both operands from the same bytes of the same lanes, so the order of the
/// depth never matters.
template <abi::DType kType>
struct Matrix16 {
  static constexpr bool kFp8 = kIsFp8<kType>, kBf16 = kType == abi::DType::bf16;

  /// 8 bytes a lane: 32 deep in fp8, 16 deep in 16 bits.
  static TILE_FN F32x4 half(U32x2 a, U32x2 b, F32x4 c) {
    if constexpr (kFp8)
      return mma_16x16(std::bit_cast<uint64_t>(a), std::bit_cast<uint64_t>(b), c);
    else if constexpr (kBf16)
      return __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(std::bit_cast<Vec<short, 4>>(a),
                                                       std::bit_cast<Vec<short, 4>>(b), c, 0, 0, 0);
    else
      return __builtin_amdgcn_mfma_f32_16x16x16f16(std::bit_cast<Vec<_Float16, 4>>(a),
                                                   std::bit_cast<Vec<_Float16, 4>>(b), c, 0, 0, 0);
  }

  /// 16 bytes a lane: 64 deep in fp8, 32 deep in 16 bits.
  static TILE_FN F32x4 unit(U32x4 a, U32x4 b, F32x4 c) {
#if defined(__gfx950__)
    using Words = std::conditional_t<kBf16, Bf16x8, F16x8>;
    if constexpr (!kFp8) return mma_16x16(std::bit_cast<Words>(a), std::bit_cast<Words>(b), c);
#endif
    return half(a.zw, b.zw, half(a.xy, b.xy, c));
  }

  /// 32 bytes a lane.
  static TILE_FN F32x4 two_units(U32x4 a0, U32x4 a1, U32x4 b0, U32x4 b1, F32x4 c) {
#if defined(__gfx950__)
    if constexpr (kFp8)
      return mma_16x16(__builtin_shufflevector(a0, a1, 0, 1, 2, 3, 4, 5, 6, 7),
                       __builtin_shufflevector(b0, b1, 0, 1, 2, 3, 4, 5, 6, 7), c);
#endif
    return unit(a1, b1, unit(a0, b0, c));
  }

  /// Weights of four tokens of a group as words: one dword in fp8, two in 16 bits.
  static constexpr int kGroupDwords = kFp8 ? 1 : 2;
  // Powers of two up to this one are weights: fp8 ends at 448 (fn) and 240 (fnuz).
  static constexpr float kLargestPower = !kFp8 ? 8 : kType == abi::DType::fp8_e4m3fn ? 8 : 7;
  struct GroupWords {
    uint32_t at[kGroupDwords];
  };

  static TILE_FN GroupWords narrow(F32x4 p) {
    if constexpr (kFp8)
      return {{pack4_fp8(p[0], p[1], p[2], p[3])}};
    else
      return {{pack2<kType>(p[0], p[1]), pack2<kType>(p[2], p[3])}};
  }

  static constexpr uint32_t kBits = kFp8 ? 8 : 16;           // of an element
  static constexpr uint32_t kOne = kBf16 ? 0x3f80 : 0x3c00;  // 1.0, of 16-bit types

  /// 1 in the place of each element of `words` that is not finite, else 0.
  static TILE_FN U32x4 special(U32x4 words) {
    if constexpr (kType == abi::DType::fp8_e4m3fnuz) {
      // 0x80 is the only one: its low bits carry nothing into the high bit, which is set
      const U32x4 low = (words & 0x7f7f7f7fu) + 0x7f7f7f7fu;
      return (words & ~low & 0x80808080u) >> 7;
    } else {
      // all ones below the sign (fp8) or in the exponent: one more carries into the sign bit
      constexpr uint32_t kField = kFp8 ? 0x7f7f7f7fu : kBf16 ? 0x7f807f80u : 0x7c007c00u;
      constexpr uint32_t kLeast = kFp8 ? 0x01010101u : kBf16 ? 0x00800080u : 0x04000400u;
      constexpr uint32_t kSign = kFp8 ? 0x80808080u : 0x80008000u;
      return (((words & kField) + kLeast) & kSign) >> (kBits - 1);
    }
  }

  /// `words` with zeros for what is not finite.
  static TILE_FN U32x4 finite(U32x4 words) {
    const U32x4 found = special(words);
    return words & ~((found << kBits) - found);
  }
};

}  // namespace hipdecode::tile::amdgcn
