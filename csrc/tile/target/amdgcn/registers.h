// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "../../../abi/dtype.h"
#include "../../dtypes.h"
#include "entry.h"
#include "features.h"

namespace hipdecode::tile::amdgcn {

template <class T, int kCount>
using Vec = T __attribute__((ext_vector_type(kCount)));

using F32x2 = Vec<float, 2>;
using F32x4 = Vec<float, 4>;
using F32x16 = Vec<float, 16>;
using U32x2 = Vec<uint32_t, 2>;
using U32x4 = Vec<uint32_t, 4>;
using U32x8 = Vec<uint32_t, 8>;
using Bf16x2 = Vec<__bf16, 2>;
using Bf16x8 = Vec<__bf16, 8>;
using F16x2 = Vec<_Float16, 2>;
using F16x8 = Vec<_Float16, 8>;

TILE_FN uint32_t lane_id() { return __builtin_amdgcn_workitem_id_x() % kLanes; }

/// Two fp32 as the dword of two 16-bit elements, rounded to nearest even.
template <abi::DType kType>
TILE_FN uint32_t pack2(float low, float high) {
  const F32x2 pair = {low, high};
  if constexpr (kType == abi::DType::bf16)
    return std::bit_cast<uint32_t>(__builtin_convertvector(pair, Bf16x2));
  else
    return std::bit_cast<uint32_t>(__builtin_convertvector(pair, F16x2));
}

/// Four fp32 as the dword of four fp8 of the machine's flavour.
TILE_FN uint32_t pack4_fp8(float a, float b, float c, float d) {
  int word = std::bit_cast<int>(a);  // a register that is free now: both halves are written below
  word = __builtin_amdgcn_cvt_pk_fp8_f32(a, b, word, false);
  word = __builtin_amdgcn_cvt_pk_fp8_f32(c, d, word, true);
  return static_cast<uint32_t>(word);
}

/// The same of numbers that may be larger than fp8 has: the largest stands for them.
TILE_FN uint32_t pack4_fp8_saturated(F32x4 x) {
  constexpr float kMost = kFp8 == abi::DType::fp8_e4m3fn ? 448 : 240;
#pragma unroll
  for (int i = 0; i < 4; ++i)  // as comparisons, which keep a NaN
    x[i] = x[i] > kMost ? kMost : x[i] < -kMost ? -kMost : x[i];
  return pack4_fp8(x[0], x[1], x[2], x[3]);
}

/// Controls of DPP: which lane of its row of 16 a lane reads (CDNA3 ISA guide, section 13.3.9).
inline constexpr int kDppRowBroadcast = 0x150;  // + lane
constexpr int dpp_quad(int a, int b, int c, int d) { return a | b << 2 | c << 4 | d << 6; }

/// `value` of the lane that kCtrl names; lanes of banks (quads of a row) outside kBanks keep `old`.
template <int kCtrl, int kBanks = 0xf>
TILE_FN uint32_t dpp(uint32_t value, uint32_t old = 0) {
  return static_cast<uint32_t>(__builtin_amdgcn_update_dpp(
      static_cast<int>(old), static_cast<int>(value), kCtrl, 0xf, kBanks, kBanks == 0xf));
}

template <int kCtrl, int kBanks = 0xf>
TILE_FN uint64_t dpp64(uint64_t value, uint64_t old = 0) {
  const auto now = std::bit_cast<U32x2>(value), before = std::bit_cast<U32x2>(old);
  return std::bit_cast<uint64_t>(
      U32x2{dpp<kCtrl, kBanks>(now.x, before.x), dpp<kCtrl, kBanks>(now.y, before.y)});
}

/// `value`, of which the compiler knows nothing: what follows from it is computed here, not kept in
/// registers through a loop.
template <class T>
TILE_FN T recomputed(T value) {
  asm volatile("" : "+v"(value));
  return value;
}

/// The values of lane l and of lane l ^ 32, as {of the lower half, of the upper half}.
TILE_FN F32x2 both_halves(float value) {
#if defined(__gfx950__)
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto pair = __builtin_amdgcn_permlane32_swap(bits, bits, false, false);
  return {std::bit_cast<float>(static_cast<uint32_t>(pair[0])),
          std::bit_cast<float>(static_cast<uint32_t>(pair[1]))};
#else
  const int other =
      __builtin_amdgcn_ds_bpermute(static_cast<int>(lane_id() ^ 32) * 4, std::bit_cast<int>(value));
  const bool upper = lane_id() >= 32;
  const auto partner = std::bit_cast<float>(other);
  return {upper ? partner : value, upper ? value : partner};
#endif
}

/// Whether `condition` holds in some lane of the wave.
TILE_FN bool any_lane(bool condition) { return __builtin_amdgcn_ballot_w64(condition) != 0; }

/// f(Constant<0>), ... f(Constant<kCount - 1>): registers have no addresses, so what picks one must
/// be a constant before the optimiser looks.
template <int kValue>
using Constant = std::integral_constant<int, kValue>;
template <int kCount, class F>
TILE_FN void unrolled(const F& f) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    (f(Constant<kIndex>{}), ...);
  }(std::make_integer_sequence<int, kCount>{});
}

/// Nothing but VALU and SALU instructions may be moved across by the compiler: keeps a software
/// pipeline in the order in which it is written.
TILE_FN void pipeline_stage() { __builtin_amdgcn_sched_barrier(0x2 | 0x4 | 0x400); }

}  // namespace hipdecode::tile::amdgcn
