// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>
#include <cstdint>

#include "../abi/dtype.h"
#include "paged_cache.h"
#include "softmax.h"

namespace hipdecode::tile {

/// Where a finished row goes: o as `type`, its natural-log LSE where lse is not null.
struct RowTarget {
  void* o;  // null: nowhere
  float* lse;
  abi::DType type;
  float sink = -kInfinity;  // logit of an attention sink beside the keys; not part of the LSE
};

/// Where a key lies, by an entry of the page table that may still be on its way: what asks for
/// `page` waits for it.
template <class Element>
struct KeyRef {
  const Element* page_zero;  // the key, were it in page 0
  uint32_t page, pages;      // page ids from `pages` on name no key
  uint32_t page_stride;      // elements

  constexpr bool exists() const { return page < pages; }
  constexpr const Element* unchecked() const { return page_zero + uint64_t{page} * page_stride; }

  /// Null: there is no such key.
  constexpr operator const Element*() const { return exists() ? unchecked() : nullptr; }
};

/// The operations of a decode kernel's tiles. Coordinates are logical: query row r and token n of a
/// tile; where an element lives is the target's business. A kernel asks for this by name, so that a
/// missing operation is reported as one.
template <class Tiles, class Key>
concept AttendTilesOf = requires(
    Tiles tiles, typename Tiles::Tokens& tokens, const void* (*source)(int), Key (*lookup)(int),
    int (*visible)(int), RowTarget (*target)(int), int n, float scale) {
  { Tiles::kRows } -> std::convertible_to<int>;    // query rows of a tile at most
  { Tiles::kTokens } -> std::convertible_to<int>;  // tokens of a tile at most
  { Tiles::kWaves } -> std::convertible_to<int>;   // of a block
  { tokens.count } -> std::convertible_to<int>;
  { tokens.skips() } -> std::same_as<bool>;  // some lookup below count gave nothing
  tiles.load_queries(source, n);             // queries resident, accumulators empty
  { tiles.gather(lookup, n) } -> std::same_as<typename Tiles::Tokens>;
  tiles.fetch(tokens);                   // the first tile starts to come in
  tiles.score(tokens, tokens);           // queries x keys^T; the next tile is fetched behind
  tiles.mask(tokens, n, visible);        // -inf where a row may not look
  tiles.softmax(tokens, scale);          // online, base 2
  tiles.accumulate(tokens, n, visible);  // out = out * rescale + weights x values
  tiles.store(n, target, scale);         // normalised rows and their LSE
};

/// What a target must offer a decode kernel whose lookup is a key each.
template <class Tiles, class Block, class Key = KeyRef<typename Tiles::KvElement>>
concept DecodeTilesOf =
    std::constructible_from<Tiles, typename Tiles::Shared&, Block> && AttendTilesOf<Tiles, Key>;

/// What a target must offer paged attention: `lookup(n)`, n a multiple of 16, tells where tokens
/// [n, n + 16) of a tile lie in the cache. Scales of tokens multiply scores and weights in fp32.
template <class Tiles, class Block, class Cache>
concept PagedTilesOf =
    std::constructible_from<Tiles, typename Tiles::Shared&, Block, const Cache&> &&
    AttendTilesOf<Tiles, PagedGroup> && Tiles::kTokens % kGroupTokens == 0;

}  // namespace hipdecode::tile
