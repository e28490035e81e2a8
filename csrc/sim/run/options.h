// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>

namespace hipdecode::sim {

/// Bits of Options::checks.
enum Check : uint32_t {
  kCheckWaits = 1,          // a register used before the s_waitcnt that covers its load
  kCheckRaces = 2,          // LDS accesses of two waves without a barrier between
  kCheckUninitialised = 4,  // registers and LDS read before they were written
  kCheckBounds = 8,         // global accesses outside of Options::extents
  kCheckHazards = 16,       // too few instructions between an MFMA and who depends on it
  kCheckAll = 31,
};

/// Global memory that a kernel may touch.
struct Extent {
  uint64_t address = 0, bytes = 0;
};

/// How a launch is simulated.
struct Options {
  uint64_t seed = 0;     // of the order in which waves run
  uint32_t quantum = 0;  // instructions of a turn; 0: 1 to 32, drawn, as is who is next
  uint32_t threads = 1;  // host threads
  uint32_t checks = kCheckAll;
  uint64_t instruction_limit = 0;   // of one workgroup; 0: 2^40
  std::span<const Extent> extents;  // none: whatever the process has mapped
};

}  // namespace hipdecode::sim
