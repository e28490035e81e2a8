// SPDX-License-Identifier: MIT
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <utility>

#include "code_object_info.h"
#include "driver.h"
#include "error.h"

namespace hipdecode::runtime {
namespace {

using Entry = void (*)(const void* params, int64_t index, int64_t count, void* shared);

/// Group memory of one thread, kept between launches: a decode step must not allocate.
class Scratch {
 public:
  ~Scratch() { std::free(memory_); }

  void* get(int64_t bytes) {
    if (bytes <= bytes_) return memory_;
    constexpr int64_t kPage = 4096;
    const int64_t rounded = (bytes + kPage - 1) / kPage * kPage;
    void* grown = std::aligned_alloc(kPage, static_cast<size_t>(rounded));
    if (grown == nullptr) throw std::bad_alloc();
    std::free(std::exchange(memory_, grown));
    bytes_ = rounded;
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  int64_t bytes_ = 0;
};

struct Threads {
  ParallelFor parallel = [](int64_t, const std::function<void()>& body) { body(); };
  std::function<int64_t()> max_threads = [] { return int64_t{1}; };
};

Threads& threads() {
  static Threads instance;
  return instance;
}

class CpuKernel final : public Kernel {
 public:
  CpuKernel(Entry entry, const abi::KernelInfo& info) : entry_(entry), info_(info) {}

  void launch(const void* params, int64_t, const Launch& launch) const override {
    const int64_t blocks = launch.blocks;
    std::atomic<int64_t> next{0};
    const std::function<void()> body = [&] {
      thread_local Scratch scratch;
      void* shared = scratch.get(info_.shared_bytes);
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < blocks;)
        entry_(params, i, blocks, shared);
    };
    const int64_t wanted = std::min(threads().max_threads(), blocks);
    if (wanted <= 1) return body();
    threads().parallel(wanted, body);
  }

  const abi::KernelInfo& info() const override { return info_; }

 private:
  Entry entry_;
  abi::KernelInfo info_;
};

class CpuDriver final : public Driver {
 public:
  std::unique_ptr<Kernel> load(const std::string& path, const std::string& symbol,
                               int32_t) override {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    HIPDECODE_CHECK(library != nullptr, "artefact ", path, ": expected a shared library, got ",
                    dlerror(), "; delete it and build again");
    const auto* info = static_cast<const abi::KernelInfo*>(dlsym(library, "hipdecode_kernel_info"));
    void* entry = dlsym(library, symbol.c_str());
    HIPDECODE_CHECK(info != nullptr && entry != nullptr, "artefact ", path,
                    ": expected symbols hipdecode_kernel_info and ", symbol,
                    "; delete it and build again");
    check_abi_version(*info, path);
    return std::make_unique<CpuKernel>(reinterpret_cast<Entry>(entry), *info);
  }

  int64_t compute_units(int32_t) override { return threads().max_threads(); }
};

}  // namespace

Driver& cpu_driver() {
  static CpuDriver driver;
  return driver;
}

void set_cpu_threads(ParallelFor parallel, std::function<int64_t()> max_threads) {
  threads() = {std::move(parallel), std::move(max_threads)};
}

}  // namespace hipdecode::runtime
