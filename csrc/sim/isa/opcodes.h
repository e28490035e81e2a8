// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <string_view>

#include "../load/instruction.h"

namespace hipdecode::sim {

// The rows of one family, each defined beside its executors.
std::span<const Opcode> scalar_opcodes();  // opcodes_scalar.cpp
std::span<const Opcode> vector_opcodes();  // opcodes_vector*.cpp
std::span<const Opcode> memory_opcodes();  // opcodes_memory.cpp: global, flat, scratch, buffer
std::span<const Opcode> lds_opcodes();     // opcodes_lds.cpp
std::span<const Opcode> matrix_opcodes();  // opcodes_matrix.cpp

/// All rows, sorted by name. Throws std::logic_error where two families name the same opcode.
std::span<const Opcode> all_opcodes();

/// The row of a base mnemonic, or nullptr.
const Opcode* find_opcode(std::string_view name);

}  // namespace hipdecode::sim
