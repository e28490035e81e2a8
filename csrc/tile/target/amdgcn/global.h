// SPDX-License-Identifier: MIT
#pragma once

#include "registers.h"

/// Memory that tensors live in. Rows begin where the caller's tensors do, so no more alignment than
/// an element's is assumed; the machine needs none.
namespace hipdecode::tile::amdgcn {

template <class T>
using Unaligned = T __attribute__((aligned(1)));

template <class T>
TILE_FN T global_read(const void* address) {
  return *(const
           __attribute__((address_space(1))) Unaligned<T>*)reinterpret_cast<uintptr_t>(address);
}

template <class T>
TILE_FN void global_write(uint64_t address, T value) {
  *(__attribute__((address_space(1))) Unaligned<T>*)static_cast<uintptr_t>(address) = value;
}

/// A key of zeros, for tokens that are not there.
inline constexpr int kMostRowBytes = 2048;
inline __attribute__((device)) const U32x4 zero_row[kMostRowBytes / 16] = {};

}  // namespace hipdecode::tile::amdgcn
