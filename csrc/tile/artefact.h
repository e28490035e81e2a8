// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <type_traits>

#include "../abi/abi_version.h"
#include "../abi/kernel_info.h"

namespace hipdecode::tile {

template <class Kernel>
constexpr int64_t shared_bytes() {
  using Shared = typename Kernel::Shared;
  return std::is_empty_v<Shared> ? 0 : static_cast<int64_t>(sizeof(Shared));
}

template <class Kernel>
constexpr int32_t tile_rows() {
  if constexpr (requires { Kernel::kRows; })
    return Kernel::kRows;
  else
    return 0;
}

template <class Kernel>
constexpr int32_t meets() {
  if constexpr (requires { Kernel::kMeets; })
    return Kernel::kMeets;
  else
    return 0;
}

template <class Kernel>
constexpr int32_t waits() {
  if constexpr (requires { Kernel::kWaits; })
    return Kernel::kWaits;
  else
    return 0;
}

/// What an artefact of `Kernel` says about itself, on every target.
template <class Kernel>
constexpr abi::KernelInfo kernel_info(int32_t threads) {
  return {abi::kAbiVersion,       static_cast<int32_t>(sizeof(typename Kernel::Params)),
          shared_bytes<Kernel>(), threads,
          tile_rows<Kernel>(),    meets<Kernel>(),
          waits<Kernel>()};
}

}  // namespace hipdecode::tile
