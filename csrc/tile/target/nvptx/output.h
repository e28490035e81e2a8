// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../concepts.h"
#include "convert.h"
#include "sync.h"

namespace hipdecode::tile::nvptx {

/// Where finished rows go and what they are multiplied by: looked up once for each row, by one
/// thread. The code that finds a row's place is longer than the one that writes it.
template <int kRows>
struct RowEnds {
  uint64_t o[kRows];  // 0: nowhere
  float scale[2][kRows];
  abi::DType type;

  /// One thread for each row.
  /// @param base what the exponents of the row's weights are relative to
  template <class Target>
  TILE_FN void set(int row, int rows, const Target& target, float base, float sum) {
    o[row] = 0;
    if (row >= rows) return;
    const RowTarget to = target(row);
    o[row] = reinterpret_cast<uint64_t>(to.o);
    type = to.type;  // the same for all
    if (to.o == nullptr) return;
    const float log2_sum = log2(sum);
    if (to.lse != nullptr) *to.lse = row_lse(base, sum, log2_sum);
    if (to.sink == -kInfinity || sum == 0) return;
    const float share = share_beside(to.sink, base + log2_sum, [](float x) { return exp2(x); });
#pragma unroll
    for (auto& of_group : scale) of_group[row] *= share;
  }
};

/// Finished output of a warpgroup, transposed as ValueProduct leaves it, to memory.
template <class Keys, int kBlocks, int kRows>
struct Output {
  static constexpr int kValues = kRows / 4;
  using Blocks = float[kBlocks][kRows / 2];

  /// @param column of the output, behind the first block
  static TILE_FN void store(const Blocks& output, const RowEnds<kRows>& ends, int column,
                            int wave) {
    const int g = lane() / 4, first = column + 16 * wave + (Keys::kFp8 ? 2 * g : g);
    const bool wide = ends.type == abi::DType::fp32;
    uint64_t bits = 0;
#pragma unroll
    for (int v = 0; v < kValues; ++v) bits |= ends.o[row_of(v)];
    const bool paired = Keys::kFp8 && bits % (wide ? sizeof(float2) : sizeof(uint32_t)) == 0;
    if (wide && paired)
      rows<true, true>(output, ends, first);
    else if (wide)
      rows<true, false>(output, ends, first);
    else if (paired)
      rows<false, true>(output, ends, first);
    else
      rows<false, false>(output, ends, first);
  }

 private:
  static TILE_FN int row_of(int value) { return value / 2 * 8 + lane() % 4 * 2 + value % 2; }

  /// @tparam kWide fp32, else 16 bits
  /// @tparam kPaired two neighbours in one store
  template <bool kWide, bool kPaired>
  static TILE_FN void rows(const Blocks& output, const RowEnds<kRows>& ends, int first) {
    const abi::DType type = ends.type;
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      const uint64_t row = ends.o[row_of(v)];
      if (row == 0) continue;
      const uint64_t to = row + first * (kWide ? 4 : 2);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const float one = output[block][v / 2 * 4 + v % 2];
        const float other = output[block][v / 2 * 4 + v % 2 + 2];
        const uint64_t at = to + block * 64 * (kWide ? 4 : 2);
        constexpr int kApart = Keys::kFp8 ? 1 : 8;  // columns
        if constexpr (kWide && kPaired) {
          *reinterpret_cast<float2*>(at) = float2{one, other};
        } else if constexpr (kWide) {
          reinterpret_cast<float*>(at)[0] = one;
          reinterpret_cast<float*>(at)[kApart] = other;
        } else {
          const uint32_t word = pack_as(one, other, type);
          if constexpr (kPaired) {
            *reinterpret_cast<uint32_t*>(at) = word;
          } else {
            reinterpret_cast<uint16_t*>(at)[0] = static_cast<uint16_t>(word);
            reinterpret_cast<uint16_t*>(at)[kApart] = static_cast<uint16_t>(word >> 16);
          }
        }
      }
    }
  }
};

}  // namespace hipdecode::tile::nvptx
