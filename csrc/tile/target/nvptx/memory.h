// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "entry.h"

// Shared memory, its barriers and its copy engine (PTX ISA 8.0, sections 9.7.9 and 9.7.13).
namespace hipdecode::tile::nvptx {

TILE_FN uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// A barrier in shared memory that counts arrivals, and bytes that the copy engine brings.
struct Gate {
  uint64_t state;

  TILE_FN void open(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)),
                 "r"(arrivals));
  }
  TILE_FN void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  /// Arrives, and the phase also waits for `bytes` that are on their way.
  TILE_FN void arrive_expecting(int bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)),
        "r"(bytes)
        : "memory");
  }
  /// Arrives once the chunks that this thread has asked for are there.
  TILE_FN void arrive_behind_chunks() {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(this))
                 : "memory");
  }
  /// Whether the phase of that parity is over.
  TILE_FN bool passed(uint32_t parity) {
    uint32_t over;
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.b32 %0, 1, 0, p;\n}"
        : "=r"(over)
        : "r"(shared_address(this)), "r"(parity)
        : "memory");
    return over != 0;
  }
  /// Waits until the phase of that parity is over. A caller sees every phase: parities repeat.
  TILE_FN void wait(uint32_t parity) {
    constexpr uint32_t kNanoseconds = 10'000'000;  // that the thread may be suspended in one try
    uint32_t over = 0;
    while (over == 0)
      asm volatile(
          "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2, %3;\n"
          "selp.b32 %0, 1, 0, p;\n}"
          : "=r"(over)
          : "r"(shared_address(this)), "r"(parity), "r"(kNanoseconds)
          : "memory");
  }
};

/// Gates that this thread has opened are there for the block's threads and the copy engine.
TILE_FN void publish_gates() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// What this thread wrote to shared memory is there for the matrix unit, once threads have met.
TILE_FN void publish_operand() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Some of a block's waves meet; 0 is the whole block's barrier.
TILE_FN void meet(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

/// Tells those that meet there that this wave has come; it does not wait.
TILE_FN void announce(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

/// Some of a block's waves meet; whether one of their threads says so.
TILE_FN bool meet_any(int barrier, int threads, bool said) {
  uint32_t any;
  asm volatile(
      "{\n.reg .pred p, q;\nsetp.ne.b32 p, %3, 0;\nbar.red.or.pred q, %1, %2, p;\n"
      "selp.b32 %0, 1, 0, q;\n}"
      : "=r"(any)
      : "r"(barrier), "r"(threads), "r"(static_cast<uint32_t>(said))
      : "memory");
  return any != 0;
}

/// How long the L2 keeps what a copy reads.
/// @tparam kOnce nobody reads it again soon
template <bool kOnce>
TILE_FN uint64_t l2_policy() {
  uint64_t policy;
  if constexpr (kOnce)
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  else
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

/// One lane of the wave starts a copy of `bytes` from global memory where `wanted`, a value that
/// all lanes share; the gate counts the bytes.
/// @param policy of l2_policy()
TILE_FN void copy(uint32_t destination, uint64_t source, int bytes, Gate& gate, bool wanted,
                  uint64_t policy) {
  asm volatile(
      "{\n.reg .pred one, go;\nsetp.ne.b32 go, %4, 0;\nelect.sync _|one, 0xffffffff;\n"
      "and.pred go, go, one;\n"
      "@go cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %5;\n}" ::"r"(destination),
      "l"(source), "r"(bytes), "r"(shared_address(&gate)), "r"(static_cast<uint32_t>(wanted)),
      "l"(policy)
      : "memory");
}

/// One lane of the wave starts copies of `rows` rows at one distance from each other.
/// @param pitch of the destination's rows, `step` of the source's
TILE_FN void copy_rows(int rows, uint32_t destination, int pitch, uint64_t source, uint64_t step,
                       int bytes, Gate& gate, uint64_t policy) {
  uint32_t one;
  asm volatile("{\n.reg .pred one;\nelect.sync _|one, 0xffffffff;\nselp.b32 %0, 1, 0, one;\n}"
               : "=r"(one));
  if (one != 0) {
#pragma unroll 4
    for (int n = 0; n < rows; ++n) {
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
          "[%0], [%1], %2, [%3], %4;" ::"r"(destination),
          "l"(source), "r"(bytes), "r"(shared_address(&gate)), "l"(policy)
          : "memory");
      destination += pitch, source += step;
    }
  }
  __syncwarp();
}

/// Starts a copy of 16 bytes, or of zeros where the source is not `wanted`.
TILE_FN void copy_chunk(uint32_t destination, uint64_t source, bool wanted) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(destination),
               "l"(source), "r"(wanted ? 16 : 0)
               : "memory");
}

/// Reads of global memory that stay where the program has them; zero where they are not `wanted`.
TILE_FN uint4 read_chunk(uint64_t source, bool wanted) {
  uint4 words;
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %5, 0;\nmov.b32 %0, 0;\nmov.b32 %1, 0;\n"
      "mov.b32 %2, 0;\nmov.b32 %3, 0;\n"
      "@p ld.global.L1::no_allocate.L2::128B.v4.b32 {%0, %1, %2, %3}, [%4];\n}"
      : "=&r"(words.x), "=&r"(words.y), "=&r"(words.z), "=&r"(words.w)
      : "l"(source), "r"(static_cast<uint32_t>(wanted))
      : "memory");
  return words;
}
TILE_FN uint32_t read_word(uint64_t source, bool wanted) {
  uint32_t word;
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\nmov.b32 %0, 0;\n@p ld.global.b32 %0, [%1];\n}"
      : "=&r"(word)
      : "l"(source), "r"(static_cast<uint32_t>(wanted))
      : "memory");
  return word;
}
TILE_FN uint32_t read_half(uint64_t source, bool wanted) {
  uint32_t word;
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\nmov.b32 %0, 0;\n@p ld.global.u16 %0, [%1];\n}"
      : "=&r"(word)
      : "l"(source), "r"(static_cast<uint32_t>(wanted))
      : "memory");
  return word;
}

/// A chunk of 16 bytes to shared memory.
TILE_FN void store_chunk(uint32_t to, const uint4& words) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words.x), "r"(words.y),
               "r"(words.z), "r"(words.w)
               : "memory");
}

/// A chunk of 16 bytes to global memory.
TILE_FN void write_chunk(uint64_t to, const uint4& words) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words.x), "r"(words.y),
               "r"(words.z), "r"(words.w)
               : "memory");
}

/// The L2 starts to read `bytes` of global memory.
TILE_FN void prefetch(uint64_t source, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(source), "r"(bytes) : "memory");
}
/// The same of a line.
TILE_FN void prefetch_line(uint64_t source) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(source));
}

/// Four 8x8 matrices of 16-bit words; lane l gives the address of row l % 8 of matrix l / 8.
TILE_FN void load_matrices(uint32_t (&words)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address));
}
TILE_FN void load_matrices_transposed(uint32_t (&words)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address));
}
TILE_FN void store_matrices(uint32_t address, const uint32_t (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}
TILE_FN void store_matrices_transposed(uint32_t address, const uint32_t (&words)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
      "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
      : "memory");
}

}  // namespace hipdecode::tile::nvptx
