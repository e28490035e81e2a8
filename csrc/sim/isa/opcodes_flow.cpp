// SPDX-License-Identifier: MIT
// Scalar instructions that are no arithmetic: SOPP, the program counter, hardware registers, SMEM.
#include "opcodes_flow.h"

#include <algorithm>

#include "../check/checks.h"
#include "../check/counts.h"
#include "../load/program.h"
#include "../state/memory.h"
#include "../state/wave.h"

namespace hipdecode::sim {
namespace {

constexpr std::string_view kSopk = "12.2 SOPK", kSop1 = "12.3 SOP1", kSopc = "12.4 SOPC",
                           kSopp = "12.5 SOPP", kSmem = "12.6 SMEM";

enum class When : uint8_t { always, scc0, scc1, vccz, vccnz, execz, execnz };

bool taken(const Wave& wave, When when) {
  switch (when) {
    case When::always:
      return true;
    case When::scc0:
      return !wave.scc;
    case When::scc1:
      return wave.scc;
    case When::vccz:
      return wave.vcc() == 0;
    case When::vccnz:
      return wave.vcc() != 0;
    case When::execz:
      return wave.exec == 0;
    default:
      return wave.exec != 0;
  }
}

void jump(Wave& wave, const Instruction& instruction) {
  if (instruction.branch_target < 0)
    throw Fault("branch: expected a target inside of the code, got distance " +
                std::to_string(instruction.immediate));
  wave.pc = instruction.branch_target;
}

template <When kWhen>
void branch(Context& context, const Instruction& instruction) {
  if (taken(context.wave, kWhen)) jump(context.wave, instruction);
}

uint64_t next_address(Context& context, const Instruction& instruction) {
  return context.program.base() + instruction.address + instruction.bytes;
}
void get_pc(Context& context, const Instruction& instruction) {
  write_scalar(context, instruction.destination[0], next_address(context, instruction));
}
void set_pc(Context& context, const Instruction& instruction) {
  context.wave.pc = context.program.find(read_scalar(context, instruction.source[0]));
}
void swap_pc(Context& context, const Instruction& instruction) {
  const uint64_t to = read_scalar(context, instruction.source[0]);
  get_pc(context, instruction);
  context.wave.pc = context.program.find(to);
}
void call(Context& context, const Instruction& instruction) {
  get_pc(context, instruction);
  jump(context.wave, instruction);
}

void nothing(Context&, const Instruction&) {}
void end_program(Context& context, const Instruction&) { context.wave.finished = true; }
void barrier(Context& context, const Instruction&) { context.wave.at_barrier = true; }
void wait(Context& context, const Instruction& instruction) {
  context.checks.wait(context, instruction.modifiers.vmcnt, instruction.modifiers.lgkmcnt);
}
void trap(Context&, const Instruction& instruction) {
  throw Fault("trap: expected the kernel to reach its end, got s_trap " +
              std::to_string(instruction.immediate) + " (an assertion, or __builtin_trap)");
}

// Hardware registers: simm16 is id, first bit and width - 1.
constexpr int kHwMode = 1, kHwStatus = 2, kHwId = 4, kHwXccId = 20;

uint32_t hardware_register(const Wave& wave, int id) {
  switch (id) {
    case kHwMode:
      return wave.mode;
    case kHwStatus:
      return static_cast<uint32_t>(wave.scc) | (wave.exec == 0 ? 1u << 9 : 0) |
             (wave.vcc() == 0 ? 1u << 10 : 0);
    case kHwId:
    case kHwXccId:
      return 0;  // one compute unit
    default:
      throw Fault("hwreg: expected HW_REG_MODE, STATUS, HW_ID or XCC_ID, got register " +
                  std::to_string(id));
  }
}

struct RegisterField {
  int id, first;
  uint32_t mask;  // of the field, at bit 0
};
RegisterField register_field(const Instruction& instruction) {
  const auto bits = static_cast<uint32_t>(instruction.immediate);
  const uint32_t width = (bits >> 11 & 31) + 1;
  return {static_cast<int>(bits & 63), static_cast<int>(bits >> 6 & 31),
          width == 32 ? ~0u : (1u << width) - 1};
}
void get_register(Context& context, const Instruction& instruction) {
  const RegisterField field = register_field(instruction);
  write_scalar(context, instruction.destination[0],
               hardware_register(context.wave, field.id) >> field.first & field.mask);
}
void set_register(Context& context, const Instruction& instruction) {
  const RegisterField field = register_field(instruction);
  if (field.id != kHwMode)
    throw Fault("hwreg: expected HW_REG_MODE to be set, got register " + std::to_string(field.id));
  const auto value = static_cast<uint32_t>(read_scalar(context, instruction.source[0]));
  const uint32_t mask = field.mask << field.first;
  context.wave.mode = (context.wave.mode & ~mask) | (value << field.first & mask);
}

// Relative vector registers: M0[7:0] is the distance, M0[15:12] which operands it applies to.
void set_index_on(Context& context, const Instruction& instruction) {
  Wave& wave = context.wave;
  const auto index = static_cast<uint32_t>(read_scalar(context, instruction.source[0]));
  wave.mode |= kModeRelative;
  wave.scalar[kM0] = (wave.scalar[kM0] & 0xffff0f00) | (index & 0xff) |
                     static_cast<uint32_t>(instruction.immediate & 15) << 12;
}
void set_index_off(Context& context, const Instruction&) { context.wave.mode &= ~kModeRelative; }
void set_index_mode(Context& context, const Instruction& instruction) {
  uint32_t& m0 = context.wave.scalar[kM0];
  m0 = (m0 & ~0xf000u) | static_cast<uint32_t>(instruction.immediate & 15) << 12;
}
void set_index(Context& context, const Instruction& instruction) {
  uint32_t& m0 = context.wave.scalar[kM0];
  m0 = (m0 & ~0xffu) | (static_cast<uint32_t>(read_scalar(context, instruction.source[0])) & 0xff);
}

/// Register or constant, plus the offset field where both are there.
int64_t scalar_offset(Context& context, const Instruction& instruction) {
  const Operand& operand = instruction.source[1];
  const auto value = static_cast<int64_t>(read_scalar(context, operand));
  return value + instruction.modifiers.offset;
}

void store_dword(Wave& wave, const Operand& destination, int i, uint32_t value) {
  const int number = destination.first + i;
  if (number >= kExec || number == kM0)
    throw Fault("s_load: expected s0 to vcc as its destination, got register " +
                std::to_string(number));
  wave.scalar[static_cast<size_t>(number)] = value;
}

void load(Context& context, const Instruction& instruction) {
  const Operand& destination = instruction.destination[0];
  const uint64_t base = read_scalar(context, instruction.source[0]);
  const uint64_t address =
      (base + static_cast<uint64_t>(scalar_offset(context, instruction))) & ~uint64_t{3};
  for (int i = 0; i < destination.count; ++i)
    store_dword(context.wave, destination, i,
                context.memory.load<uint32_t>(address + static_cast<uint64_t>(i) * 4));
  context.counts.global_bytes_read += destination.count * 4;
}

/// Through a buffer resource: dwords past its end read as zero.
void buffer_load(Context& context, const Instruction& instruction) {
  const Operand& destination = instruction.destination[0];
  const size_t first = instruction.source[0].first;
  const auto& scalar = context.wave.scalar;
  if (first + 4 > scalar.size()) throw Fault("s_buffer_load: expected four SGPRs, got fewer");
  const uint64_t base = (uint64_t{scalar[first + 1]} << 32 | scalar[first]) & 0xffffffffffff;
  const uint64_t stride = scalar[first + 1] >> 16 & 0x3fff;
  const uint64_t size = uint64_t{scalar[first + 2]} * std::max<uint64_t>(stride, 1);
  const auto offset =
      static_cast<uint64_t>(scalar_offset(context, instruction)) & 0xffffffff & ~uint64_t{3};
  for (int i = 0; i < destination.count; ++i) {
    const uint64_t at = offset + static_cast<uint64_t>(i) * 4;
    const bool inside = at + 4 <= size;
    store_dword(context.wave, destination, i,
                inside ? context.memory.load<uint32_t>(base + at) : 0);
    if (inside) context.counts.global_bytes_read += 4;
  }
}

void clock(Context& context, const Instruction& instruction) {
  write_scalar(context, instruction.destination[0], context.wave.issued);
}

constexpr Opcode kRows[] = {
    {"s_branch", Class::branch, branch<When::always>, kSopp},
    {"s_cbranch_scc0", Class::branch, branch<When::scc0>, kSopp},
    {"s_cbranch_scc1", Class::branch, branch<When::scc1>, kSopp},
    {"s_cbranch_vccz", Class::branch, branch<When::vccz>, kSopp},
    {"s_cbranch_vccnz", Class::branch, branch<When::vccnz>, kSopp},
    {"s_cbranch_execz", Class::branch, branch<When::execz>, kSopp},
    {"s_cbranch_execnz", Class::branch, branch<When::execnz>, kSopp},
    {"s_getpc_b64", Class::salu, get_pc, kSop1},
    {"s_setpc_b64", Class::branch, set_pc, kSop1},
    {"s_swappc_b64", Class::branch, swap_pc, kSop1},
    {"s_call_b64", Class::branch, call, kSopk},
    {"s_endpgm", Class::branch, end_program, kSopp},
    {"s_barrier", Class::barrier, barrier, kSopp},
    {"s_waitcnt", Class::wait, wait, kSopp},
    {"s_nop", Class::wait, nothing, kSopp},
    {"s_sleep", Class::wait, nothing, kSopp},
    {"s_setprio", Class::salu, nothing, kSopp},
    {"s_wakeup", Class::salu, nothing, kSopp},
    {"s_icache_inv", Class::salu, nothing, kSopp},
    {"s_incperflevel", Class::salu, nothing, kSopp},
    {"s_decperflevel", Class::salu, nothing, kSopp},
    {"s_ttracedata", Class::salu, nothing, kSopp},
    {"s_trap", Class::branch, trap, kSopp},
    {"s_getreg_b32", Class::salu, get_register, kSopk},
    {"s_setreg_b32", Class::salu, set_register, kSopk},
    {"s_setreg_imm32_b32", Class::salu, set_register, kSopk},
    {"s_set_gpr_idx_on", Class::salu, set_index_on, kSopc},
    {"s_set_gpr_idx_off", Class::salu, set_index_off, kSopp},
    {"s_set_gpr_idx_mode", Class::salu, set_index_mode, kSopp},
    {"s_set_gpr_idx_idx", Class::salu, set_index, kSop1},
    {"s_load_dword", Class::smem, load, kSmem},
    {"s_load_dwordx2", Class::smem, load, kSmem},
    {"s_load_dwordx4", Class::smem, load, kSmem},
    {"s_load_dwordx8", Class::smem, load, kSmem},
    {"s_load_dwordx16", Class::smem, load, kSmem},
    {"s_buffer_load_dword", Class::smem, buffer_load, kSmem},
    {"s_buffer_load_dwordx2", Class::smem, buffer_load, kSmem},
    {"s_buffer_load_dwordx4", Class::smem, buffer_load, kSmem},
    {"s_buffer_load_dwordx8", Class::smem, buffer_load, kSmem},
    {"s_buffer_load_dwordx16", Class::smem, buffer_load, kSmem},
    {"s_memtime", Class::smem, clock, kSmem},
    {"s_memrealtime", Class::smem, clock, kSmem},
    {"s_dcache_inv", Class::smem, nothing, kSmem},
    {"s_dcache_inv_vol", Class::smem, nothing, kSmem},
    {"s_dcache_wb", Class::smem, nothing, kSmem},
    {"s_dcache_wb_vol", Class::smem, nothing, kSmem},
};

}  // namespace

std::span<const Opcode> flow_opcodes() { return kRows; }

}  // namespace hipdecode::sim
