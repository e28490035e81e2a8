// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace hipdecode::abi {

/// How blocks of a kernel can wait for each other.
inline constexpr int32_t kMeetTogether = 1;    // where all of them run at once
inline constexpr int32_t kMeetInClusters = 2;  // within a cluster

/// What an artefact says about itself, exported as `hipdecode_kernel_info`; checked before it is
/// used.
struct KernelInfo {
  int32_t abi_version;
  int32_t params_bytes;  // sizeof of the POD that the kernel takes
  int64_t shared_bytes;  // group memory that one block needs
  int32_t threads;       // of one block; 1 on the CPU
  int32_t rows;          // query rows of a tile; 0: the kernel has none
  int32_t meets = 0;     // how its blocks can wait for each other; 0: they cannot
  int32_t waits = 0;     // it waits itself for the launches before it: it may start while they end
};
static_assert(sizeof(KernelInfo) == 32);

}  // namespace hipdecode::abi
