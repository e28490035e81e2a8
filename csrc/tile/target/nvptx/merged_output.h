// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../concepts.h"
#include "convert.h"
#include "sync.h"

namespace hipdecode::tile::nvptx {

/// The outputs that two warpgroups have of the same rows, on their way to memory through shared
/// memory: a warpgroup lays its own down as ValueProduct leaves them, a wave writes whole rows.
/// The rows are kBytes apart so that neither way meets a bank twice.
template <class Keys, int kHeadDimV>
struct MergedOutput {
  static constexpr int kGroups = 2, kRows = 16;  // that lie there at a time
  static constexpr int kPitch = kHeadDimV + 4;
  static_assert(kPitch % 16 == 4);

  /// Where a row goes and what each warpgroup's part of it is multiplied by.
  struct End {
    uint64_t o;  // 0: nowhere
    float scales[kGroups];
    abi::DType type;
  };

  float values[kGroups][kRows][kPitch];

  /// Lays down rows [first, first + kRows) of a warpgroup's transposed output.
  template <int kBlocks, int kWords>
  TILE_FN void lay_down(const float (&output)[kBlocks][kWords], int first, int group, int wave) {
    const int g = lane() / 4;
    float* to = &values[group][lane() % 4 * 2][16 * wave + (Keys::kFp8 ? 2 * g : g)];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block)
#pragma unroll
      for (int v = 0; v < kRows / 4; ++v) {
        const float* from = &output[block][first / 2 + v / 2 * 4 + v % 2];
        float* at = to + (v / 2 * 8 + v % 2) * kPitch + block * 64;
        if constexpr (Keys::kFp8) {  // neighbours
          *reinterpret_cast<float2*>(at) = float2{from[0], from[2]};
        } else {
          at[0] = from[0];
          at[8] = from[2];
        }
      }
  }

  /// A wave writes one row: the sum of both outputs, each times its scale.
  /// @param own of the row that lane `row` looks after
  TILE_FN void write(int row, const End& own) const {
    const uint64_t o = __shfl_sync(~0u, own.o, row);
    if (o == 0) return;
    const float scale[kGroups] = {__shfl_sync(~0u, own.scales[0], row),
                                  __shfl_sync(~0u, own.scales[1], row)};
    const auto type = static_cast<abi::DType>(__shfl_sync(~0u, static_cast<int>(own.type), row));
    const float *one = values[0][row], *other = values[1][row];
    const bool wide = type == abi::DType::fp32;
    if (o % (wide ? sizeof(float4) : sizeof(uint2)) != 0) [[unlikely]] {
      TILE_ROLLED
      for (int i = lane(); i < kHeadDimV; i += kLanes)
        store_one(reinterpret_cast<void*>(o), i, one[i] * scale[0] + other[i] * scale[1], type);
      return;
    }
    // all of the row is read before the first of it is written
    float4 sums[(kHeadDimV + 4 * kLanes - 1) / (4 * kLanes)];
    const auto at = [](int i) { return 4 * (i * kLanes + lane()); };
#pragma unroll
    for (int i = 0; auto& sum : sums) {
      const int from = min(at(i++), kHeadDimV - 4);
      const float4 a = *reinterpret_cast<const float4*>(one + from);
      const float4 b = *reinterpret_cast<const float4*>(other + from);
      sum = {a.x * scale[0] + b.x * scale[1], a.y * scale[0] + b.y * scale[1],
             a.z * scale[0] + b.z * scale[1], a.w * scale[0] + b.w * scale[1]};
    }
    const auto each = [&](auto put) {
#pragma unroll
      for (int i = 0; const float4& sum : sums)
        if (const int to = at(i++); to < kHeadDimV) put(to, sum);
    };
    const auto halves = [&](int to, const float4& sum, auto pack_two) {
      *reinterpret_cast<uint2*>(o + to * 2) = {pack_two(sum.x, sum.y), pack_two(sum.z, sum.w)};
    };
    if (wide)
      each([&](int to, const float4& sum) { *reinterpret_cast<float4*>(o + to * 4) = sum; });
    else if (type == abi::DType::bf16)
      each([&](int to, const float4& sum) { halves(to, sum, pack<abi::DType::bf16>); });
    else
      each([&](int to, const float4& sum) { halves(to, sum, pack<abi::DType::fp16>); });
  }
};

}  // namespace hipdecode::tile::nvptx
