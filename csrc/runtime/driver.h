// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "../abi/kernel_info.h"

namespace hipdecode::runtime {

/// What executes a kernel. The values are those of python/hipdecode/ops.py.
enum class DeviceKind : int32_t { cpu = 0, hip = 1, cuda = 2, sim = 3 };
inline constexpr int kDeviceKinds = 4;

/// One device: GPUs are counted by their drivers, the CPU and the simulator are index 0.
struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int32_t index = 0;

  bool operator==(const Device&) const = default;
};

/// Memory that a launch may touch.
struct Extent {
  uint64_t address = 0, bytes = 0;
};

/// How much of a kernel runs, and where.
struct Launch {
  int64_t blocks = 0;
  void* stream = nullptr;           // of the kernel's device; GPUs only
  std::span<const Extent> extents;  // none: not known; only the simulator looks at it
  bool together = false;            // all blocks run at the same time
  int32_t cluster = 1;              // so many neighbours run at the same time, close to each other
};

/// A kernel that is ready to be launched on one device. Never unloaded: a captured graph may still
/// name it.
class Kernel {
 public:
  virtual ~Kernel() = default;
  /// Runs the blocks over `params`, which is copied or consumed before the call returns.
  /// @throws Error when the driver refuses
  virtual void launch(const void* params, int64_t params_bytes, const Launch& launch) const = 0;
  virtual const abi::KernelInfo& info() const = 0;
  /// Blocks that a launch may ask to run together; 0: this device or kernel promises none.
  virtual int64_t most_together() const { return 0; }
  /// Blocks of a cluster at most; 0: this kernel has none.
  virtual int64_t most_clustered() const { return 0; }
};

/// A way to execute artefacts: one file per driver beside this page.
class Driver {
 public:
  virtual ~Driver() = default;
  /// @param index the device; the caller's current one is left as it was
  /// @throws Error when the artefact or the device cannot be used
  virtual std::unique_ptr<Kernel> load(const std::string& path, const std::string& symbol,
                                       int32_t index) = 0;
  /// Blocks that run at once: threads, compute units, multiprocessors. Asked at every call.
  virtual int64_t compute_units(int32_t index) = 0;
  /// Whether what is launched on the stream goes into a graph, where nothing can be loaded.
  virtual bool is_capturing(void*) { return false; }
};

Driver& cpu_driver();   // shared libraries on the threads of `ParallelFor`
Driver& hip_driver();   // code objects through libamdhip64.so
Driver& cuda_driver();  // cubins through libcuda.so
Driver& sim_driver();   // code objects in the simulator

/// The driver of a kind, as registered in drivers.cpp.
/// @throws Error when this build has none
Driver& driver(DeviceKind kind);

/// Says which driver serves tensors on the CPU (cpu or sim) and on torch's `cuda` devices (hip or
/// cuda, by how torch was built). Kernels that are loaded stay.
void set_tensor_devices(DeviceKind cpu, DeviceKind cuda);
DeviceKind cpu_tensor_device();
DeviceKind cuda_tensor_device();

/// Calls body() once on each of at most `threads` threads, one of them the caller's, and returns
/// when all have.
using ParallelFor = std::function<void(int64_t threads, const std::function<void()>& body)>;

/// Replaces the threads of the CPU driver (the default runs on the caller's alone).
/// @param max_threads how many `parallel` offers now; asked at every launch
void set_cpu_threads(ParallelFor parallel, std::function<int64_t()> max_threads);

}  // namespace hipdecode::runtime
