// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "../run/options.h"
#include "wave.h"

namespace hipdecode::sim {

/// Global memory: the process's own. A kernel may touch the allowed extents or, where there are
/// none, whatever is mapped for reading and writing; anything else is a Fault, so that a wild
/// address never ends the process. One object per host thread: the extent that was hit last is
/// kept.
class Memory {
 public:
  /// @param allowed  copied; empty: the mapped ranges of /proc/self/maps
  explicit Memory(std::span<const Extent> allowed);

  /// Allows one more range: the kernel's arguments, its constants.
  void allow(Extent extent);

  /// Faults unless every byte of [address, address + bytes) may be accessed.
  void check(uint64_t address, uint64_t bytes, std::string_view verb) {
    if (address - begin_ >= size_ || bytes > size_ - (address - begin_)) {
      find(address, bytes, verb);
    }
  }
  /// The same for `bytes` at each active lane's address.
  void check_lanes(const uint64_t* address, uint64_t lanes, uint64_t bytes, std::string_view verb);

  template <class T>
  T load(uint64_t address) {
    check(address, sizeof(T), "reads");
    T value;
    std::memcpy(&value, reinterpret_cast<const void*>(address), sizeof(T));
    return value;
  }

 private:
  struct Range {
    uint64_t begin, end;
  };
  void find(uint64_t address, uint64_t bytes, std::string_view verb);
  bool remember(uint64_t address, uint64_t bytes);
  void read_maps();
  void sort();

  bool mapped_;                // ranges_ holds what is mapped rather than what is allowed
  std::vector<Range> ranges_;  // sorted, disjoint
  uint64_t begin_ = 0, size_ = 0;
};

}  // namespace hipdecode::sim
