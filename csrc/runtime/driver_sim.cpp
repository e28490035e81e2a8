// SPDX-License-Identifier: MIT
#include "driver_sim.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <vector>

#include "../sim/c_api.h"
#include "code_object_info.h"
#include "driver.h"
#include "error.h"

namespace hipdecode::runtime {
namespace {

constexpr int64_t kMessageBytes = 8192;

/// The simulator's entries, from a library that is only opened where it is named.
struct Library {
  decltype(&hipdecode_sim_load) load = nullptr;
  decltype(&hipdecode_sim_unload) unload = nullptr;
  decltype(&hipdecode_sim_launch) launch = nullptr;
};

template <class Entry>
void look_up(void* library, const char* name, Entry& entry) {
  entry = reinterpret_cast<Entry>(dlsym(library, name));
  HIPDECODE_CHECK(entry != nullptr, "simulator: expected the entry ", name,
                  ", got none; delete the library and build it again");
}

Library open_library(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  HIPDECODE_CHECK(library != nullptr, "simulator ", path, ": expected a shared library, got ",
                  dlerror(), "; delete it and build again");
  Library result;
  look_up(library, "hipdecode_sim_load", result.load);
  look_up(library, "hipdecode_sim_unload", result.unload);
  look_up(library, "hipdecode_sim_launch", result.launch);
  return result;
}

std::mutex mutex;
Simulator& configured() {
  static Simulator simulator;
  return simulator;
}
Simulator simulator() {
  const std::lock_guard lock(mutex);
  return configured();
}

class SimKernel final : public Kernel {
 public:
  SimKernel(const Library& library, const std::string& path, std::string symbol,
            const CodeObjectInfo& object)
      : library_(library), symbol_(std::move(symbol)), info_(object.kernel) {
    std::array<char, kMessageBytes> message;
    const int failed = library_.load(path.c_str(), simulator().arch.c_str(), &program_,
                                     message.data(), kMessageBytes);
    HIPDECODE_CHECK(failed == 0, "artefact ", message.data());
    dynamic_bytes_ = std::max<int64_t>(info_.shared_bytes - object.group_segment_bytes, 0);
  }
  ~SimKernel() override { library_.unload(program_); }
  SimKernel(const SimKernel&) = delete;
  SimKernel& operator=(const SimKernel&) = delete;

  void launch(const void* params, int64_t params_bytes, const Launch& launch) const override {
    HIPDECODE_CHECK(params_bytes == info_.params_bytes, symbol_, ": expected ", info_.params_bytes,
                    " bytes of parameters, got ", params_bytes, "; build the kernel again");
    std::vector<hipdecode_sim_extent> extents;
    for (const Extent& extent : launch.extents)
      if (extent.bytes > 0) extents.push_back({extent.address, extent.bytes});
    const Simulator now = simulator();
    const hipdecode_sim_options options = {
        .seed = now.seed,
        .instruction_limit = 0,
        .quantum = 0,
        .threads = static_cast<uint32_t>(std::max<int64_t>(cpu_driver().compute_units(0), 1)),
        .checks = now.checks,
        .extent_count = static_cast<uint32_t>(extents.size()),
        .extents = extents.data()};
    std::array<char, kMessageBytes> message;
    const int failed =
        library_.launch(program_, symbol_.c_str(), params, params_bytes, launch.blocks, 1, 1,
                        info_.threads, dynamic_bytes_, &options, message.data(), kMessageBytes);
    HIPDECODE_CHECK(failed == 0, message.data());
  }

  const abi::KernelInfo& info() const override { return info_; }

 private:
  Library library_;
  std::string symbol_;
  abi::KernelInfo info_;
  int64_t dynamic_bytes_ = 0;
  void* program_ = nullptr;
};

class SimDriver final : public Driver {
 public:
  std::unique_ptr<Kernel> load(const std::string& path, const std::string& symbol,
                               int32_t) override {
    const Simulator now = simulator();
    HIPDECODE_CHECK(!now.library.empty(),
                    "simulator: expected its library to be named, got none; choose the target "
                    "sim:gfx950 or sim:gfx942");
    const CodeObjectInfo object = read_code_object_info(read_file(path), path, symbol);
    return std::make_unique<SimKernel>(open_library(now.library), path, symbol, object);
  }

  int64_t compute_units(int32_t) override { return simulator().compute_units; }
};

}  // namespace

void set_simulator(Simulator simulator) {
  const std::lock_guard lock(mutex);
  configured() = std::move(simulator);
}

Driver& sim_driver() {
  static SimDriver driver;
  return driver;
}

}  // namespace hipdecode::runtime
