// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "../run/options.h"
#include "arch.h"
#include "wave.h"

namespace hipdecode::sim {

/// The memory that the waves of a workgroup share, with a shadow of each dword: which bytes were
/// ever written, who wrote and who read since the last barrier, and which load or store to it is
/// not known to have finished. Reused for one workgroup after the other.
class Lds {
 public:
  Lds(const Arch& arch, uint32_t checks);

  /// A new workgroup: nothing is initialised.
  void start(int64_t bytes, int waves);

  uint8_t* data() { return bytes_.data(); }
  int64_t size() const { return size_; }
  const Arch& arch() const { return arch_; }

  // What is about to happen to `bytes` at each active lane's address, by one wave. Faults for
  // what the checks find; returns the lanes that lie inside of the allocation.
  uint64_t reading(int wave, uint64_t lanes, const uint32_t* address, uint32_t bytes);
  uint64_t writing(int wave, uint64_t lanes, const uint32_t* address, uint32_t bytes);
  /// Read and write in one; atomics of several waves are no race among each other.
  uint64_t updating(int wave, uint64_t lanes, const uint32_t* address, uint32_t bytes);
  /// Written by a load that goes to LDS directly: pending until vmcnt covers it.
  uint64_t loading(int wave, uint64_t lanes, const uint32_t* address, uint32_t bytes);

  /// How far a wave's memory operations have come: issued, and known by s_waitcnt to be done.
  struct Progress {
    uint32_t loads_issued = 0, loads_done = 0;  // vmcnt
    uint32_t lds_issued = 0, lds_done = 0;      // lgkmcnt
    uint32_t loads_done_at_barrier = 0, lds_done_at_barrier = 0;
  };
  Progress& progress(int wave) { return progress_[static_cast<size_t>(wave)]; }
  /// All waves have arrived: what each had waited for is now known to the others.
  void barrier();

 private:
  // Of one dword. `sequence` is that of the write which is not known to be done, 0: none;
  // `read_sequence` that of the last read, with its wave in the upper bits.
  struct Shadow {
    uint32_t write_epoch = 0, read_epoch = 0, sequence = 0, read_sequence = 0;
    uint16_t readers = 0;
    uint8_t writer = 0;
    uint8_t initialised : 4 = 0, written : 4 = 0;  // bytes: ever, and in write_epoch
  };
  enum class Kind : uint8_t { plain, atomic, direct };

  uint64_t inside(uint64_t lanes, const uint32_t* address, uint32_t bytes, const char* verb) const;
  template <class Visit>
  void each_dword(uint64_t lanes, const uint32_t* address, uint32_t bytes, Visit visit);
  /// Visits what lies inside, if anything is checked; returns those lanes.
  template <class Visit>
  uint64_t access(uint64_t lanes, const uint32_t* address, uint32_t bytes, const char* verb,
                  Visit visit);
  void read_dword(Shadow& shadow, int wave, uint32_t dword, unsigned mask);
  void write_dword(Shadow& shadow, int wave, uint32_t dword, unsigned mask, Kind kind);
  void check_finished(Shadow& shadow, int wave, uint32_t dword, const char* verb);
  void check_read(Shadow& shadow, int wave, uint32_t dword);
  [[noreturn]] void race(const char* kind, int wave, uint32_t dword, const char* verb,
                         int other) const;

  const Arch& arch_;
  uint32_t checks_;
  bool races_ = false;
  int64_t size_ = 0;
  uint32_t epoch_ = 1;  // barriers of the workgroup so far; never reused, so nothing is cleared
  std::vector<uint8_t> bytes_;
  std::vector<Shadow> shadow_;
  std::vector<Progress> progress_;
};

}  // namespace hipdecode::sim
