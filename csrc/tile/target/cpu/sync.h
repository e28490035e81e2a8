// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "entry.h"

namespace hipdecode::tile {

/// Whether the caller is the one thread of its block that does what only one may do.
TILE_FN bool first_thread(Block) { return true; }

/// Whether the caller is the one lane of its wave that does what only one may do.
TILE_FN bool first_lane() { return true; }

/// `value`, which is known to be the same in all lanes of a wave.
template <class T>
TILE_FN T uniform(T value) {
  return value;
}

/// Entry `index` of a list that the launch does not write.
template <class T>
TILE_FN T listed(const T* list, uint32_t index) {
  return list[index];
}

/// `value`, which the caller computes with alone: a target that keeps values of a whole wave in
/// registers of their own keeps it out of them.
template <class T>
TILE_FN T own(T value) {
  return value;
}

/// The kernel's parameters once more: a target with few scalar registers loads them again.
template <class Params>
TILE_FN const Params& reread(const Params& params) {
  return params;
}

/// In a kernel with kWaits: here a launch starts when the earlier ones have ended.
TILE_FN void await_earlier_launches() {}

/// Whether blocks of a launch can wait for each other, see meet().
inline constexpr bool kBlocksMeet = false;

/// Counts this block in at `counter` and returns how many came before, to all threads. What the
/// earlier blocks wrote is visible to the last one; the counter goes back to zero when `expected`
/// blocks have arrived, so that a replayed launch finds it as it was.
TILE_FN int32_t arrive(int32_t* counter, int32_t expected, Block) {
  const int32_t before = __atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL);
  if (before == expected - 1) __atomic_store_n(counter, 0, __ATOMIC_RELAXED);
  return before;
}

/// Blocks of a launch cannot wait for each other here: there is nothing to run them all at once.
TILE_FN void come(int32_t*, Block) {}
TILE_FN void await_others(int32_t*, int32_t, Block) {}

/// The collectives' parts: a block is one wave of one lane.
TILE_FN int32_t lane() { return 0; }
constexpr int32_t lanes() { return 1; }
TILE_FN void barrier() {}
TILE_FN float wave_max(float value) { return value; }
TILE_FN bool wave_all(bool holds) { return holds; }
TILE_FN int32_t wave_last(bool) { return 0; }
template <class T>
TILE_FN T from_lane(T value, int32_t) {
  return value;
}
template <class T>
TILE_FN T broadcast(T value, int32_t) {
  return value;
}

}  // namespace hipdecode::tile

#include "../../collectives.h"
