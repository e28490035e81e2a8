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

/// Whether the caller is the one thread of its block that does what only one may do.
TILE_FN bool first_thread(Block block) { return block.wave() == 0 && lane() == 0; }

/// Whether the caller is the one lane of its wave that does what only one may do.
TILE_FN bool first_lane() { return lane() == 0; }

/// `value`, which is known to be the same in all lanes of a wave.
template <class T>
TILE_FN T uniform(T value) {
  struct Words {
    int32_t word[sizeof(T) / 4];
  };
  static_assert(sizeof(T) % 4 == 0, "a wave shares 32-bit words");
  Words words = __builtin_bit_cast(Words, value);
  for (int32_t& word : words.word) word = __builtin_amdgcn_readfirstlane(word);
  return __builtin_bit_cast(T, words);
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

/// The largest of f(0) ... f(count - 1), or -inf; the lanes of a wave share the calls.
template <class F>
TILE_FN float max_over(int32_t count, F f) {
  float most = -kInfinity;
  for (int32_t k = lane(); k < count; k += kLanes) {
    const float value = f(k);
    most = value > most ? value : most;
  }
  return wave_max(most);
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
  const uint64_t mine = static_cast<uint64_t>(sum);
  sum = 0;
  for (int from = 0; from < kLanes; ++from) {
    const auto word = [&](uint64_t bits) {
      return static_cast<uint32_t>(__builtin_amdgcn_readlane(static_cast<int32_t>(bits), from));
    };
    add(static_cast<int64_t>(uint64_t{word(mine >> 32)} << 32 | word(mine)));
  }
  return sum;
}

/// Whether f(k) holds for every k below count; the lanes of a wave share the calls.
template <class F>
TILE_FN bool all_over(int32_t count, F f) {
  bool all = true;
  for (int32_t k = lane(); k < count; k += kLanes) all = all && f(k);
  return __builtin_amdgcn_ballot_w64(!all) == 0;
}

}  // namespace hipdecode::tile
