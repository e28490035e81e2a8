// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../key_format.h"
#include "hk_fetch.h"

namespace hipdecode::tile::amdgcn {

/// Packed keys, dequantised on their way through registers: 16 bytes of fp8 become 32 of bf16 times
/// the scale of their group, rotary columns stay what they are. A lane's 16 bytes have one scale.
template <class Shape>
  requires kIsPacked<Shape>
struct HkFetch<Shape, false> {
  using P = HkPlan<Shape>;
  using Layout = KeyLayout<Shape::kFormat>;
  using Key = PackedKeyRef<Shape::kFormat>;
  static constexpr int kLatentChunks = Layout::kLatent / 64;
  static constexpr int kRopeGap = Layout::kRopeOffset - Layout::kLatent;  // bytes between the parts
  static constexpr bool kMixed = Shape::kKvDType != Shape::kExtraDType;
  static constexpr bool kPowerOfTwo = Shape::kFormat == KeyFormat::v4;
  static_assert(Layout::kLatent % 64 == 0 && P::kSourceRowBytes % 64 == 0);
  static_assert(!kMixed || Shape::kExtraDType == abi::DType::fp8_e4m3fn, "of an fnuz machine");

  HkFetchPlace<Shape> place;
  static constexpr bool kApart =
      Shape::kFormat == KeyFormat::v4;  // scales have an address of their own
  const char* source[P::kOwn];
  const char* scales[kApart ? P::kOwn : 1];
  bool foreign[P::kOwn];  // a key of the other flavour
  U32x4 stage[P::kOwn][P::kTurns];
  float scale[P::kOwn][P::kTurns];
  uint32_t wide, plain;  // LDS offsets of this lane's first unit in a group, widened or not

  TILE_FN HkFetch(int row_wave, uint32_t lane) : place(row_wave, lane / 4, lane % 4), source() {
    const uint32_t token = lane / 4, unit = lane % 4;
    const uint32_t row =
        token * P::kTokenPitch + static_cast<uint32_t>(place.group * P::kGroupPitch);
    wide = recomputed(row + unit / 2 * P::kChunkPitch + 16 * (unit % 2 * 2 ^ P::twist(token)));
    plain = recomputed(row + kLatentChunks * P::kChunkPitch + 16 * (unit ^ P::twist(token)));
  }

  TILE_FN bool aim(uint32_t, const Key& key, bool exists) {
    Key found = key;
    found.slot = recomputed(key.slot);
    const bool known = found.exists();
    const PackedKey at = found.unchecked();
    const bool reads = exists && known;
    const char* row = reads ? reinterpret_cast<const char*>(at.data) : zeros();
    [[maybe_unused]] const char* apart = reads ? reinterpret_cast<const char*>(at.scales) : zeros();
#pragma unroll
    for (int own = 0; own < P::kOwn; ++own) {
      source[own] = place.row(row, own) + place.share * 64 + place.byte();
      if constexpr (kApart) scales[own] = place.row(apart, own);
      if constexpr (kMixed) foreign[own] = place.row(key.extra ? zeros() : nullptr, own) != nullptr;
    }
    return known;
  }

  TILE_FN bool is_latent(int turn) const {
    return (turn + 1) * P::kShare <= kLatentChunks ||
           recomputed_uniform(place.chunk(turn)) < kLatentChunks;
  }

  TILE_FN void turn(int own, int i) {
    if (!place.has(i)) return;
    const bool latent = is_latent(i);
    stage[own][i] = global_read<U32x4>(source[own] + i * P::kShare * 64 + (latent ? 0 : kRopeGap));
    if (!latent) return;
    using Scale = typename Layout::Scale;
    const int group = place.chunk(i) * 64 / Layout::kGroup;
    const char* first = scales[kApart ? own : 0];
    if constexpr (!kApart)
      first = source[own] - place.byte() + (Layout::kLatent - place.share * 64);
    const auto stored = global_read<Scale>(first + group * static_cast<int>(sizeof(Scale)));
    const float value = Layout::scale_value(stored);
    scale[own][i] = kConvertsBf16 || kPowerOfTwo || value == value ? value : __builtin_nanf("");
  }

  TILE_FN void land(uint32_t tile) {
#pragma unroll
    for (int own = 0; own < P::kOwn; ++own)
#pragma unroll
      for (int i = 0; i < P::kTurns; ++i) {
        if (!place.has(i)) continue;
        const uint32_t group = tile + static_cast<uint32_t>(own * P::kGroupPitch);
        const int chunk = place.chunk(i);
        if (is_latent(i))
          put(group + wide + static_cast<uint32_t>(2 * chunk * P::kChunkPitch), own, i);
        else
          lds_write(group + plain + static_cast<uint32_t>(chunk * P::kChunkPitch), stage[own][i]);
      }
  }

 private:
  TILE_FN void put(uint32_t to, int own, int i) const {
    U32x4 from = stage[own][i];
    float factor = scale[own][i];
    if constexpr (kMixed) {
      if (foreign[own]) {
        factor *= 2;
        from = U32x4{native(from.x), native(from.y), native(from.z), native(from.w)};
      }
    }
    lds_write(to, U32x4{widen<false>(from.x, factor), widen<true>(from.x, factor),
                        widen<false>(from.y, factor), widen<true>(from.y, factor)});
    lds_write(to ^ 16, U32x4{widen<false>(from.z, factor), widen<true>(from.z, factor),
                             widen<false>(from.w, factor), widen<true>(from.w, factor)});
  }

  /// Four codes of e4m3fn as e4m3fnuz of half the value: the NaN codes become fnuz's, and minus
  /// zero, which is that code, becomes zero.
  static TILE_FN uint32_t native(uint32_t codes) {
    const uint32_t low = codes & 0x7f7f7f7fu;
    const uint32_t zero = ~(low + 0x7f7f7f7fu) & 0x80808080u;  // where the magnitude is zero
    const uint32_t nan = (low + 0x01010101u) & 0x80808080u;
    const uint32_t whole = nan | (nan - (nan >> 7));
    return ((codes & ~zero) & ~whole) | nan;
  }

  /// Two fp8 values times a scale, rounded to bf16.
  template <bool kHigh>
  static TILE_FN uint32_t widen(uint32_t bytes, float scale) {
    const auto pair = __builtin_amdgcn_cvt_pk_f32_fp8(static_cast<int>(bytes), kHigh);
    const float low = pair[0] * scale, high = pair[1] * scale;
    if constexpr (kPowerOfTwo || !kConvertsBf16)
      return __builtin_amdgcn_perm(rounded(high), rounded(low), 0x07060302);
    else
      return __builtin_bit_cast(uint32_t,
                                Bf16x2{static_cast<__bf16>(low), static_cast<__bf16>(high)});
  }

  /// A number whose upper half is its bf16, nearest even. A NaN must leave room for the carry.
  static TILE_FN uint32_t rounded(float x) {
    const auto bits = __builtin_bit_cast(uint32_t, x);
    return kPowerOfTwo ? bits : bits + (bits >> 16 & 1) + 0x7fff;  // such a scale needs no rounding
  }
};

}  // namespace hipdecode::tile::amdgcn
