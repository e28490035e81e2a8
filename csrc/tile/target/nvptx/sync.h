// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "entry.h"
#include "scalar.h"

namespace hipdecode::tile {

/// The lane of the caller in its wave.
TILE_FN int32_t lane() { return static_cast<int32_t>(threadIdx.x) % kLanes; }

/// Whether the caller is the one thread of its block that does what only one may do.
TILE_FN bool first_thread(Block) { return threadIdx.x == 0; }

/// Whether the caller is the one lane of its wave that does what only one may do.
TILE_FN bool first_lane() { return lane() == 0; }

/// Parameters lie in constant memory and a thread has its own program counter: nothing is gained by
/// saying that a value is uniform, is read again or belongs to one thread.
template <class T>
TILE_FN T uniform(T value) {
  return value;
}
template <class Params>
TILE_FN const Params& reread(const Params& params) {
  return params;
}
template <class T>
TILE_FN T own(T value) {
  return value;
}

/// Counts this block in at `counter` and returns how many came before, to all threads. What the
/// earlier blocks wrote is visible to the last one; the counter goes back to zero when `expected`
/// blocks have arrived, so that a replayed launch finds it as it was.
TILE_FN int32_t arrive(int32_t* counter, int32_t expected, Block block) {
  __shared__ int32_t arrived;
  __threadfence();
  __syncthreads();
  if (first_thread(block)) {
    const int32_t before = atomicAdd(counter, 1);
    if (before == expected - 1) *counter = 0;
    arrived = before;
  }
  __syncthreads();
  __threadfence();
  return arrived;
}

/// The largest of f(0) ... f(count - 1), or -inf; the lanes of a wave share the calls.
template <class F>
TILE_FN float max_over(int32_t count, F f) {
  float most = -kInfinity;
  for (int32_t k = lane(); k < count; k += kLanes) most = fmaxf(most, f(k));
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    most = fmaxf(most, __shfl_xor_sync(~0u, most, distance));
  return most;
}

/// f(0) + ... + f(count - 1), none of which is negative or above `most`, but at most `most`; the
/// lanes of a wave share the calls.
template <class F>
TILE_FN int64_t sum_over(int32_t count, F f, int64_t most) {
  int64_t sum = 0;
  const auto add = [&](int64_t value) {
    sum += value;
    sum = sum < most ? sum : most;
  };
  for (int32_t k = lane(); k < count; k += kLanes) add(f(k));
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    add(__shfl_xor_sync(~0u, sum, distance));
  return sum;
}

/// Whether f(k) holds for every k below count; the lanes of a wave share the calls.
template <class F>
TILE_FN bool all_over(int32_t count, F f) {
  bool all = true;
  for (int32_t k = lane(); k < count; k += kLanes) all = all && f(k);
  return __all_sync(~0u, all);
}

}  // namespace hipdecode::tile
