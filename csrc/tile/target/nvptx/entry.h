// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../artefact.h"

#define TILE_FN __device__ __forceinline__

/// Before a loop: it runs too seldom to be worth the code of several turns.
#define TILE_ROLLED _Pragma("unroll 1")

/// Before a loop of few, known turns over arrays that are to stay in registers.
#define TILE_UNROLL _Pragma("unroll")

/// A condition that the kernel's own arithmetic must keep; checked in builds with HIPDECODE_DEBUG=1
/// only.
#ifdef HIPDECODE_DEBUG
#define TILE_ASSERT(condition)  \
  do {                          \
    if (!(condition)) __trap(); \
  } while (false)
#else
#define TILE_ASSERT(condition) static_cast<void>(0)
#endif

namespace hipdecode::tile {

inline constexpr int kLanes = 32;  // of a wave

/// What the waves of a block are for. Where a kernel's tiles ask for it, the last waves bring the
/// keys in; others may score for those that compute. All of them execute the kernel's statements.
enum class Role { compute, score, fetch };

/// Which of a launch's blocks this is, and which of the block's waves the caller belongs to. A
/// wave that does not compute has a number out of all bounds, so that it takes no share of other
/// work.
class Block {
 public:
  TILE_FN Block(int32_t waves, Role role)
      // shuffled, so that the compiler knows it to be the same in all lanes
      : wave_(role != Role::compute
                  ? 1 << 30
                  : __shfl_sync(~0u, static_cast<int32_t>(threadIdx.x) / kLanes, 0)),
        waves_(waves),
        role_(role) {}

  TILE_FN int32_t index() const { return static_cast<int32_t>(blockIdx.x); }
  TILE_FN int32_t count() const { return static_cast<int32_t>(gridDim.x); }
  TILE_FN int32_t wave() const { return wave_; }
  TILE_FN int32_t waves() const { return waves_; }  // that compute
  TILE_FN Role role() const { return role_; }

 private:
  int32_t wave_, waves_;
  Role role_;
};

namespace nvptx {

/// Whether the tiles behind a kernel's group memory divide the block into roles, and how many
/// registers a thread of each then has. The four waves of a warpgroup change theirs together.
template <class Shared>
concept HasRoles = requires { Shared::kComputeWaves; };
template <class Shared>
concept HasScoreRole = HasRoles<Shared> && requires { Shared::kScoreWaves; };

/// How many blocks the registers of a multiprocessor are to be divided among.
template <class Shared>
constexpr int blocks_together() {
  if constexpr (requires { Shared::kBlocksTogether; }) return Shared::kBlocksTogether;
  return 1;
}

/// Registers of a thread when a block starts: roles hand them to each other, there are no more.
template <class Kernel>
constexpr int registers_at_entry() {
  return 65536 / (Kernel::kWaves * kLanes) / 8 * 8;
}
/// What the roles take, of one thread of each wave.
template <class Kernel>
constexpr int registers_of_roles() {
  using Shared = typename Kernel::Shared;
  if constexpr (HasScoreRole<Shared>)
    return Shared::kComputeWaves * Shared::kComputeRegisters +
           Shared::kScoreWaves * Shared::kScoreRegisters +
           (Kernel::kWaves - Shared::kComputeWaves - Shared::kScoreWaves) * Shared::kFetchRegisters;
  else if constexpr (HasRoles<Shared>)
    return Shared::kComputeWaves * Shared::kComputeRegisters +
           (Kernel::kWaves - Shared::kComputeWaves) * Shared::kFetchRegisters;
  else
    return 0;
}

/// Whether a kernel has a second part, in which all waves do the same.
template <class Kernel>
concept Finishes = requires { &Kernel::finish; };

/// Whether something in group memory is to be ready before the block reads its first word.
template <class Shared>
concept Opens = requires(Shared shared) { shared.open(); };

/// Whether a kernel has a first part that all roles share: its code is there once.
template <class Kernel>
concept Prepares = HasRoles<typename Kernel::Shared> && requires { &Kernel::prepare; };

/// Whether the code of those that fetch is to follow what prepares: the first key waits for it, and
/// code that lies further away comes later.
template <class Kernel>
concept FetchesInFront = Prepares<Kernel> && requires { requires Kernel::Shared::kFetchesInFront; };

/// From now on a thread has kRegisters, before it had kBefore.
template <int kBefore, int kRegisters>
TILE_FN void change_registers() {
  if constexpr (kRegisters < kBefore)
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
  else if constexpr (kRegisters > kBefore)
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// One branch of run(), with the registers that a thread has there.
/// @param prepared what Kernel::prepare() found out, if there is one
template <class Kernel, int kRegisters, Role kRole, class... Prepared>
TILE_FN int32_t run_as(const typename Kernel::Params& params, typename Kernel::Shared& shared,
                       const Prepared&... prepared) {
  constexpr int kAtEntry = registers_at_entry<Kernel>();
  change_registers<kAtEntry, kRegisters>();
  const Block block(Kernel::Shared::kComputeWaves, kRole);
  int32_t left = 0;
  if constexpr (Finishes<Kernel>)
    left = Kernel::start(params, block, shared, prepared...);
  else
    Kernel::run(params, block, shared, prepared...);
  if (left != 0) change_registers<kRegisters, kAtEntry>();
  return left;
}

/// Runs a kernel's roles, if it has any.
template <class Kernel, class... Prepared>
TILE_FN void run_roles(const typename Kernel::Params& params, typename Kernel::Shared& shared,
                       const Prepared&... prepared) {
  using Shared = typename Kernel::Shared;
  int32_t left = 0;
  if constexpr (HasScoreRole<Shared>) {
    if (threadIdx.x >= (Shared::kComputeWaves + Shared::kScoreWaves) * kLanes)
      left = run_as<Kernel, Shared::kFetchRegisters, Role::fetch>(params, shared, prepared...);
    else if (threadIdx.x >= Shared::kComputeWaves * kLanes)
      left = run_as<Kernel, Shared::kScoreRegisters, Role::score>(params, shared, prepared...);
    else
      left = run_as<Kernel, Shared::kComputeRegisters, Role::compute>(params, shared, prepared...);
  } else if constexpr (FetchesInFront<Kernel>) {
    if (threadIdx.x < Shared::kComputeWaves * kLanes) [[unlikely]]
      left = run_as<Kernel, Shared::kComputeRegisters, Role::compute>(params, shared, prepared...);
    else
      left = run_as<Kernel, Shared::kFetchRegisters, Role::fetch>(params, shared, prepared...);
  } else if constexpr (HasRoles<Shared>) {
    if (threadIdx.x >= Shared::kComputeWaves * kLanes)
      left = run_as<Kernel, Shared::kFetchRegisters, Role::fetch>(params, shared, prepared...);
    else
      left = run_as<Kernel, Shared::kComputeRegisters, Role::compute>(params, shared, prepared...);
  } else {
    Kernel::run(params, Block(Kernel::kWaves, Role::compute), shared, prepared...);
  }
  if constexpr (HasRoles<Shared> && Finishes<Kernel>)
    if (left != 0)
      Kernel::finish(params, Block(Kernel::kWaves, Role::compute), shared, prepared...);
}

/// Runs a kernel. The role is a constant in each branch: statements of the others fall away.
template <class Kernel>
TILE_FN void run(const typename Kernel::Params& params, typename Kernel::Shared& shared) {
  using Shared = typename Kernel::Shared;
  static_assert(registers_of_roles<Kernel>() <= registers_at_entry<Kernel>() * Kernel::kWaves,
                "a role would wait for registers that the block does not have");
  if constexpr (Opens<Shared>) shared.open();
  // a kernel of one part that has a role for scores prepares in each role: registers are scarce
  // there
  if constexpr (Prepares<Kernel> && (!HasScoreRole<Shared> || Finishes<Kernel>))
    run_roles<Kernel>(params, shared, Kernel::prepare(params, static_cast<int32_t>(blockIdx.x)));
  else
    run_roles<Kernel>(params, shared);
}

}  // namespace nvptx
}  // namespace hipdecode::tile

/// Exports `Kernel` (the rest of the line): a struct with Params, Shared, kWaves and run(Params,
/// Block, Shared). Shared is the block's dynamic group memory, uninitialised.
#define TILE_KERNEL(symbol, ...)                                                                 \
  extern "C" __global__ void __launch_bounds__(                                                  \
      __VA_ARGS__::kWaves* ::hipdecode::tile::kLanes,                                            \
      ::hipdecode::tile::nvptx::blocks_together<__VA_ARGS__::Shared>())                          \
      symbol(const __grid_constant__ __VA_ARGS__::Params params) {                               \
    extern __shared__ __align__(alignof(__VA_ARGS__::Shared)) unsigned char memory[];            \
    ::hipdecode::tile::nvptx::run<__VA_ARGS__>(params,                                           \
                                               *reinterpret_cast<__VA_ARGS__::Shared*>(memory)); \
  }                                                                                              \
  extern "C" __device__                                                                          \
      __attribute__((used)) constexpr ::hipdecode::abi::KernelInfo hipdecode_kernel_info =       \
          ::hipdecode::tile::kernel_info<__VA_ARGS__>(__VA_ARGS__::kWaves *                      \
                                                      ::hipdecode::tile::kLanes);
