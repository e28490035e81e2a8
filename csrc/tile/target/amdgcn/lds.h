// SPDX-License-Identifier: MIT
#pragma once

#include "registers.h"

/// Group memory by byte address: what lanes read, what the memory pipe writes, and the waits.
namespace hipdecode::tile::amdgcn {

template <class T>
using LdsPointer = __attribute__((address_space(3))) T*;

/// Byte address of an object in group memory.
TILE_FN uint32_t lds_address(const void* object) {
  return static_cast<uint32_t>(
      reinterpret_cast<uintptr_t>((LdsPointer<char>)const_cast<void*>(object)));
}

template <class T>
TILE_FN T lds_read(uint32_t address) {
  return *(LdsPointer<T>)static_cast<uintptr_t>(address);
}

template <class T>
TILE_FN void lds_write(uint32_t address, T value) {
  *(LdsPointer<T>)static_cast<uintptr_t>(address) = value;
}

#if defined(__gfx950__)
/// ds_read_b64_tr_b8: of each 16 lanes, lanes 2r and 2r + 1 point at the halves of row r of an 8 x
/// 16 matrix of bytes, and lane c gets column c. CDNA4 ISA guide, section 11.4.
TILE_FN U32x2 lds_read_columns_b8(uint32_t address) {
  return __builtin_amdgcn_ds_read_tr8_b64_v2i32((LdsPointer<Vec<int, 2>>)(uintptr_t)address);
}

/// ds_read_b64_tr_b16: of each 16 lanes, lanes 4r ... 4r + 3 point at the quarters of row r of a 4
/// x 16 matrix of 16-bit elements, and lane c gets column c.
TILE_FN U32x2 lds_read_columns_b16(uint32_t address) {
  return std::bit_cast<U32x2>(
      __builtin_amdgcn_ds_read_tr16_b64_v4i16((LdsPointer<Vec<short, 4>>)(uintptr_t)address));
}

/// Starts to bring 16 bytes per lane from source + kOffset to group memory at `lds` + kLdsOffset +
/// 16
/// * lane, and as much from 256 bytes on to kLdsStep behind; the wave gives up nothing but a count
/// of its outstanding loads. Done when wait_for_loads() says so. Assembly, because the compiler
/// answers its own form with a full wait before any LDS read.
template <int kOffset, int kLdsOffset, int kLdsStep>
TILE_FN void load_two_to_lds(uint32_t lds, uint64_t source) {
  static_assert(0 <= kOffset && kOffset + 256 < 4096);
  asm volatile(  // offsets count for both addresses; m0 needs a wait state before its use
      "s_add_u32 m0, %0, %4\n\ts_nop 0\n\tglobal_load_lds_dwordx4 %1, off offset:%2\n\t"
      "s_add_u32 m0, %0, %5\n\ts_nop 0\n\tglobal_load_lds_dwordx4 %1, off offset:%3"
      :
      : "s"(lds), "v"(source), "n"(kOffset), "n"(kOffset + 256), "n"(kLdsOffset - kOffset),
        "n"(kLdsOffset + kLdsStep - kOffset - 256)
      : "scc");
}
template <int kOffset, int kLdsOffset>
TILE_FN void load_to_lds(uint32_t lds, uint64_t source) {
  static_assert(0 <= kOffset && kOffset < 4096);
  asm volatile("s_add_u32 m0, %0, %3\n\ts_nop 0\n\tglobal_load_lds_dwordx4 %1, off offset:%2"
               :
               : "s"(lds), "v"(source), "n"(kOffset), "n"(kLdsOffset - kOffset)
               : "scc");
}
#endif

/// Waits until at most kOutstanding loads of this wave have not arrived and all its LDS reads have.
template <int kOutstanding>
TILE_FN void wait_for_loads() {
  asm volatile("s_waitcnt vmcnt(%0) lgkmcnt(0)" : : "n"(kOutstanding) : "memory");
}

/// All waves of the block meet; no LDS access moves across.
TILE_FN void barrier() { asm volatile("s_waitcnt lgkmcnt(0)\n\ts_barrier" : : : "memory"); }

/// The lanes of a wave exchange data through LDS: what was written before is read behind.
TILE_FN void wave_exchange() {
  __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
  __builtin_amdgcn_wave_barrier();
}

}  // namespace hipdecode::tile::amdgcn
