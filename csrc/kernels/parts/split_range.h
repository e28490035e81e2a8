// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../tile/tile.h"
#include "bounds.h"

namespace hipdecode::kernels {

/// The keys of one split: [begin, end) out of all, and how many splits have any.
struct SplitRange {
  int32_t begin, end, used;
};

/// How many keys a piece has where `count` are cut into at most `num_splits` equal pieces of a
/// multiple of `least`: it follows from the count alone.
TILE_FN int32_t split_size(int32_t count, int32_t num_splits, int32_t least) {
  const int32_t all = num_splits * least;
  return count > 0 ? quotient(count + all - 1, all) * least : least;
}

/// Cuts `count` keys into pieces of split_size(). There is always one, though it may have no key.
TILE_FN SplitRange split_range(int32_t count, int32_t num_splits, int32_t split, int32_t least) {
  const int32_t size = split_size(count, num_splits, least);
  const int32_t used = count > size ? quotient(count + size - 1, size) : 1;
  return {split * size, split + 1 < used ? (split + 1) * size : count, used};
}

/// Keys of a block where contexts are cut for `mla_decode_reduce`.
inline constexpr int32_t kBlockKeys = 64;

/// How many of `num_splits` splits have keys where blocks of kBlockKeys are dealt out: the others'
/// partials are not written and must not be read.
TILE_FN int32_t dealt_splits(int64_t count, int32_t num_splits) {
  return count <= 0 ? 0
         : count > int64_t{kBlockKeys} * num_splits
             ? num_splits
             : (static_cast<int32_t>(count) + kBlockKeys - 1) / kBlockKeys;
}

/// Deals blocks of kBlockKeys keys to the splits, as evenly as they go; no key, no split.
TILE_FN SplitRange dealt_range(int32_t count, int32_t num_splits, int32_t split) {
  const int32_t used = dealt_splits(count, num_splits);
  if (split >= used) return {count, count, used};
  const int32_t blocks = (count + kBlockKeys - 1) / kBlockKeys;
  const int32_t each = quotient(blocks, used), longer = blocks - each * used;
  const int32_t begin = split * each + (split < longer ? split : longer);
  const int32_t end = begin + each + (split < longer);
  return {begin * kBlockKeys, split + 1 < used ? end * kBlockKeys : count, used};
}

}  // namespace hipdecode::kernels
