// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>

#include "micro_kernels.h"

namespace hipdecode::tile {

/// Words of a chunk: the part of a unit's depth that lies together, 16 bytes of operands.
inline constexpr int kChunkWords = 4;

/// Four words in every quarter of a register of 16 lanes, in both halves of one of 8.
TILE_FN Vec load_chunk(const void* source) {
#if defined(__AVX512F__)
  return (Vec)_mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(source)));
#elif defined(__AVX2__)
  return (Vec)_mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(source)));
#else
  return load(static_cast<const float*>(source));
#endif
}

/// The sums of kLanes units that four registers hold as kChunkWords lanes each, in order.
TILE_FN Vec sum_chunks(const Vec (&x)[4]) {
  constexpr int kEach = kLanes / kChunkWords;  // units of one register
  // lane 4 * q + v is unit q of register v
  const Vec sums = fold<2>(fold<1>(x[0], x[1]), fold<1>(x[2], x[3]));
  IntVec order;
  for (int i = 0; i < kLanes; ++i) order[i] = i % kEach * kChunkWords + i / kEach;
  return __builtin_shuffle(sums, order);
}

/// All lanes of x combined.
template <class F>
TILE_FN float across(Vec x, const F& f) {
  for (int step = kLanes / 2; step > 0; step /= 2) {
    IntVec order;
    for (int i = 0; i < kLanes; ++i) order[i] = i ^ step;
    x = f(x, __builtin_shuffle(x, order));
  }
  return x[0];
}

/// sums[r] = rows [r] x units^T for kHeight rows and kLanes units: units in groups of lanes, chunks
/// of rows broadcast to them, so that memory which has units side by side is read as it lies. The
/// sum over the depth runs in order, whatever the height.
/// @param chunk_at chunk_at(c) points at chunk c of the units
/// @param ahead called before each chunk: brings in what comes later
template <class Words, int kHeight, class ChunkAt, class Ahead>
TILE_FN void chunk_product(Vec (&sums)[kHeight], const typename Words::Word* rows, int64_t pitch,
                           int chunks, const ChunkAt& chunk_at, const Ahead& ahead) {
  Vec acc[kHeight][4];
#pragma GCC unroll 8
  for (int r = 0; r < kHeight; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) acc[r][v] = Vec{};
#pragma GCC unroll 1
  for (int c = 0; c < chunks; ++c) {
    ahead(c);
    const typename Words::Word* chunk = chunk_at(c);
    Vec units[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) units[v] = load(chunk + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kHeight; ++r) {
      const Vec row = load_chunk(rows + r * pitch + c * kChunkWords);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) acc[r][v] = Words::multiply_lanes(acc[r][v], units[v], row);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kHeight; ++r) sums[r] = sum_chunks(acc[r]);
}

/// Rows whose sums and operands fit the registers.
inline constexpr int kMostHeight = kManyRegisters ? 6 : 2;

/// Calls f(std::integral_constant<int, height>, r) for rows [begin, end) in blocks of nearly equal
/// height.
template <class F>
TILE_FN void in_blocks(int begin, int end, const F& f) {
  const int total = end - begin, blocks = (total + kMostHeight - 1) / kMostHeight;
  for (int b = 0, r = begin; b < blocks; ++b) {
    const int height = total / blocks + (b < total % blocks);
    const auto call = [&]<int kHeight>(const auto& self, std::integral_constant<int, kHeight> h) {
      if (height == kHeight) return f(h, r);
      if constexpr (kHeight > 1) self(self, std::integral_constant<int, kHeight - 1>{});
    };
    call(call, std::integral_constant<int, kMostHeight>{});
    r += height;
  }
}

}  // namespace hipdecode::tile
