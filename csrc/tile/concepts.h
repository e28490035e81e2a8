// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>

#include "../abi/dtype.h"

namespace hipdecode::tile {

/// What a target must offer a decode kernel. Coordinates are logical: query row r and token n of a
/// tile; where an element lives is the target's business. A kernel asks for this by name, so that a
/// missing operation is reported as one.
template <class Tiles>
concept DecodeTilesOf =
    requires(typename Tiles::Shared& shared, const typename Tiles::TokenRows& tokens,
             const void* (*row_of)(int), void* destination, abi::DType type, int n, float scale) {
      { Tiles::kRows } -> std::convertible_to<int>;    // query rows of a tile at most
      { Tiles::kTokens } -> std::convertible_to<int>;  // tokens of a tile at most
      { Tiles::padded(n) } -> std::same_as<int>;       // rows that are computed for n rows
      { tokens.row[0] } -> std::convertible_to<const typename Tiles::KvElement*>;  // null: skipped
      { tokens.count } -> std::convertible_to<int>;
      { tokens.skips } -> std::convertible_to<bool>;
      { shared.running_sum[n] } -> std::convertible_to<float>;
      { shared.running_max[n] } -> std::convertible_to<float>;
      Tiles::load_queries(shared, row_of, n);  // queries resident, accumulators empty
      Tiles::score(shared, tokens, tokens,
                   n);  // scores = queries x keys^T; stages values, fetches the next tile
      Tiles::mask(shared, tokens, n, n);    // -inf where a row may not look
      Tiles::softmax(shared, n, n, scale);  // online, base 2
      { Tiles::has_special_values(shared, n, n) } -> std::same_as<bool>;
      Tiles::cut_values(shared, n);           // values from token n on read as zero
      Tiles::accumulate(shared, n, n, n, n);  // out = out * rescale + weights x values
      Tiles::store_row(shared, n, scale, destination, type);
    };

}  // namespace hipdecode::tile
