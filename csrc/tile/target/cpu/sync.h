// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../softmax.h"
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

/// Counts this block in at `counter` and returns how many came before, to all threads. What the
/// earlier blocks wrote is visible to the last one; the counter goes back to zero when `expected`
/// blocks have arrived, so that a replayed launch finds it as it was.
TILE_FN int32_t arrive(int32_t* counter, int32_t expected, Block) {
  const int32_t before = __atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL);
  if (before == expected - 1) __atomic_store_n(counter, 0, __ATOMIC_RELAXED);
  return before;
}

/// The largest of f(0) ... f(count - 1), or -inf; the lanes of a wave share the calls.
template <class F>
TILE_FN float max_over(int32_t count, F f) {
  float most = -kInfinity;
  for (int32_t k = 0; k < count; ++k) {
    const float value = f(k);
    most = value > most ? value : most;
  }
  return most;
}

/// f(0) + ... + f(count - 1), none of which is negative or above `most`, but at most `most`; the
/// lanes of a wave share the calls.
template <class F>
TILE_FN int64_t sum_over(int32_t count, F f, int64_t most) {
  int64_t sum = 0;
  for (int32_t k = 0; k < count; ++k) {
    sum += f(k);
    sum = sum < most ? sum : most;
  }
  return sum;
}

/// Whether f(k) holds for every k below count; the lanes of a wave share the calls.
template <class F>
TILE_FN bool all_over(int32_t count, F f) {
  for (int32_t k = 0; k < count; ++k)
    if (!f(k)) return false;
  return true;
}

}  // namespace hipdecode::tile
