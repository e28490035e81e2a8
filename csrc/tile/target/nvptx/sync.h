// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "entry.h"
#include "scalar.h"

namespace hipdecode::tile {

/// The lane of the caller in its wave.
TILE_FN int32_t lane() { return static_cast<int32_t>(threadIdx.x) % kLanes; }

namespace nvptx {
/// The lane, to compute with here and now: what follows from it is not kept in registers.
TILE_FN int32_t fresh_lane() {
  int32_t lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}
}  // namespace nvptx

/// Lanes of a wave.
constexpr int32_t lanes() { return kLanes; }

/// Whether the caller is the one thread of its block that does what only one may do.
TILE_FN bool first_thread(Block) { return threadIdx.x == 0; }

/// Whether the caller is the one lane of its wave that does what only one may do.
TILE_FN bool first_lane() { return lane() == 0; }

/// Parameters lie in constant memory and a thread has its own program counter: nothing is gained by
/// saying that a value or an index is uniform, is read again or belongs to one thread.
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
template <class T>
TILE_FN T listed(const T* list, uint32_t index) {
  return list[index];
}

/// Whether blocks of a launch can wait for each other, see await_others().
inline constexpr bool kBlocksMeet = true;

/// In a kernel with kWaits, before its first access to memory, by all threads: waits until earlier
/// launches have ended and what they wrote is visible; lets the next such kernel start meanwhile,
/// but not before, or launches would pile up on a few multiprocessors.
TILE_FN void await_earlier_launches() {
  asm volatile("griddepcontrol.wait;\ngriddepcontrol.launch_dependents;" ::: "memory");
}

/// Counts this block in at `counter` and returns how many came before, to all threads. What the
/// earlier blocks wrote is visible to the last one; the counter goes back to zero when `expected`
/// blocks have arrived, so that a replayed launch finds it as it was.
TILE_FN int32_t arrive(int32_t* counter, int32_t expected, Block block) {
  __shared__ int32_t arrived;
  __syncthreads();
  if (first_thread(block)) {
    __threadfence();  // for all threads of the block: what the barrier ordered before comes before
    const int32_t before = atomicAdd(counter, 1);
    if (before == expected - 1) *counter = 0;
    arrived = before;
    __threadfence();
  }
  __syncthreads();
  return arrived;
}

/// Counts this block in at `counter`, where all blocks that do run at the same time.
TILE_FN void come(int32_t* counter, Block block) {
  __syncthreads();
  if (first_thread(block))
    asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(counter) : "memory");
}

/// Behind come(): waits until `expected` blocks have come; what each wrote before is visible to all
/// after. The counter goes back to zero.
TILE_FN void await_others(int32_t* counter, int32_t expected, Block block) {
  if (first_thread(block)) {
    int32_t here = 0;
    while (here < expected)
      asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(here) : "l"(counter) : "memory");
  }
  __syncthreads();
  // each counts itself out, behind everything else: the last one leaves the counter as it was
  if (threadIdx.x == blockDim.x - 1 && atomicAdd(counter, 1) == 2 * expected - 1) *counter = 0;
}

/// All threads of a block meet here; what they wrote before is visible to all after.
TILE_FN void barrier() { __syncthreads(); }

/// The largest of a value over the lanes of a wave.
TILE_FN float wave_max(float value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    value = fmaxf(value, __shfl_xor_sync(~0u, value, distance));
  return value;
}

/// Whether a condition holds in all lanes of a wave.
TILE_FN bool wave_all(bool holds) { return __all_sync(~0u, holds); }

/// The last lane of a wave for which a condition holds; there is one.
TILE_FN int32_t wave_last(bool holds) {
  int32_t last;
  asm("bfind.u32 %0, %1;" : "=r"(last) : "r"(__ballot_sync(~0u, holds)));
  return last;
}

/// The value that another lane has; anything where there is no such lane.
template <class T>
TILE_FN T from_lane(T value, int32_t index) {
  static_assert(sizeof(T) % 4 == 0, "lanes exchange 32-bit words");
  uint32_t words[sizeof(T) / 4];
  __builtin_memcpy(words, &value, sizeof(T));
#pragma unroll
  for (uint32_t& word : words) word = __shfl_sync(~0u, word, index);
  __builtin_memcpy(&value, words, sizeof(T));
  return value;
}

/// The value of one lane, the same for all.
template <class T>
TILE_FN T broadcast(T value, int32_t index) {
  return from_lane(value, index);
}

}  // namespace hipdecode::tile

#include "../../collectives.h"
