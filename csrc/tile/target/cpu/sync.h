// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "entry.h"

namespace hipdecode::tile {

/// Counts this block in at `counter` and returns how many came before. What the earlier blocks
/// wrote is visible to the last one; the counter goes back to zero when `expected` blocks have
/// arrived, so that a replayed launch finds it as it was.
TILE_FN int32_t arrive(int32_t* counter, int32_t expected) {
  const int32_t before = __atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL);
  if (before == expected - 1) __atomic_store_n(counter, 0, __ATOMIC_RELAXED);
  return before;
}

}  // namespace hipdecode::tile
