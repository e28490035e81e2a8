// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>

#include "memory.h"
#include "wave.h"

namespace hipdecode::sim {

/// Where the lanes of a memory instruction go, as host addresses. LDS and private memory that a
/// flat address means are host memory too.
struct Addresses {
  std::array<uint64_t, kLanes> at;
  uint64_t lanes = 0;  // that access memory at all
  uint64_t lds = 0;    // those of them that go to LDS
  // Buffers: bytes from the lane's first to the end of the buffer. Dwords past it read as zero.
  std::array<uint32_t, kLanes> room;
  bool partial = false;  // some lane has less room than it accesses
};

enum class Space : uint8_t { global, flat, scratch, buffer };

enum class Verb : uint8_t { reads, writes, updates };

/// Computes and checks the addresses of an instruction that accesses `bytes` per lane.
Addresses global_addresses(Context&, const Instruction&, uint32_t bytes, Verb);
Addresses flat_addresses(Context&, const Instruction&, uint32_t bytes, Verb);
Addresses scratch_addresses(Context&, const Instruction&, uint32_t bytes, Verb);
Addresses buffer_addresses(Context&, const Instruction&, uint32_t bytes, Verb);

template <Space kSpace>
Addresses addresses_of(Context& context, const Instruction& instruction, uint32_t bytes,
                       Verb verb) {
  if constexpr (kSpace == Space::global) {
    return global_addresses(context, instruction, bytes, verb);
  } else if constexpr (kSpace == Space::flat) {
    return flat_addresses(context, instruction, bytes, verb);
  } else if constexpr (kSpace == Space::scratch) {
    return scratch_addresses(context, instruction, bytes, verb);
  } else {
    return buffer_addresses(context, instruction, bytes, verb);
  }
}

/// The operand that holds what is stored or added.
template <Space kSpace>
constexpr int data_operand() {
  return kSpace == Space::buffer ? 0 : 1;
}

/// Register `dword` of an operand, and the note that `lanes` of it hold a value now.
inline Lanes& register_of(Wave& wave, const Operand& operand, int dword) {
  return wave.vector[static_cast<size_t>(wave.slot(operand, dword))];
}
inline void mark_written(Wave& wave, const Operand& operand, int dword, uint64_t lanes) {
  wave.written[static_cast<size_t>(wave.slot(operand, dword))] |= lanes;
}

}  // namespace hipdecode::sim
