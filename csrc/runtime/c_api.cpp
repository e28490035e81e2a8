// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>

#include "../abi/abi_version.h"
#include "driver_sim.h"
#include "kernel_table.h"

// What Python calls through ctypes: host facts that are no tensor operators. No exception leaves.
#define HIPDECODE_API extern "C" __attribute__((visibility("default")))

using hipdecode::runtime::DeviceKind;

HIPDECODE_API int hipdecode_abi_version() { return hipdecode::abi::kAbiVersion; }

/// @param cpu,cuda the DeviceKind that serves torch's tensors there
HIPDECODE_API void hipdecode_set_tensor_devices(int32_t cpu, int32_t cuda) {
  hipdecode::runtime::set_tensor_devices(static_cast<DeviceKind>(cpu),
                                         static_cast<DeviceKind>(cuda));
}

/// The fields of runtime::Simulator.
HIPDECODE_API void hipdecode_set_simulator(const char* library, const char* arch,
                                           int64_t compute_units, uint64_t seed, uint32_t checks) {
  hipdecode::runtime::set_simulator({library, arch, seed, checks, compute_units});
}

HIPDECODE_API void hipdecode_set_loader(hipdecode::runtime::Loader loader) {
  hipdecode::runtime::set_loader(loader);
}

HIPDECODE_API void hipdecode_clear_kernels() { hipdecode::runtime::clear_kernels(); }

/// Returns 0, or 1 with the reason in `message`.
HIPDECODE_API int hipdecode_load_kernel(int32_t kind, int32_t index, const char* name,
                                        const char* path, const char* symbol, char* message,
                                        int64_t message_bytes) {
  try {
    hipdecode::runtime::load_kernel({static_cast<DeviceKind>(kind), index}, name, path, symbol);
    return 0;
  } catch (const std::exception& error) {
    const auto length =
        std::min<int64_t>(message_bytes - 1, static_cast<int64_t>(std::strlen(error.what())));
    std::memcpy(message, error.what(), static_cast<size_t>(length));
    message[length] = '\0';
    return 1;
  }
}
