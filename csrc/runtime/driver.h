// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "../abi/kernel_info.h"

namespace hipdecode::runtime {

/// A kernel that is ready to be launched. Never unloaded: a captured graph may still name it.
class Kernel {
 public:
  virtual ~Kernel() = default;
  /// Runs `blocks` blocks over `params`, which is copied or consumed before the call returns.
  virtual void launch(const void* params, int64_t params_bytes, int64_t blocks,
                      void* stream) const = 0;
  virtual const abi::KernelInfo& info() const = 0;
};

/// A way to execute artefacts: one file per driver beside this page.
class Driver {
 public:
  virtual ~Driver() = default;
  virtual std::unique_ptr<Kernel> load(const std::string& path, const std::string& symbol) = 0;
};

/// Executes shared libraries on the threads of `ParallelFor`.
Driver& cpu_driver();

/// Calls body() once on each of at most `threads` threads, one of them the caller's, and returns
/// when all have.
using ParallelFor = std::function<void(int64_t threads, const std::function<void()>& body)>;

/// Replaces the threads of the CPU driver (the default runs on the caller's alone).
/// @param max_threads how many `parallel` offers now; asked at every launch
void set_cpu_threads(ParallelFor parallel, std::function<int64_t()> max_threads);
int64_t cpu_threads();

}  // namespace hipdecode::runtime
