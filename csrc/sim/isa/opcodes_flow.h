// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "../load/instruction.h"

namespace hipdecode::sim {

/// Branches, waits, barriers, modes and scalar loads: the rest of scalar_opcodes().
std::span<const Opcode> flow_opcodes();

}  // namespace hipdecode::sim
