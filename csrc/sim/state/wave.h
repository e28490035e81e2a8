// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../load/instruction.h"

namespace hipdecode::sim {

inline constexpr int kLanes = 64;
inline constexpr int kVectorRegisters = 512;  // arch VGPRs and AGPRs share one file

// Bits of Wave::mode.
inline constexpr uint32_t kModeClampNan = 1u << 8, kModeIeee = 1u << 9,
                          kModeFp16Overflow = 1u << 23, kModeRelative = 1u << 27;

/// Thrown by everything that the simulator refuses; the text names wave, address and disassembly
/// once the scheduler has caught and completed it.
class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// 64 lanes of one 32-bit register.
struct alignas(64) Lanes {
  std::array<uint32_t, kLanes> at;
  uint32_t& operator[](int lane) { return at[static_cast<size_t>(lane)]; }
  uint32_t operator[](int lane) const { return at[static_cast<size_t>(lane)]; }
};

// Registers that Wave::vector has past the last, so that an operand that is wider than its
// instruction may name does not leave it.
inline constexpr int kVectorPadding = 32;

/// The state of one wave64. `vector[i]` is v<i>; a<i> is vector[accumulator_offset + i].
struct Wave {
  int index = 0;   // within the workgroup
  int64_t pc = 0;  // index of the next instruction in Program::instructions
  uint64_t exec = ~uint64_t{0};
  bool scc = false, finished = false, at_barrier = false;
  uint32_t mode = 0x2f0;               // as the kernel descriptor sets it: denormals, rounding
  std::array<uint32_t, 128> scalar{};  // s0..s101, vcc 106/107, m0 124; exec lives in `exec`
  std::vector<Lanes> vector;
  std::vector<uint64_t> written;  // per vector register: lanes that hold a value
  int accumulator_offset = kVectorRegisters;
  const Instruction* current = nullptr;  // being executed
  uint64_t issued = 0;                   // instructions executed so far
  // The private segment: byte b of lane l lies at scratch_base + l * scratch_stride + b.
  uint64_t scratch_base = 0, scratch_stride = 0;

  uint64_t vcc() const { return uint64_t{scalar[kVcc + 1]} << 32 | scalar[kVcc]; }
  void set_vcc(uint64_t value) {
    scalar[kVcc] = static_cast<uint32_t>(value);
    scalar[kVcc + 1] = static_cast<uint32_t>(value >> 32);
  }
  bool active(int lane) const { return exec >> lane & 1; }
  /// s_set_gpr_idx_on: vector register numbers are relative to M0.
  bool relative_registers() const { return mode & kModeRelative; }
  /// Register number in `vector` of an operand's dword `i`.
  int slot(const Operand& operand, int i = 0) const {
    return operand.first + i + (operand.where == Where::accumulator ? accumulator_offset : 0);
  }
};

// The high dwords of flat addresses that mean LDS and the private segment.
inline constexpr uint32_t kSharedAperture = 0x10000, kPrivateAperture = 0x20000;

class Memory;   // memory.h: global memory, with bounds
class Lds;      // lds.h: the group's shared memory, with shadow state for races
class Checks;   // checks.h: waits, uninitialised registers, hazards
struct Counts;  // counts.h
class Program;  // program.h: the code object
struct Arch;    // arch.h: gfx950 or gfx942 facts

/// What an instruction is executed in. One per wave and step; nothing here is owned.
struct Context {
  Wave& wave;
  Memory& memory;
  Lds& lds;
  Checks& checks;
  Counts& counts;
  const Arch& arch;
  const Program& program;
};

// Operand access, operands.cpp. Scalars and constants are broadcast to all lanes. Whether a
// register was written and waited for is not looked at here: Checks does that before the
// instruction runs.
namespace detail {
const Lanes& read_slowly(Context&, const Instruction&, int source, Lanes& scratch, int dword);
void write_slowly(Context&, const Instruction&, const Lanes& value, int dword, int destination);
}  // namespace detail

/// 32-bit source as lanes, before VOP3 neg/abs; `scratch` is used where nothing can be borrowed.
/// DPP and SDWA selection of the source is applied.
inline const Lanes& read(Context& context, const Instruction& instruction, int source,
                         Lanes& scratch, int dword = 0) {
  const Operand& operand = instruction.source[source];
  const Wave& wave = context.wave;
  if ((operand.where == Where::vector || operand.where == Where::accumulator) &&
      !instruction.modifiers.dpp && !instruction.modifiers.sdwa && !wave.relative_registers())
      [[likely]]
    return wave.vector[static_cast<size_t>(wave.slot(operand, dword))];
  return detail::read_slowly(context, instruction, source, scratch, dword);
}
/// fp32 source with negate and absolute applied.
const Lanes& read_float(Context&, const Instruction&, int source, Lanes& scratch);
/// Writes active lanes (with DPP row/bank masks and SDWA destination selection), marks them
/// written.
inline void write(Context& context, const Instruction& instruction, const Lanes& value,
                  int dword = 0, int destination = 0) {
  const Operand& operand = instruction.destination[destination];
  Wave& wave = context.wave;
  if ((operand.where == Where::vector || operand.where == Where::accumulator) &&
      wave.exec == ~uint64_t{0} && !instruction.modifiers.dpp && !instruction.modifiers.sdwa &&
      !wave.relative_registers()) [[likely]] {
    const auto slot = static_cast<size_t>(wave.slot(operand, dword));
    wave.vector[slot] = value;
    wave.written[slot] = ~uint64_t{0};
    return;
  }
  detail::write_slowly(context, instruction, value, dword, destination);
}
/// Scalar sources and destinations; 64-bit where count is 2. exec, vcc, m0, scc included.
uint64_t read_scalar(Context&, const Operand&);
void write_scalar(Context&, const Operand&, uint64_t value);
/// A lane mask (vcc or an SGPR pair) written by a compare: bits of inactive lanes become zero.
void write_mask(Context&, const Operand&, uint64_t lanes);

}  // namespace hipdecode::sim
