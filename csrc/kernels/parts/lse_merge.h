// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../tile/concepts.h"
#include "../../tile/tile.h"

namespace hipdecode::kernels {

/// Where a merged row goes.
struct MergedRow {
  void* o;
  float* lse;  // null: nowhere
  abi::DType type;
  float sink = -tile::kInfinity;  // logit of an attention sink: joins the denominator, not the LSE
};

/// One result of a row over some of its keys, normalised.
struct Partial {
  const float* o;
  const float* lse;  // natural logarithm; -inf: it saw no key
};

/// Whether a target's rows are told how many partials there are to load; else some are read twice.
template <class Row>
constexpr bool kLoadsSome = requires { requires Row::kLoadsSome; };

/// Merges `count` partial results of one row: out = sum exp(l_k - L) * o_k with L = log sum
/// exp(l_k), natural log; zeros and -inf when no partial saw a key. A wave does it together.
/// `partial_at(k)` says where partial k lies. A partial that saw no key (l = -inf) adds nothing,
/// whatever it holds. Flash-Decoding's merge (Dao et al., 2023).
/// @tparam Row of the target: holds the columns that are merged
/// @tparam kAhead partials that are on their way at a time
/// @tparam Weights tile::Spread, or tile::Few where count is known to be small
/// @param columns of the row
template <class Row, int kAhead, class Weights = tile::Spread, class PartialAt>
TILE_FN void merge_partials(const MergedRow& to, int32_t count, int32_t columns,
                            PartialAt partial_at) {
  static_assert(Weights::kMost % kAhead == 0);
  Row sum;
  sum.clear();
  Weights weights;
  float best = 0, total = 0;
  const auto lse = [&](int32_t k) { return *partial_at(k).lse; };
  weights.for_turns(count, kAhead, [&](int32_t first) {
    const float* from[kAhead];
    TILE_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      const bool known = first + i < count || (kLoadsSome<Row> && Weights::kKnowsAll);
      from[i] = partial_at(known ? first + i : count - 1).o;
    }
    const auto partials = [&] {
      if constexpr (kLoadsSome<Row>)
        return sum.load(from, count - first, columns);
      else
        return sum.load(from, columns);
    }();
    // behind the first loads: what the rows weigh
    if (first == 0) best = weights.largest(count, lse);
    if (best == -tile::kInfinity) best = 0;
    weights.set(first, count, lse, [&](float x) { return tile::exp2((x - best) * tile::kLog2E); });
    float shares[kAhead];
    TILE_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      shares[i] = weights[first % Weights::kMost + i];
      total += shares[i];
    }
    sum.add(partials, shares, columns);
  });
  const float share = tile::share_beside(to.sink, best * tile::kLog2E + tile::log2(total),
                                         [](float x) { return tile::exp2(x); });
  sum.store(to.o, tile::row_scale(total, share), columns, to.type);
  if (to.lse != nullptr && tile::first_lane())
    *to.lse = total == 0 ? -tile::kInfinity : best + tile::log2(total) * tile::kLn2;
}

}  // namespace hipdecode::kernels
