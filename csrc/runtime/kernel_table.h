// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>

#include "driver.h"

namespace hipdecode::runtime {

/// Which machine a kernel is for. CUDA and HIP devices join it with their drivers.
enum class DeviceKind : int32_t { cpu = 0 };

/// Finds a loaded kernel by its name, e.g. `mla_reduce`. On a miss the loader is asked once.
/// @throws Error when the kernel is not loaded and the loader could not help
const Kernel& find_kernel(DeviceKind device, const std::string& name);

/// Remembers the last kernel of one call site, so that a decode step builds no name and takes no
/// lock.
class KernelMemo {
 public:
  /// @param key whatever tells the site's kernels apart
  /// @param name makes the name; called on a change of key only
  template <class Name>
  const Kernel& find(DeviceKind device, uint64_t key, Name name) {
    const uint64_t now = generation();
    if (kernel_ == nullptr || key != key_ || now != generation_) {
      kernel_ = &find_kernel(device, name());
      key_ = key;
      generation_ = now;
    }
    return *kernel_;
  }

 private:
  static uint64_t generation();  // grows when kernels are forgotten

  const Kernel* kernel_ = nullptr;
  uint64_t key_ = 0, generation_ = 0;
};

/// Loads an artefact under a name; loading a name again is a no-op.
void load_kernel(DeviceKind device, const std::string& name, const std::string& path,
                 const std::string& symbol);

/// Forgets the names (not the code, which may be running): the next use loads again.
void clear_kernels();

/// Called on a miss; loads the kernel through load_kernel() and returns 0, or writes a message and
/// returns 1.
using Loader = int (*)(int32_t device, const char* name, char* message, int64_t message_bytes);
void set_loader(Loader loader);

}  // namespace hipdecode::runtime
