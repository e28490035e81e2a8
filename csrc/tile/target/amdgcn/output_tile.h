// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>

#include "../../concepts.h"
#include "global.h"
#include "lds.h"

namespace hipdecode::tile::amdgcn {

#if defined(__gfx950__)
/// Writes the transposed output of one wave, 32 query rows of kColumns, through LDS, so that memory
/// sees whole rows.
template <int kColumns>
struct OutputTile {
  static constexpr int kPass = kColumns < 128 ? kColumns : 128;  // columns at a time
  static constexpr int kPitch = kPass * 4 + 16;                  // bytes; 8 rows hit 32 banks once

  struct Shared {
    uint64_t place[32];
    alignas(16) unsigned char rows[32 * kPitch];
  };

  /// @param lds  of this wave
  /// @param to   of query row lane % 32; nowhere if null
  static TILE_FN void store(uint32_t lds, const F32x16* out, float scale, const RowTarget& to,
                            uint32_t first_column) {
    const uint32_t lane = recomputed(lane_id()), rows = lds + offsetof(Shared, rows);
    const bool wide = __builtin_amdgcn_readfirstlane(static_cast<int>(to.type)) ==
                      static_cast<int>(abi::DType::fp32);
    if (lane < 32) lds_write(lds + lane * 8, reinterpret_cast<uint64_t>(to.o));
#pragma unroll
    for (int pass = 0; pass < kColumns / kPass; ++pass) {
      wave_exchange();
#pragma unroll
      for (int quad = 0; quad < kPass / 8; ++quad) {
        const auto& block = out[(pass * kPass + quad * 8) / 32];
        const int at = quad % 4 * 4;
        lds_write(rows + lane % 32 * kPitch + lane / 32 * 16 + quad * 32,
                  F32x4{block[at], block[at + 1], block[at + 2], block[at + 3]} * scale);
      }
      wave_exchange();
      const uint32_t column = first_column + pass * kPass;
      if (wide)
        copy<abi::DType::fp32>(lds, column);
      else if (__builtin_amdgcn_readfirstlane(static_cast<int>(to.type)) ==
               static_cast<int>(abi::DType::bf16))
        copy<abi::DType::bf16>(lds, column);
      else
        copy<abi::DType::fp16>(lds, column);
    }
  }

 private:
  /// 16 bytes per lane, whole rows.
  template <abi::DType kType>
  static TILE_FN void copy(uint32_t lds, uint32_t column) {
    constexpr int kEach = kType == abi::DType::fp32 ? 4 : 8, kAcross = kPass / kEach;
    const uint32_t lane = recomputed(lane_id()), at = lane % kAcross * kEach;
    for (uint32_t row = lane / kAcross; row < 32; row += kLanes / kAcross) {
      const auto place = lds_read<uint64_t>(lds + row * 8);
      const uint32_t from = lds + offsetof(Shared, rows) + row * kPitch + at * 4;
      const auto low = lds_read<F32x4>(from);
      if constexpr (kType == abi::DType::fp32) {
        if (place != 0) global_write(place + (column + at) * 4, low);
      } else {
        const auto high = lds_read<F32x4>(from + 16);
        const U32x4 words = {pack2<kType>(low.x, low.y), pack2<kType>(low.z, low.w),
                             pack2<kType>(high.x, high.y), pack2<kType>(high.z, high.w)};
        if (place != 0) global_write(place + (column + at) * 2, words);
      }
    }
  }
};
#endif

}  // namespace hipdecode::tile::amdgcn
