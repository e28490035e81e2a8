// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../concepts.h"
#include "global.h"
#include "lane_reduce.h"
#include "lds.h"

namespace hipdecode::tile::amdgcn {

/// The end of a tile of query rows: token waves put their parts together through LDS, each keeps a
/// share of the value columns, and the rows are written. P cuts the block; Values tells where the
/// columns of a lane are.
template <class P, class Values>
struct HkMerge {
  static constexpr int kTiles = P::kColumnTiles, kParts = P::kTokenWaves;
  // Column tiles that are exchanged in one round, and those of them that a wave keeps.
  static constexpr int kRound = P::kMergeRound;
  static constexpr int kEach = kRound / kParts, kKept = kTiles / kParts;
  static constexpr int kStatisticsBytes = P::kWaves * 16 * 8;
  static constexpr int kMergeBytes =
      kParts == 1 ? 0 : kStatisticsBytes + P::kWaves * kRound * 64 * 16;
  static constexpr int kSharedBytes = kMergeBytes > P::kKeyBytes ? kMergeBytes : P::kKeyBytes;
  static_assert(kSharedBytes <= kLdsBytes && kRound % kParts == 0 && kTiles % kRound == 0);

  uint32_t base, lane;
  int row_wave, token_wave;

  /// Merges the parts of a row: `maximum` and `sum` become the row's, `out` this wave's share of
  /// it. LDS must be free. @pre every wave of the block is here
  TILE_FN void run(F32x4 (&out)[kTiles], float& maximum, float& sum) const {
    const uint32_t row = base + static_cast<uint32_t>(row_wave * kParts) * 128 + lane % 16 * 8;
    if (lane < 16) lds_write(row + static_cast<uint32_t>(token_wave) * 128, F32x2{maximum, sum});
    barrier();
    float best = maximum, total = 0;
#pragma unroll
    for (uint32_t t = 0; t < kParts; ++t)
      best = __builtin_fmaxf(best, lds_read<F32x2>(row + t * 128).x);
#pragma unroll
    for (uint32_t t = 0; t < kParts; ++t) {
      const auto part = lds_read<F32x2>(row + t * 128);
      total += part.y * __builtin_amdgcn_exp2f(part.x - best);
    }
    const float factor = __builtin_amdgcn_exp2f(maximum - best);
#pragma unroll
    for (int round = 0; round < kTiles / kRound; ++round) {
      if (round > 0) barrier();
      exchange(out, factor, round);
    }
    maximum = best;
    sum = total;
  }

  /// Writes this wave's columns of a row; `out` as run() left it.
  TILE_FN void write(const RowTarget& to, const F32x4 (&out)[kTiles], float scale) const {
    if (to.type == abi::DType::fp32)
      write_as<abi::DType::fp32>(to.o, out, scale);
    else if (to.type == abi::DType::bf16)
      write_as<abi::DType::bf16>(to.o, out, scale);
    else if (!P::kWritesFp8 || to.type == abi::DType::fp16)
      write_as<abi::DType::fp16>(to.o, out, scale);
    else
      write_as<kFp8>(to.o, out, scale);
  }

 private:
  TILE_FN void exchange(F32x4 (&out)[kTiles], float factor, int round) const {
    const uint32_t all = base + kStatisticsBytes + lane * 16 +
                         static_cast<uint32_t>(row_wave * kParts * kRound) * 1024;
    const uint32_t own = all + static_cast<uint32_t>(token_wave * kRound) * 1024;
#pragma unroll
    for (int i = 0; i < kRound; ++i)
      lds_write(own + static_cast<uint32_t>(i) * 1024, out[round * kRound + i] * factor);
    barrier();
    const uint32_t mine = all + static_cast<uint32_t>(token_wave * kEach) * 1024;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      F32x4 sum = lds_read<F32x4>(mine + static_cast<uint32_t>(i) * 1024);
#pragma unroll
      for (int t = 1; t < kParts; ++t)
        sum += lds_read<F32x4>(mine + static_cast<uint32_t>(t * kRound + i) * 1024);
      out[round * kEach + i] = sum;
    }
  }

  /// First value column of this lane in its kept tile i.
  TILE_FN int column(int i) const {
    const int tile = i / kEach * kRound + token_wave * kEach + i % kEach;
    return Values::column(tile, static_cast<int>(lane));
  }

  template <abi::DType kType>
  TILE_FN void write_as(void* row, const F32x4 (&out)[kTiles], float scale) const {
    if constexpr (Values::kColumnStep == 1) {
#pragma unroll
      for (int i = 0; i < kKept; ++i) {
        const F32x4 x = out[i] * scale;
        write_run<kType, 4>(row, column(i), {x[0], x[1], x[2], x[3]});
      }
    } else {
      constexpr int kRun = kEach < Values::kColumnStep ? kEach : Values::kColumnStep;
#pragma unroll
      for (int i = 0; i < kKept; i += kRun)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          Run<kRun> x;
#pragma unroll
          for (int j = 0; j < kRun; ++j) x.at[j] = out[i + j][e] * scale;
          write_run<kType, kRun>(row, column(i) + e * Values::kColumnStep, x);
        }
    }
  }

  template <int kCount>
  struct Run {
    float at[kCount];
  };

  template <abi::DType kType, int kCount>
  static TILE_FN void write_run(void* row, int column, const Run<kCount>& x) {
    if constexpr (kType == kFp8) {
      if constexpr (kCount == 4)
        global_write(reinterpret_cast<uint64_t>(row) + static_cast<uint64_t>(column),
                     pack4_fp8_saturated(F32x4{x.at[0], x.at[1], x.at[2], x.at[3]}));
    } else if constexpr (kType == abi::DType::fp32) {
      using Floats = float __attribute__((ext_vector_type(kCount), aligned(4)));
      Floats all;
#pragma unroll
      for (int j = 0; j < kCount; ++j) all[j] = x.at[j];
      *reinterpret_cast<Floats*>(static_cast<float*>(row) + column) = all;
    } else {
      using Words = uint16_t __attribute__((ext_vector_type(kCount), aligned(2)));
      Words all;
#pragma unroll
      for (int j = 0; j < kCount; ++j) all[j] = word<kType>(x.at[j]);
      *reinterpret_cast<Words*>(static_cast<uint16_t*>(row) + column) = all;
    }
  }

  template <abi::DType kType>
  static TILE_FN uint16_t word(float x) {
    if constexpr (kType == abi::DType::bf16)
      return __builtin_bit_cast(uint16_t, static_cast<__bf16>(x));
    else
      return __builtin_bit_cast(uint16_t, static_cast<_Float16>(x));
  }
};

}  // namespace hipdecode::tile::amdgcn
