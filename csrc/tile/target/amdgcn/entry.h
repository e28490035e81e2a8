// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../artefact.h"

// What HIP's headers would give, for a compiler that has none: no ROCm is needed to build.
#define TILE_FN inline __attribute__((device, always_inline))

/// Before a loop: it runs too seldom to be worth the code of several turns.
#define TILE_ROLLED _Pragma("unroll 1")

/// Before a loop of few, known turns over arrays that are to stay in registers.
#define TILE_UNROLL _Pragma("unroll")

/// A condition that the kernel's own arithmetic must keep; checked in builds with HIPDECODE_DEBUG=1
/// only.
#ifdef HIPDECODE_DEBUG
#define TILE_ASSERT(condition)          \
  do {                                  \
    if (!(condition)) __builtin_trap(); \
  } while (false)
#else
#define TILE_ASSERT(condition) static_cast<void>(0)
#endif

namespace hipdecode::tile {

inline constexpr int kLanes = 64;  // of a wave

/// Which of a launch's blocks this is, and which of the block's waves the caller belongs to. All of
/// it is the same in all lanes of a wave.
class Block {
 public:
  TILE_FN explicit Block(int32_t waves)
      : wave_(__builtin_amdgcn_readfirstlane(
            static_cast<int32_t>(__builtin_amdgcn_workitem_id_x()) / kLanes)),
        waves_(waves) {}

  TILE_FN int32_t index() const { return static_cast<int32_t>(__builtin_amdgcn_workgroup_id_x()); }

  TILE_FN int32_t count() const {
    // the first of the implicit arguments is hidden_block_count_x (AMDGPU backend, code object 5)
    using Word = const __attribute__((address_space(4))) int32_t;
    return *(Word*)__builtin_amdgcn_implicitarg_ptr();
  }

  TILE_FN int32_t wave() const { return wave_; }
  TILE_FN int32_t waves() const { return waves_; }

 private:
  int32_t wave_, waves_;
};

}  // namespace hipdecode::tile

/// Exports `Kernel` (the rest of the line): a struct with Params, Shared, kWaves and run(Params,
/// Block, Shared). Shared is the block's group memory, uninitialised. The number of threads is
/// exact: a compiler that must allow for 1024 of them keeps three quarters of the registers back.
#define TILE_KERNEL(symbol, ...)                                                                  \
  extern "C" __attribute__((                                                                      \
      global, amdgpu_flat_work_group_size(__VA_ARGS__::kWaves * ::hipdecode::tile::kLanes,        \
                                          __VA_ARGS__::kWaves * ::hipdecode::tile::kLanes))) void \
  symbol(const typename __VA_ARGS__::Params params) {                                             \
    using Kernel = __VA_ARGS__;                                                                   \
    static __attribute__((shared)) typename Kernel::Shared shared;                                \
    Kernel::run(params, ::hipdecode::tile::Block(Kernel::kWaves), shared);                        \
  }                                                                                               \
  extern "C" __attribute__((device)) const ::hipdecode::abi::KernelInfo hipdecode_kernel_info;    \
  __attribute__((device, used)) const ::hipdecode::abi::KernelInfo hipdecode_kernel_info =        \
      ::hipdecode::tile::kernel_info<__VA_ARGS__>(__VA_ARGS__::kWaves *                           \
                                                  ::hipdecode::tile::kLanes);
