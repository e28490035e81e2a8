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

/// Cuts `count` keys into at most `num_splits` equal pieces of a multiple of `least` keys: it
/// follows from the count alone. There is always one split, though it may have no key.
TILE_FN SplitRange split_range(int32_t count, int32_t num_splits, int32_t split, int32_t least) {
  const int32_t whole = quotient(count, num_splits);
  const int32_t even = whole + (whole * num_splits != count);
  const int32_t chunk = (even > 1 ? even + least - 1 : least) / least * least;
  const int32_t used = num_splits > 1 && count > 0 ? quotient(count + chunk - 1, chunk) : 1;
  return {split * chunk, split + 1 < used ? (split + 1) * chunk : count, used};
}

}  // namespace hipdecode::kernels
