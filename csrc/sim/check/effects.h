// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "../load/instruction.h"

namespace hipdecode::sim {

/// A run of registers that an instruction reads or writes.
struct Registers {
  Where where = Where::none;  // vector, accumulator or scalar (vcc, m0, exec by their numbers)
  uint16_t first = 0, count = 0;
};

/// "v12", "a3", "vcc_lo": register `i` of a run.
std::string name_of(const Registers& registers, int i = 0);

/// How lanes without a value pass through an instruction.
enum class Flow : uint8_t {
  none,       // reads no vector register
  matters,    // they must not be there: addresses, stored data, compares
  all_lanes,  // nor in disabled lanes: MFMA
  one_lane,   // v_readlane, v_readfirstlane
  unknown,    // lanes change places: the result counts as written
  all,        // every dword of the result needs every dword of the sources
  each,       // dword i needs dword i: moves
  upward,     // dword i needs dwords 0 to i: 64-bit sums and products
  packed,     // as op_sel and op_sel_hi say
  select,     // one of two sources by a mask
};

/// What an instruction does to registers and counters, derived once from its operands: the facts
/// that Checks works on.
struct Effects {
  std::array<Registers, 7> reads{};
  std::array<Registers, 3> writes{};
  uint8_t read_count = 0, write_count = 0;
  int8_t matrix_c = -1;     // MFMA: which of `reads` is the addend
  uint8_t passes = 0;       // MFMA
  uint8_t wait_states = 1;  // that it counts for: s_nop N is N + 1
  bool vmem = false;        // counted by vmcnt
  bool lds = false;         // counted by lgkmcnt, in order
  bool smem = false;        // counted by lgkmcnt, out of order
  bool flat = false;        // counted by both
  bool valu = false, matrix = false, xdl = false, transcendental = false;
  bool dpp = false, permlane = false, readlane = false, writelane = false, div_fmas = false;
  Flow flow = Flow::none;
  bool shifts_result = false;  // writes a part of its destination (SDWA, op_sel)
  bool wide_store = false;     // store of more than 64 bits: `reads[data]` is fetched late
  bool reads_m0 = false;       // direct-to-LDS load
  bool writes_exec = false;
  int8_t data = -1;  // stores: which of `reads` is the data
};

Effects effects_of(const Instruction& instruction);
std::vector<Effects> effects_of(std::span<const Instruction> instructions);

}  // namespace hipdecode::sim
