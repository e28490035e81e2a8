// SPDX-License-Identifier: MIT
#pragma once

#include "vector.h"

namespace hipdecode::tile {

/// Lines of the next tile to bring into the second-level cache while this one is multiplied: one
/// row per token of the group, spread over the reduction so that the memory pipe never bursts.
struct Prefetch {
  const char* const* row;  // null: nothing to do
  int bytes;               // of one row
};

/// Scores of kGroup tokens against kVecs * kLanes query rows: rows in lanes, tokens broadcast.
/// `queries` is one panel, [depth][kVecs * kLanes] words. The sum over the depth runs in order, so
/// a row's bits do not depend on the panel it sits in.
template <class Words, int kGroup, int kVecs>
TILE_FN void score_group(float* scores, int64_t pitch, const typename Words::Word* const* keys,
                         const typename Words::Word* queries, Prefetch next) {
  constexpr int kStep = 16;  // words of one cache line
  Vec acc[kGroup][kVecs];
#pragma GCC unroll 32
  for (int n = 0; n < kGroup; ++n)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[n][v] = Vec{};
  for (int block = 0; block < Words::kDepth; block += kStep) {
    const int64_t line = static_cast<int64_t>(block) / kStep * kCacheLine;
    const bool ahead = next.row != nullptr && line < next.bytes;
    const int steps = Words::kDepth - block < kStep ? Words::kDepth - block : kStep;
#pragma GCC unroll 1
    for (int i = 0; i < steps; ++i) {
      if (ahead)
#pragma GCC unroll 2
        for (int n = i; n < kGroup; n += kStep) __builtin_prefetch(next.row[n] + line, 0, 2);
      Vec q[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v)
        q[v] = load(queries + static_cast<int64_t>(block + i) * (kVecs * kLanes) + v * kLanes);
#pragma GCC unroll 32
      for (int n = 0; n < kGroup; ++n)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v)
          acc[n][v] = Words::multiply_add(acc[n][v], q[v], keys[n][block + i]);
    }
  }
#pragma GCC unroll 32
  for (int n = 0; n < kGroup; ++n)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) store(scores + n * pitch + v * kLanes, acc[n][v]);
}

/// Lane i of the result is x[i] + x[i ^ kStep], from `a` where bit kStep of i is clear and from `b`
/// where it is set.
template <int kStep>
TILE_FN Vec fold(Vec a, Vec b) {
  IntVec own, other;
  for (int i = 0; i < kLanes; ++i) {
    own[i] = i & kStep ? i + kLanes : i;
    other[i] = own[i] ^ kStep;
  }
  return __builtin_shuffle(a, b, own) + __builtin_shuffle(a, b, other);
}

template <int kStep, int kCount>
TILE_FN void fold_pairs(Vec* x) {
#pragma GCC unroll 8
  for (int i = 0; i < kCount / 2; ++i) x[i] = fold<kStep>(x[2 * i], x[2 * i + 1]);
}

/// Scores of `kFewTokens<kRows>` tokens against kRows query rows, for so few rows that they would
/// leave most lanes of score_group() idle: the depth in lanes, rows [row][depth], one sum across
/// lanes at the end. kRows is a power of two.
template <int kRows>
inline constexpr int kFewTokens = kLanes / kRows < 8 ? kLanes / kRows : 8;

template <class Words, int kRows>
TILE_FN void score_few(float* scores, int64_t pitch, const typename Words::Word* const* keys,
                       const typename Words::Word* queries, Prefetch next) {
  constexpr int kTokens = kFewTokens<kRows>, kItems = kTokens * kRows;
  Vec acc[kItems] = {};
#pragma GCC unroll 1
  for (int k = 0; k < Words::kDepth; k += kLanes) {
    const int64_t line = static_cast<int64_t>(k) * static_cast<int64_t>(sizeof(float));
    if (next.row != nullptr && line < next.bytes)
      for (int n = 0; n < kTokens; ++n) __builtin_prefetch(next.row[n] + line, 0, 2);
    Vec q[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) q[r] = load(queries + r * Words::kDepth + k);
#pragma GCC unroll 8
    for (int n = 0; n < kTokens; ++n) {
      const Vec key = load(keys[n] + k);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
        acc[n * kRows + r] = Words::multiply_lanes(acc[n * kRows + r], key, q[r]);
    }
  }
  // a tree of folds leaves the sum of accumulator i in lane i
  if constexpr (kItems >= 2) fold_pairs<1, kItems>(acc);
  if constexpr (kItems >= 4) fold_pairs<2, kItems / 2>(acc);
  if constexpr (kItems >= 8) fold_pairs<4, kItems / 4>(acc);
  if constexpr (kItems >= 16) fold_pairs<8, kItems / 8>(acc);
  if constexpr (kItems == 8 && kLanes == 16) acc[0] = fold<8>(acc[0], acc[0]);
  alignas(kCacheLine) float sums[kLanes];
  store(sums, acc[0]);
  for (int n = 0; n < kTokens; ++n)
    std::memcpy(scores + n * pitch, sums + n * kRows, kRows * sizeof(float));
}

/// out[row][kVecs * kLanes columns] = out * rescale[row] + sum over depth of weight[row] * value:
/// columns in lanes, weights broadcast, the online-softmax rescale folded into the accumulator
/// load.
template <class Words, int kRows, int kVecs>
TILE_FN void value_block(float* out, int64_t out_pitch, const typename Words::Word* weights,
                         int64_t weight_pitch, const typename Words::Word* values, int depth,
                         const float* rescale) {
  Vec acc[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[r][v] = load(out + r * out_pitch + v * kLanes) * rescale[r];
#pragma GCC unroll 1
  for (int n = 0; n < depth; ++n) {
    Vec x[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v)
      x[v] = load(values + static_cast<int64_t>(n) * Words::kValuePitch + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v)
        acc[r][v] = Words::multiply_add(acc[r][v], x[v], weights[n * weight_pitch + r]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) store(out + r * out_pitch + v * kLanes, acc[r][v]);
}

}  // namespace hipdecode::tile
