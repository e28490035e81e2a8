// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <type_traits>

#include "../../../abi/abi_version.h"
#include "../../../abi/kernel_info.h"

#define TILE_FN inline

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

/// Which of a launch's blocks this is. On the CPU a block is one call on one thread of the pool.
class Block {
 public:
  Block(int64_t index, int64_t count) : index_(index), count_(count) {}
  int64_t index() const { return index_; }
  int64_t count() const { return count_; }

 private:
  int64_t index_, count_;
};

template <class T>
constexpr int64_t shared_bytes() {
  return std::is_empty_v<T> ? 0 : static_cast<int64_t>(sizeof(T));
}

}  // namespace hipdecode::tile

/// Exports `Kernel` (the rest of the line): a struct with Params, Shared and run(Params, Block,
/// Shared). Shared is the calling thread's own memory, 64-byte aligned and uninitialised.
#define TILE_KERNEL(symbol, ...)                                                                \
  extern "C" void symbol(const void* params, int64_t index, int64_t count, void* shared) {      \
    using Kernel = __VA_ARGS__;                                                                 \
    Kernel::run(*static_cast<const Kernel::Params*>(params),                                    \
                ::hipdecode::tile::Block(index, count), *static_cast<Kernel::Shared*>(shared)); \
  }                                                                                             \
  extern "C" const ::hipdecode::abi::KernelInfo hipdecode_kernel_info;                          \
  const ::hipdecode::abi::KernelInfo hipdecode_kernel_info = {                                  \
      ::hipdecode::abi::kAbiVersion, sizeof(__VA_ARGS__::Params),                               \
      ::hipdecode::tile::shared_bytes<__VA_ARGS__::Shared>(), 1, 0};
