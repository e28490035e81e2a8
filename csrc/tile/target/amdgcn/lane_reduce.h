// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "registers.h"
#include "sync.h"

namespace hipdecode::tile::amdgcn {

/// recomputed() of a value that all lanes share.
template <class T>
TILE_FN T recomputed_uniform(T value) {
  asm volatile("" : "+s"(value));
  return value;
}

/// Combines the four lanes l % 16 + {0, 16, 32, 48}; every one of them gets the result.
template <class Combine>
TILE_FN float across_rows(float x, const Combine& combine) {
#if defined(__gfx950__)
  // exchanging halves (rows) of a register with itself leaves one half (row) in each result
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const auto halves = __builtin_amdgcn_permlane32_swap(bits, bits, false, false);
  const float y = combine(__builtin_bit_cast(float, uint32_t(halves[0])),
                          __builtin_bit_cast(float, uint32_t(halves[1])));
  const uint32_t again = __builtin_bit_cast(uint32_t, y);
  const auto rows = __builtin_amdgcn_permlane16_swap(again, again, false, false);
  return combine(__builtin_bit_cast(float, uint32_t(rows[0])),
                 __builtin_bit_cast(float, uint32_t(rows[1])));
#else
  const auto other = [](float value, uint32_t mask) {
    return __builtin_bit_cast(
        float,
        __builtin_amdgcn_ds_bpermute(static_cast<int>((static_cast<uint32_t>(lane()) ^ mask) * 4),
                                     __builtin_bit_cast(int, value)));
  };
  x = combine(x, other(x, 32));
  return combine(x, other(x, 16));
#endif
}

/// What lane `four_lanes` / 4 holds.
TILE_FN const char* from_lane(const char* value, uint32_t four_lanes) {
  const auto bits = reinterpret_cast<uint64_t>(value);
  const int at = static_cast<int>(four_lanes);
  const auto low = static_cast<uint32_t>(__builtin_amdgcn_ds_bpermute(at, static_cast<int>(bits)));
  const auto high =
      static_cast<uint32_t>(__builtin_amdgcn_ds_bpermute(at, static_cast<int>(bits >> 32)));
  return reinterpret_cast<const char*>(uint64_t{high} << 32 | low);
}

}  // namespace hipdecode::tile::amdgcn
