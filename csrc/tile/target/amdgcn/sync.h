// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cstdint>

#include "entry.h"
#include "scalar.h"

namespace hipdecode::tile {

/// The lane of the caller in its wave.
TILE_FN int32_t lane() {
  return static_cast<int32_t>(__builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0)));
}

/// Lanes of a wave.
constexpr int32_t lanes() { return kLanes; }

/// Whether the caller is the one thread of its block that does what only one may do.
TILE_FN bool first_thread(Block block) { return block.wave() == 0 && lane() == 0; }

/// Whether the caller is the one lane of its wave that does what only one may do.
TILE_FN bool first_lane() { return lane() == 0; }

/// `value` by words, each of which `f` replaces.
template <class T, class F>
TILE_FN T by_words(T value, F f) {
  struct Words {
    int32_t word[sizeof(T) / 4];
  };
  static_assert(sizeof(T) % 4 == 0, "lanes exchange 32-bit words");
  Words words = __builtin_bit_cast(Words, value);
  for (int32_t& word : words.word) word = f(word);
  return __builtin_bit_cast(T, words);
}

/// `value`, which is known to be the same in all lanes of a wave.
template <class T>
TILE_FN T uniform(T value) {
  return by_words(value, [](int32_t word) { return __builtin_amdgcn_readfirstlane(word); });
}

/// The kernel's parameters once more: what is read through this is loaded where it is used, not
/// kept in scalar registers from the kernel's begin.
template <class Params>
TILE_FN const Params& reread(const Params&) {
  auto* params =
      (const __attribute__((address_space(4))) Params*)__builtin_amdgcn_kernarg_segment_ptr();
  asm volatile("" : "+s"(params));
  return *(const Params*)params;
}

/// Entry `index`, the same in all lanes of a wave, of a list that the launch does not write: by the
/// scalar unit, whose loads wait for no others.
template <class T>
TILE_FN T listed(const T* list, uint32_t index) {
  return ((const __attribute__((address_space(4))) T*)list)[index];
}

/// `value`, which the caller computes with alone: in vector registers, which are many.
template <class T>
TILE_FN T own(T value) {
  asm("" : "+v"(value));
  return value;
}

/// All waves of a block meet here; what they wrote to group memory before is visible after.
TILE_FN void barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

/// In a kernel with kWaits: here a launch starts when the earlier ones have ended.
TILE_FN void await_earlier_launches() {}

/// Whether blocks of a launch can wait for each other, see meet().
inline constexpr bool kBlocksMeet = false;

/// Counts this block in at `counter` and returns how many came before, to all threads. What the
/// earlier blocks wrote is visible to the last one; the counter goes back to zero when `expected`
/// blocks have arrived, so that a replayed launch finds it as it was.
TILE_FN int32_t arrive(int32_t* counter, int32_t expected, Block block) {
  static __attribute__((shared)) int32_t arrived;
  // every wave fences for itself: the barrier orders waves, not their stores on the way to memory
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "agent");
  __builtin_amdgcn_s_barrier();
  if (first_thread(block)) {
    const int32_t before =
        __scoped_atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL, __MEMORY_SCOPE_DEVICE);
    if (before == expected - 1)
      __scoped_atomic_store_n(counter, 0, __ATOMIC_RELAXED, __MEMORY_SCOPE_DEVICE);
    arrived = before;
  }
  barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "agent");
  return uniform(arrived);
}

/// Blocks of a launch cannot wait for each other here: there is nothing to run them all at once.
TILE_FN void come(int32_t*, Block) {}
TILE_FN void await_others(int32_t*, int32_t, Block) {}

/// The largest of a value over the lanes of a wave.
TILE_FN float wave_max(float value) {
  // DPP controls (CDNA3 ISA guide, section 13.3.9): lanes ^1, ^2, then mirrors of 8 and of 16
  constexpr int kSwapOne = 0xb1, kSwapTwo = 0x4e, kHalfMirror = 0x141, kMirror = 0x140;
  const auto folded = [](float x, float other) { return __builtin_fmaxf(x, other); };
  const auto moved = [&]<int kControl>(float x) {
    const int32_t bits = std::bit_cast<int32_t>(x);
    return folded(x, std::bit_cast<float>(
                         __builtin_amdgcn_update_dpp(bits, bits, kControl, 0xf, 0xf, false)));
  };
  value = moved.template operator()<kSwapOne>(value);
  value = moved.template operator()<kSwapTwo>(value);
  value = moved.template operator()<kHalfMirror>(value);
  value = moved.template operator()<kMirror>(value);
  const auto row = [&](int at) {
    return std::bit_cast<float>(__builtin_amdgcn_readlane(std::bit_cast<int32_t>(value), at * 16));
  };
  return folded(folded(row(0), row(1)), folded(row(2), row(3)));
}

/// Whether a condition holds in all lanes of a wave.
TILE_FN bool wave_all(bool holds) { return __builtin_amdgcn_ballot_w64(!holds) == 0; }

/// The last lane of a wave for which a condition holds; there is one.
TILE_FN int32_t wave_last(bool holds) {
  return kLanes - 1 - __builtin_clzll(__builtin_amdgcn_ballot_w64(holds));
}

/// The value that another lane has; anything where there is no such lane.
template <class T>
TILE_FN T from_lane(T value, int32_t index) {
  return by_words(value,
                  [&](int32_t word) { return __builtin_amdgcn_ds_bpermute(index * 4, word); });
}

/// The value of one lane, the same for all.
template <class T>
TILE_FN T broadcast(T value, int32_t index) {
  return by_words(value, [&](int32_t word) { return __builtin_amdgcn_readlane(word, index); });
}

}  // namespace hipdecode::tile

#include "../../collectives.h"
