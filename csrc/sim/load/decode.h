// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "../state/arch.h"
#include "instruction.h"

namespace hipdecode::sim {

/// Decodes machine code with LLVM's disassembler. Bytes that are no instruction become one of four
/// bytes without an opcode, which faults when it is executed.
/// @param address of code[0], as branches and error messages count it
std::vector<Instruction> decode(std::span<const uint8_t> code, uint64_t address, const Arch& arch);

/// Fills operands and modifiers of `instruction` from its `text` and encoding (decode_text.cpp).
/// Throws std::runtime_error for text that it cannot read.
void parse(Instruction& instruction, std::span<const uint32_t> encoding);

// decode_roles.cpp: the fields that are read from the encoding (immediates, waits, DPP, SDWA), and
// the operands of the text, in order, given to destinations and sources.
void read_encoding(Instruction& instruction, std::string_view mnemonic,
                   std::span<const uint32_t> encoding);
void assign(Instruction& instruction, std::string_view mnemonic, std::span<const Operand> operands,
            std::span<const uint32_t> encoding);

}  // namespace hipdecode::sim
