// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../tile/tile.h"

namespace hipdecode::kernels {

/// Whether a target's tiles want the last tile, behind which nothing is fetched, in code of its
/// own.
template <class Tiles>
constexpr bool kLastApart = requires { requires Tiles::kLastApart; };

/// Whether a target's tiles look a tile up once the one before is on its way: its pages are near
/// then, and the first tile does not wait for the second's.
template <class Tiles>
constexpr bool kLooksUpLate = requires { requires Tiles::kLooksUpLate; };

/// One tile of the loop below; `next` is none, or the tile that is fetched meanwhile.
template <class Tiles, class VisibleFrom, class... Next>
TILE_FN void attend_tile(Tiles& tiles, typename Tiles::Tokens& tokens, int32_t begin, float scale,
                         VisibleFrom visible_from, const Next&... next) {
  // stage 2: scores of tile i, tile i + 1 fetched behind them
  tiles.score(tokens, next...);
  // stage 3: hidden keys leave before the maximum is taken
  const auto visible = visible_from(begin, tokens.count);
  const int first_hidden = visible(0);
  if (first_hidden < tokens.count || tokens.skips()) tiles.mask(tokens, first_hidden, visible);
  // stage 4: weights, maximum, sum
  tiles.softmax(tokens, scale);
  // stage 5: output = output * rescale + weights x values
  tiles.accumulate(tokens, first_hidden, visible);
}

template <class Gather>
TILE_FN auto first_tile(Gather& gather, int32_t begin) {
  return gather(begin);
}
template <class Gather, class Tokens>
TILE_FN Tokens first_tile(Gather&, int32_t, const Tokens& fetched) {
  return fetched;
}

/// Attends the resident queries to keys [begin, end), begin < end: the loop that all decode kernels
/// share. `gather(i)` looks up the tile of keys that starts at i, `visible_from(i, count)` tells
/// how many of its keys each row may see. Leaves unnormalised output, maximum and sum in `tiles`.
/// @param fetched none, or the first tile, which is on its way
template <class Tiles, class Gather, class VisibleFrom, class... Fetched>
TILE_FN void attend_keys(Tiles& tiles, int32_t begin, int32_t end, float scale, Gather gather,
                         VisibleFrom visible_from, const Fetched&... fetched) {
  typename Tiles::Tokens tokens = first_tile(gather, begin, fetched...);
  if constexpr (sizeof...(Fetched) == 0) tiles.fetch(tokens);
  for (; begin < (kLastApart<Tiles> ? end - Tiles::kTokens : end); begin += Tiles::kTokens) {
    // stage 1: lookup of tile i + 1
    if constexpr (kLooksUpLate<Tiles>) {
      attend_tile(tiles, tokens, begin, scale, visible_from, tokens);
      tokens = gather(begin + Tiles::kTokens);
    } else {
      const typename Tiles::Tokens next = gather(begin + Tiles::kTokens);
      attend_tile(tiles, tokens, begin, scale, visible_from, next);
      tokens = next;
    }
  }
  if constexpr (kLastApart<Tiles>) attend_tile(tiles, tokens, begin, scale, visible_from);
}

}  // namespace hipdecode::kernels
