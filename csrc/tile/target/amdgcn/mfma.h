// SPDX-License-Identifier: MIT
#pragma once

#include "registers.h"

/// Matrix products of one wave, one overload per type and shape: accumulator += a x b^T. A holds
/// rows of the result, B columns; lane l gives row (column) l % 32 or l % 16 and a run of the
/// depth, and gets (CDNA4 ISA guide, section 7; l is the lane):
///
///   32x32  depth run (l / 32) of 2    result register r: row 8 (r / 4) + 4 (l / 32) + r % 4
///   16x16  depth run (l / 16) of 4    result register r: row 4 (l / 16) + r
///
/// always column l % 32 or l % 16. The order of the depth is free as long as A and B share it.
namespace hipdecode::tile::amdgcn {

#if defined(__gfx950__)
TILE_FN F32x16 mma_32x32(Bf16x8 a, Bf16x8 b, F32x16 sum) {  // depth 16
  return __builtin_amdgcn_mfma_f32_32x32x16_bf16(a, b, sum, 0, 0, 0);
}
TILE_FN F32x16 mma_32x32(F16x8 a, F16x8 b, F32x16 sum) {  // depth 16
  return __builtin_amdgcn_mfma_f32_32x32x16_f16(a, b, sum, 0, 0, 0);
}
TILE_FN F32x16 mma_32x32(U32x8 a, U32x8 b, F32x16 sum) {  // fp8, depth 64; unscaled
  return __builtin_amdgcn_mfma_scale_f32_32x32x64_f8f6f4(a, b, sum, 0, 0, 0, 0, 0, 0);
}
TILE_FN F32x4 mma_16x16(Bf16x8 a, Bf16x8 b, F32x4 sum) {  // depth 32
  return __builtin_amdgcn_mfma_f32_16x16x32_bf16(a, b, sum, 0, 0, 0);
}
TILE_FN F32x4 mma_16x16(F16x8 a, F16x8 b, F32x4 sum) {  // depth 32
  return __builtin_amdgcn_mfma_f32_16x16x32_f16(a, b, sum, 0, 0, 0);
}
TILE_FN F32x4 mma_16x16(U32x8 a, U32x8 b, F32x4 sum) {  // fp8, depth 128; unscaled
  return __builtin_amdgcn_mfma_scale_f32_16x16x128_f8f6f4(a, b, sum, 0, 0, 0, 0, 0, 0);
}
#endif
TILE_FN F32x4 mma_16x16(uint64_t a, uint64_t b, F32x4 sum) {  // fp8, depth 32
  return __builtin_amdgcn_mfma_f32_16x16x32_fp8_fp8(static_cast<long>(a), static_cast<long>(b), sum,
                                                    0, 0, 0);
}

}  // namespace hipdecode::tile::amdgcn
