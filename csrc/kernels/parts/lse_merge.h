// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../abi/dtype.h"
#include "../../tile/tile.h"

namespace hipdecode::kernels {

/// Where a merged row goes.
struct MergedRow {
  void* o;
  float* lse;  // null: nowhere
  abi::DType type;
  float sink = -tile::kInfinity;  // logit of an attention sink: joins the denominator, not the LSE
};

/// Merges `count` partial results of one (row, head): out = sum exp(l_k - L) * o_k with L = log sum
/// exp(l_k), natural log; zeros and -inf when no partial saw a key. A wave does it together.
/// `partial_at(k)` gives the index of partial k in units of (row, head). A partial that saw no key
/// (l = -inf) adds nothing, whatever it holds. Flash-Decoding's merge (Dao et al., 2023).
template <int kMostColumns, class PartialAt>
TILE_FN void merge_partials(const MergedRow& to, const float* partial_o, const float* partial_lse,
                            int32_t count, int32_t head_dim_v, PartialAt partial_at) {
  float best = tile::max_over(count, [&](int32_t k) { return partial_lse[partial_at(k)]; });
  if (best == -tile::kInfinity) best = 0;
  tile::Row<kMostColumns> sum;
  sum.clear();
  float total = 0;
  for (int32_t k = 0; k < count; ++k) {
    const int64_t at = partial_at(k);
    const float weight = tile::exp2((partial_lse[at] - best) * tile::kLog2E);
    total += weight;
    sum.add(partial_o + at * head_dim_v, weight, head_dim_v);
  }
  const float share = tile::share_beside(to.sink, best * tile::kLog2E + tile::log2(total),
                                         [](float x) { return tile::exp2(x); });
  sum.store(to.o, tile::row_scale(total, share), head_dim_v, to.type);
  if (to.lse != nullptr && tile::first_lane())
    *to.lse = total == 0 ? -tile::kInfinity : best + tile::log2(total) * tile::kLn2;
}

}  // namespace hipdecode::kernels
