// SPDX-License-Identifier: MIT
#include "definedness.h"

#include <bit>
#include <string>

namespace hipdecode::sim {
namespace {

constexpr uint64_t kEverywhere = ~uint64_t{0};

bool is_vector(Where where) { return where == Where::vector || where == Where::accumulator; }

/// Lanes in which all of an operand's dwords [begin, end) hold a value.
uint64_t written(const Wave& wave, const Operand& operand, int begin, int end) {
  uint64_t lanes = kEverywhere;
  for (int i = begin; i < end; ++i)
    lanes &= wave.written[static_cast<size_t>(wave.slot(operand, i))];
  return lanes;
}

/// Lanes of a source that dword `dword` of the result is made of.
uint64_t source_of(const Wave& wave, const Instruction& instruction, int source, Flow flow,
                   int dword) {
  const Operand& operand = instruction.source[source];
  if (!is_vector(operand.where)) return kEverywhere;
  const int count = operand.count;
  if (count == 1) return written(wave, operand, 0, 1);
  switch (flow) {
    case Flow::each:
      return written(wave, operand, dword, dword + 1);
    case Flow::upward:
      return written(wave, operand, 0, dword + 1);
    case Flow::packed: {
      const Modifiers& modifiers = instruction.modifiers;
      const int half = (dword == 0 ? modifiers.op_sel : modifiers.op_sel_hi) >> source & 1;
      return written(wave, operand, half, half + 1);
    }
    default:
      return written(wave, operand, 0, count);
  }
}

[[noreturn]] void missing(const Registers& registers, int i, uint64_t lanes) {
  throw Fault("uninitialised: " + name_of(registers, i) + " is read, but lane " +
              std::to_string(std::countr_zero(lanes)) + " of it was never written");
}

void check(const Wave& wave, const Effects& effects, uint64_t needed) {
  for (int r = 0; r < effects.read_count; ++r) {
    const Registers& registers = effects.reads[static_cast<size_t>(r)];
    if (!is_vector(registers.where)) continue;
    const int offset = registers.where == Where::accumulator ? wave.accumulator_offset : 0;
    for (int i = 0; i < registers.count; ++i) {
      const auto slot = static_cast<size_t>(registers.first + offset + i);
      const uint64_t lanes = needed & ~wave.written[slot];
      if (lanes != 0) [[unlikely]]
        missing(registers, i, lanes);
    }
  }
}

/// The one lane that becomes a scalar.
uint64_t lane_read(const Context& context, const Instruction& instruction) {
  const Wave& wave = context.wave;
  if (instruction.sources == 1) {  // v_readfirstlane_b32
    return uint64_t{1} << (wave.exec == 0 ? 0 : std::countr_zero(wave.exec));
  }
  Context copy = context;
  return uint64_t{1} << (read_scalar(copy, instruction.source[1]) & 63);
}

}  // namespace

void Definedness::before(const Context& context, const Instruction& instruction,
                         const Effects& effects) {
  const Wave& wave = context.wave;
  switch (effects.flow) {
    case Flow::matters:
      check(wave, effects, wave.exec);
      return;
    case Flow::all_lanes:
      check(wave, effects, kEverywhere);
      return;
    case Flow::one_lane:
      check(wave, effects, lane_read(context, instruction));
      return;
    case Flow::unknown:
      defined_ = {kEverywhere, kEverywhere};
      return;
    case Flow::select: {
      Context copy = context;
      const uint64_t second = read_scalar(copy, instruction.source[2]);
      const uint64_t lanes = (source_of(wave, instruction, 0, Flow::all, 0) & ~second) |
                             (source_of(wave, instruction, 1, Flow::all, 0) & second);
      defined_ = {lanes, lanes};
      return;
    }
    default:
      break;
  }
  for (int dword = 0; dword < 2; ++dword) {
    uint64_t lanes = kEverywhere;
    for (int i = 0; i < instruction.sources; ++i) {
      lanes &= source_of(wave, instruction, i, effects.flow, dword);
    }
    defined_[static_cast<size_t>(dword)] = lanes;
    if (instruction.destination[0].count == 1) break;
  }
}

void Definedness::after(Wave& wave, const Instruction& instruction, const Effects& effects) const {
  const Operand& destination = instruction.destination[0];
  if (effects.flow < Flow::all || !is_vector(destination.where)) return;
  for (int i = 0; i < destination.count; ++i) {
    const uint64_t lanes = defined_[i == 0 ? 0 : 1];
    if ((wave.exec & ~lanes) == 0) continue;
    wave.written[static_cast<size_t>(wave.slot(destination, i))] &= ~wave.exec | lanes;
  }
}

}  // namespace hipdecode::sim
