// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "../../artefact.h"

#define TILE_FN inline

/// Before a loop: it runs too seldom to be worth the code of several turns.
#define TILE_ROLLED

/// Before a loop of few, known turns over arrays that are to stay in registers.
#define TILE_UNROLL

/// A condition that the kernel's own arithmetic must keep; checked in builds with HIPDECODE_DEBUG=1
/// only.
#ifdef HIPDECODE_DEBUG
#define TILE_ASSERT(condition)                                                          \
  do {                                                                                  \
    if (!(condition)) {                                                                 \
      std::fprintf(stderr, "%s:%d: TILE_ASSERT(%s)\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                     \
    }                                                                                   \
  } while (false)
#else
#define TILE_ASSERT(condition) static_cast<void>(0)
#endif

namespace hipdecode::tile {

/// Which of a launch's blocks this is. On the CPU a block is one call on one thread of the pool:
/// one wave of one lane.
class Block {
 public:
  Block(int64_t index, int64_t count)
      : index_(static_cast<int32_t>(index)), count_(static_cast<int32_t>(count)) {}
  int32_t index() const { return index_; }
  int32_t count() const { return count_; }
  int32_t wave() const { return 0; }
  int32_t waves() const { return 1; }

 private:
  int32_t index_, count_;
};

}  // namespace hipdecode::tile

/// Everything else is hidden: a process may load the same templates, built for several targets,
/// and a symbol that is seen would be one for all of them.
#define TILE_EXPORTED extern "C" __attribute__((visibility("default")))

/// Exports `Kernel` (the rest of the line): a struct with Params, Shared and run(Params, Block,
/// Shared). Shared is the calling thread's own memory, 64-byte aligned and uninitialised.
#define TILE_KERNEL(symbol, ...)                                                                \
  TILE_EXPORTED void symbol(const void* params, int64_t index, int64_t count, void* shared) {   \
    using Kernel = __VA_ARGS__;                                                                 \
    Kernel::run(*static_cast<const Kernel::Params*>(params),                                    \
                ::hipdecode::tile::Block(index, count), *static_cast<Kernel::Shared*>(shared)); \
  }                                                                                             \
  TILE_EXPORTED const ::hipdecode::abi::KernelInfo hipdecode_kernel_info;                       \
  const ::hipdecode::abi::KernelInfo hipdecode_kernel_info =                                    \
      ::hipdecode::tile::kernel_info<__VA_ARGS__>(1);
