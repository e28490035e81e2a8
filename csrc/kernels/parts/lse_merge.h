// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../tile/tile.h"

namespace hipdecode::kernels {

/// Merges partial results of one (row, head): out = sum exp(l_k - L) * o_k with L = log sum
/// exp(l_k), natural log. `partial_at(k)` gives the index of partial k in units of (row, head). A
/// partial that saw no key (l = -inf) is not read: it may hold anything. Flash-Decoding's merge
/// (Dao et al., 2023).
/// @return L; -inf and a zero `sum` when no partial saw a key
template <class PartialAt>
TILE_FN float merge_partials(float* sum, const float* partial_o, const float* partial_lse,
                             int64_t count, int head_dim_v, PartialAt partial_at) {
  constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
  float best = -tile::kInfinity;
  for (int64_t k = 0; k < count; ++k) {
    const float lse = partial_lse[partial_at(k)];
    best = lse > best ? lse : best;
  }
  for (int i = 0; i < head_dim_v; ++i) sum[i] = 0;
  if (best == -tile::kInfinity) best = 0;
  float total = 0;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t at = partial_at(k);
    if (partial_lse[at] == -tile::kInfinity) continue;
    const float weight = tile::exp2((partial_lse[at] - best) * kLog2E);
    total += weight;
    if (weight != 0) tile::accumulate(sum, partial_o + at * head_dim_v, weight, head_dim_v);
  }
  if (total == 0) return -tile::kInfinity;
  for (int i = 0; i < head_dim_v; ++i) sum[i] /= total;
  return best + tile::log2(total) * kLn2;
}

}  // namespace hipdecode::kernels
