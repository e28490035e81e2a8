// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../../abi/dtype.h"

/// What the compiled-for machine has, as constants.
namespace hipdecode::tile::amdgcn {

#if defined(__gfx950__)
inline constexpr bool kGfx950 = true;
inline constexpr int kLdsBytes = 160 * 1024;
inline constexpr abi::DType kFp8 = abi::DType::fp8_e4m3fn;
#elif defined(__gfx942__)
inline constexpr bool kGfx950 = false;
inline constexpr int kLdsBytes = 64 * 1024;
inline constexpr abi::DType kFp8 = abi::DType::fp8_e4m3fnuz;
#else
#error "amdgcn target: expected --offload-arch=gfx950 or gfx942; add the machine's facts here"
#endif

inline constexpr bool kTransposingReads = kGfx950;   // ds_read_b64_tr_b8, ds_read_b64_tr_b16
inline constexpr bool kWideDirectLoads = kGfx950;    // global_load_lds_dwordx4
inline constexpr bool kScaledMatrixOps = kGfx950;    // v_mfma_*_f8f6f4
inline constexpr bool kSwapInstructions = kGfx950;   // v_permlane16_swap, v_permlane32_swap
inline constexpr bool kConvertsBf16 = kGfx950;       // v_cvt_pk_bf16_f32
inline constexpr int kDenseDepth = kGfx950 ? 2 : 1;  // 16-bit MFMA: K = 16 x this of 16x16

}  // namespace hipdecode::tile::amdgcn
