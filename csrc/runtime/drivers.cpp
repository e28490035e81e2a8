// SPDX-License-Identifier: MIT
#include <array>
#include <atomic>

#include "driver.h"
#include "error.h"

namespace hipdecode::runtime {
namespace {

struct Row {
  const char* name;
  Driver& (*get)();  // nullptr: not in this build
};

/// Every driver, in the order of DeviceKind.
constexpr std::array<Row, kDeviceKinds> kDrivers = {{
    {"cpu", cpu_driver},
    {"hip", hip_driver},
    {"cuda", cuda_driver},
    {"sim", sim_driver},
}};

std::atomic<DeviceKind> cpu_tensors = DeviceKind::cpu;
std::atomic<DeviceKind> cuda_tensors = DeviceKind::cuda;

}  // namespace

Driver& driver(DeviceKind kind) {
  const auto index = static_cast<size_t>(kind);
  HIPDECODE_CHECK(index < kDrivers.size(), "device: expected a kind of 0 to ", kDeviceKinds - 1,
                  ", got ", index, "; use hipdecode.ops");
  const Row& row = kDrivers[index];
  HIPDECODE_CHECK(row.get != nullptr, "device: expected a driver for ", row.name,
                  ", got none in this build; build hipdecode with it");
  return row.get();
}

void set_tensor_devices(DeviceKind cpu, DeviceKind cuda) {
  cpu_tensors = cpu;
  cuda_tensors = cuda;
}

DeviceKind cpu_tensor_device() { return cpu_tensors.load(std::memory_order_relaxed); }
DeviceKind cuda_tensor_device() { return cuda_tensors.load(std::memory_order_relaxed); }

}  // namespace hipdecode::runtime
