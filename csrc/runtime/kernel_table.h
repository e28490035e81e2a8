// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>

#include "driver.h"

namespace hipdecode::runtime {

/// Where a call runs.
struct Place {
  Device device;
  void* stream = nullptr;  // GPUs only
};

/// Finds a loaded kernel by its name, e.g. `mla_reduce`. On a miss the loader is asked once.
/// @throws Error when the kernel is not loaded and the loader could not help
/// @throws NotWarmed when it would have to be loaded while the stream is captured
const Kernel& find_kernel(const Place& place, const std::string& name);

/// Grows when kernels are forgotten.
uint64_t kernel_generation();

/// Remembers the last kernel of one call site, so that a decode step builds no name and takes no
/// lock.
class KernelMemo {
 public:
  /// @param key whatever tells the site's kernels apart
  /// @param name makes the name; called on a change of key only
  template <class Name>
  const Kernel& find(const Place& place, uint64_t key, Name name) {
    const uint64_t now = kernel_generation();
    if (kernel_ == nullptr || key != key_ || place.device != device_ || now != generation_) {
      kernel_ = &find_kernel(place, name());
      key_ = key;
      device_ = place.device;
      generation_ = now;
    }
    return *kernel_;
  }

 private:
  const Kernel* kernel_ = nullptr;
  Device device_;
  uint64_t key_ = 0, generation_ = 0;
};

/// Loads an artefact under a name; loading a name again is a no-op.
void load_kernel(Device device, const std::string& name, const std::string& path,
                 const std::string& symbol);

/// Forgets the names (not the code, which may be running): the next use loads again.
void clear_kernels();

/// Called on a miss; loads the kernel through load_kernel() and returns 0, or writes a message and
/// returns 1.
using Loader = int (*)(int32_t kind, int32_t index, const char* name, char* message,
                       int64_t message_bytes);
void set_loader(Loader loader);

}  // namespace hipdecode::runtime
