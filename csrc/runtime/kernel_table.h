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

/// Loads an artefact under a name; loading a name again is a no-op.
void load_kernel(DeviceKind device, const std::string& name, const std::string& path, const std::string& symbol);

/// Forgets the names (not the code, which may be running): the next use loads again.
void clear_kernels();

/// Called on a miss; loads the kernel through load_kernel() and returns 0, or writes a message and returns 1.
using Loader = int (*)(int32_t device, const char* name, char* message, int64_t message_bytes);
void set_loader(Loader loader);

}  // namespace hipdecode::runtime
