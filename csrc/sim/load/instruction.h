// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace hipdecode::sim {

struct Context;
struct Instruction;

/// What an instruction is counted as.
enum class Class : uint8_t {
  salu,
  smem,
  branch,
  wait,
  barrier,  // scalar side
  valu,
  transcendental,
  mfma,  // vector side
  lds,
  lds_transpose,
  vmem,
  vmem_to_lds,
  atomic  // memory
};

using Execute = void (*)(Context&, const Instruction&);

/// One row of the opcode table. Families add their rows in opcodes_<family>.cpp.
struct Opcode {
  std::string_view name;  // base mnemonic: no _e32, _e64, _dpp, _sdwa
  Class kind;
  Execute execute;
  std::string_view section;  // of the CDNA3/CDNA4 ISA guide, e.g. "12.10 VOP3P-MAI"
  int passes = 0;            // MFMA: 4-cycle passes
};

/// Where an operand lives.
enum class Where : uint8_t { none, vector, accumulator, scalar, constant, off };

// Scalar register numbers with a meaning of their own (s0 to s101 are plain).
inline constexpr int kFlatScratch = 102, kXnackMask = 104, kVcc = 106, kM0 = 124, kExec = 126;
inline constexpr int kTrapTemporary = 108, kSharedBase = 235, kSharedLimit = 236,
                     kPrivateBase = 237, kPrivateLimit = 238, kVccz = 251, kExecz = 252, kScc = 253;

struct Operand {
  Where where = Where::none;
  uint16_t first = 0;  // first register: v/a number or scalar register number
  uint16_t count = 1;  // dwords
  bool negate = false, absolute = false, sign_extend = false;  // VOP3 and SDWA source modifiers
  bool float_constant = false;  // written as 0.5, 1.0, ...: `bits` is the fp32 pattern
  uint8_t sdwa_select = 6;      // SDWA: 0..3 byte, 4..5 word, 6 dword
  uint64_t bits = 0;            // constant: its bit pattern, integers sign-extended
};

/// Modifiers as the disassembly prints them; what an opcode does not have stays at its default.
struct Modifiers {
  int32_t offset = 0, offset0 = 0, offset1 = 0;  // bytes (offset0/1: in units of the opcode)
  bool clamp = false;
  uint8_t output_scale = 0;                                     // omod: 0 none, 1 *2, 2 *4, 3 /2
  uint8_t op_sel = 0, op_sel_hi = 0xf, neg_lo = 0, neg_hi = 0;  // bit i: source i
  bool dpp = false, bound_ctrl = false;
  uint16_t dpp_ctrl = 0;  // encoded as in the ISA guide
  uint8_t row_mask = 0xf, bank_mask = 0xf;
  bool fetch_inactive = false;
  bool sdwa = false;
  uint8_t sdwa_dst_select = 6, sdwa_dst_unused = 0;  // unused: 0 pad, 1 sext, 2 preserve
  uint8_t cbsz = 0, abid = 0, blgp = 0;              // blgp: neg of v_mfma_f64 too
  uint8_t bitop3 = 0;                                // truth table of v_bitop3
  bool idxen = false, offen = false, lds = false, sc0 = false, sc1 = false, nt = false, gds = false;
  int8_t vmcnt = -1, lgkmcnt = -1, expcnt = -1;  // s_waitcnt; -1: not waited for
};

/// One decoded instruction.
struct Instruction {
  const Opcode* opcode = nullptr;
  Operand destination[2];  // VOP3B: the second is a scalar pair; swaps write both
  Operand source[5];       // MFMA with scales has five
  int sources = 0;
  Modifiers modifiers;
  int32_t index = 0;           // its own, in Program::instructions
  int32_t branch_target = -1;  // index into Program::instructions
  int32_t immediate = 0;       // simm16 of SOPP and SOPK
  uint64_t address = 0;        // in the code object
  uint32_t bytes = 0;          // length of the encoding
  std::string text;            // as disassembled
};

}  // namespace hipdecode::sim
