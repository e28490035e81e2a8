// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cstdint>

#include "registers.h"

namespace hipdecode::tile::amdgcn {

/// Two of four fp8 values of the machine's flavour, the lower or the upper ones, as a dword of two
/// 16-bit elements: every fp8 value is a bf16 and an fp16 value.
template <abi::DType kType, bool kHigh>
TILE_FN uint32_t widen(uint32_t bytes) {
#if defined(__gfx950__)
  if constexpr (kType == abi::DType::bf16)
    return std::bit_cast<uint32_t>(__builtin_amdgcn_cvt_scalef32_pk_bf16_fp8(bytes, 1.0f, kHigh));
  else
    return std::bit_cast<uint32_t>(__builtin_amdgcn_cvt_scalef32_pk_f16_fp8(bytes, 1.0f, kHigh));
#else
  const auto pair = __builtin_amdgcn_cvt_pk_f32_fp8(static_cast<int>(bytes), kHigh);
  // NOTE: named first, because clang 22 takes a bit_cast of a vector's element from element 0.
  const float low = pair[0], high = pair[1];
  if constexpr (kType == abi::DType::bf16)
    return __builtin_amdgcn_perm(std::bit_cast<uint32_t>(high), std::bit_cast<uint32_t>(low),
                                 0x07060302);
  else
    return std::bit_cast<uint32_t>(__builtin_amdgcn_cvt_pkrtz(low, high));
#endif
}

}  // namespace hipdecode::tile::amdgcn
