// SPDX-License-Identifier: MIT
#include "effects.h"

#include <algorithm>
#include <iterator>
#include <string_view>

#include "counts.h"

namespace hipdecode::sim {
namespace {

bool is_register(const Operand& operand) {
  return operand.where == Where::vector || operand.where == Where::accumulator ||
         operand.where == Where::scalar;
}

bool contains(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

template <size_t N>
bool starts_with_any(std::string_view text, const std::string_view (&prefixes)[N]) {
  return std::any_of(std::begin(prefixes), std::end(prefixes),
                     [&](std::string_view prefix) { return text.starts_with(prefix); });
}

void add_read(Effects& effects, Registers registers) {
  effects.reads[effects.read_count++] = registers;
}

/// The registers of a source that count: packed fp32 may take one of its two for both halves.
Registers selected(const Instruction& instruction, int i) {
  const Operand& source = instruction.source[i];
  const int low = instruction.modifiers.op_sel >> i & 1;
  // Compilers add 32 bits with it: the upper half of the addend then holds nothing.
  if (i == 2 && instruction.opcode->name.starts_with("v_mad_") && source.count == 2)
    return {source.where, source.first, 1};
  const bool packed32 = instruction.opcode->name.starts_with("v_pk_") && source.count == 2;
  if (!packed32 || low != (instruction.modifiers.op_sel_hi >> i & 1))
    return {source.where, source.first, source.count};
  return {source.where, static_cast<decltype(source.first)>(source.first + low), 1};
}

void add_operands(Effects& effects, const Instruction& instruction, int data_source) {
  for (int i = 0; i < instruction.sources; ++i) {
    const Operand& source = instruction.source[i];
    if (!is_register(source)) continue;
    if (i == data_source) effects.data = static_cast<int8_t>(effects.read_count);
    if (effects.matrix && i == 2) effects.matrix_c = static_cast<int8_t>(effects.read_count);
    add_read(effects, selected(instruction, i));
  }
  for (const Operand& destination : instruction.destination) {
    if (!is_register(destination)) continue;
    effects.writes[effects.write_count++] = {destination.where, destination.first,
                                             destination.count};
  }
}

/// The source that holds what is stored, or -1.
int data_source(std::string_view name) {
  if (!contains(name, "_store_")) return -1;
  return name.starts_with("buffer_") ? 0 : 1;
}

Flow flow_of(const Effects& effects, const Instruction& instruction) {
  constexpr std::string_view kMoves[] = {"v_mov_b", "v_accvgpr_"};
  constexpr std::string_view kUpward[] = {"v_mad_u64", "v_mad_i64", "v_lshl_add_u64",
                                          "v_lshlrev_b64"};
  const std::string_view name = instruction.opcode->name;
  if (instruction.opcode->kind == Class::mfma) return Flow::all_lanes;
  if (effects.readlane) return Flow::one_lane;
  const bool swaps = instruction.destination[1].where == Where::vector;
  if (effects.dpp || effects.permlane || effects.writelane || swaps) return Flow::unknown;
  if (instruction.destination[0].where == Where::scalar) return Flow::matters;
  if (name.starts_with("v_cndmask_b32") && instruction.sources == 3) return Flow::select;
  if (starts_with_any(name, kMoves)) return Flow::each;
  if (starts_with_any(name, kUpward)) return Flow::upward;
  return name.starts_with("v_pk_") && name.ends_with("32") ? Flow::packed : Flow::all;
}

void classify_vector(Effects& effects, const Instruction& instruction) {
  const std::string_view name = instruction.opcode->name;
  const Modifiers& modifiers = instruction.modifiers;
  effects.valu = true;
  effects.transcendental = instruction.opcode->kind == Class::transcendental;
  effects.dpp = modifiers.dpp;
  effects.permlane = name.starts_with("v_permlane");
  effects.readlane = name.starts_with("v_readlane") || name.starts_with("v_readfirstlane");
  effects.writelane = name.starts_with("v_writelane");
  effects.div_fmas = name.starts_with("v_div_fmas");
  if (effects.div_fmas) add_read(effects, {Where::scalar, kVcc, 2});
  const bool packed = name.starts_with("v_pk_") || name.starts_with("v_mfma");
  effects.shifts_result = (modifiers.sdwa && modifiers.sdwa_dst_select != 6) ||
                          (!packed && (modifiers.op_sel >> instruction.sources & 1) != 0) ||
                          contains(name, "_pk_fp4_");
  effects.writes_exec = name.starts_with("v_cmpx");
  if (instruction.opcode->kind == Class::mfma) {
    effects.matrix = true;
    effects.xdl = !name.ends_with("f64") && (!name.ends_with("f32") || contains(name, "xf32"));
    effects.passes = static_cast<uint8_t>(mfma_passes(instruction));
  }
  effects.flow = flow_of(effects, instruction);
}

void classify_memory(Effects& effects, const Instruction& instruction) {
  constexpr std::string_view kCaches[] = {"buffer_wbl2", "buffer_inv", "buffer_wbinvl1"};
  const std::string_view name = instruction.opcode->name;
  effects.vmem = !starts_with_any(name, kCaches);  // cache control is not counted
  effects.flow = Flow::matters;
  effects.flat = name.starts_with("flat_");
  effects.reads_m0 = instruction.opcode->kind == Class::vmem_to_lds;
  if (effects.reads_m0) add_read(effects, {Where::scalar, kM0, 1});
}

/// A store whose data the next instructions may still overwrite: more than 64 bits, and of buffer
/// stores only those without an offset register.
bool stores_wide(const Effects& effects, const Instruction& instruction) {
  if (effects.data < 0 || effects.reads[static_cast<size_t>(effects.data)].count <= 2) return false;
  const std::string_view name = instruction.opcode->name;
  return !name.starts_with("buffer_") ||
         instruction.source[instruction.sources - 1].where != Where::scalar;
}

}  // namespace

std::string name_of(const Registers& registers, int i) {
  const int number = registers.first + i;
  if (registers.where == Where::scalar) {
    switch (number) {
      case kVcc:
        return "vcc_lo";
      case kVcc + 1:
        return "vcc_hi";
      case kM0:
        return "m0";
      default:
        break;
    }
  }
  std::string name(1, registers.where == Where::vector   ? 'v'
                      : registers.where == Where::scalar ? 's'
                                                         : 'a');
  return name.append(std::to_string(number));
}

Effects effects_of(const Instruction& instruction) {
  Effects effects;
  if (instruction.opcode == nullptr) return effects;
  const std::string_view name = instruction.opcode->name;
  if (name == "s_nop") effects.wait_states = static_cast<uint8_t>((instruction.immediate & 15) + 1);
  switch (instruction.opcode->kind) {
    case Class::valu:
    case Class::transcendental:
    case Class::mfma:
      classify_vector(effects, instruction);
      break;
    case Class::vmem:
    case Class::vmem_to_lds:
      classify_memory(effects, instruction);
      break;
    case Class::atomic:
    case Class::lds:
    case Class::lds_transpose:
      if (name.starts_with("ds_")) {
        effects.lds = true;
        effects.flow = Flow::matters;
      } else {
        classify_memory(effects, instruction);
      }
      break;
    case Class::smem:
      effects.smem = true;
      break;
    default:
      break;
  }
  add_operands(effects, instruction, effects.vmem ? data_source(name) : -1);
  effects.wide_store = stores_wide(effects, instruction);
  return effects;
}

std::vector<Effects> effects_of(std::span<const Instruction> instructions) {
  std::vector<Effects> effects;
  effects.reserve(instructions.size());
  for (const Instruction& instruction : instructions) effects.push_back(effects_of(instruction));
  return effects;
}

}  // namespace hipdecode::sim
