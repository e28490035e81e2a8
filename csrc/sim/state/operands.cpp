// SPDX-License-Identifier: MIT
#include <algorithm>
#include <array>
#include <bit>

#include "wave.h"

namespace hipdecode::sim {
namespace {

constexpr uint8_t kSelectDword = 6, kUnusedSext = 1, kUnusedPreserve = 2;
constexpr uint32_t kSign = 0x80000000u;
constexpr int kInvalidLane = -1;
constexpr int kDppControls = 0x160;

using DppTable = std::array<int8_t, kLanes>;

/// The lane that `lane` reads under a DPP control, or kInvalidLane.
constexpr int dpp_source(int control, int lane) {
  const int row = lane & ~15, in_row = lane & 15, n = control & 15;
  const auto inside_row = [&](int position) {
    return position >= 0 && position < 16 ? row + position : kInvalidLane;
  };
  const auto inside_wave = [](int position) {
    return position >= 0 && position < kLanes ? position : kInvalidLane;
  };
  if (control < 0x100) return (lane & ~3) + (control >> (lane & 3) * 2 & 3);  // quad_perm
  switch (control & ~15) {
    case 0x100:
      return n == 0 ? kInvalidLane : inside_row(in_row + n);  // row_shl
    case 0x110:
      return n == 0 ? kInvalidLane : inside_row(in_row - n);  // row_shr
    case 0x120:
      return row + ((in_row - n) & 15);  // row_ror
    case 0x150:
      return row + n;  // row_newbcast
    default:
      break;
  }
  switch (control) {
    case 0x130:
      return inside_wave(lane + 1);  // wave_shl:1
    case 0x134:
      return (lane + 1) & 63;  // wave_rol:1
    case 0x138:
      return inside_wave(lane - 1);  // wave_shr:1
    case 0x13c:
      return (lane - 1) & 63;  // wave_ror:1
    case 0x140:
      return row + 15 - in_row;  // row_mirror
    case 0x141:
      return (lane & ~7) + 7 - (lane & 7);  // row_half_mirror
    case 0x142:
      return row == 0 ? kInvalidLane : row - 1;  // row_bcast:15
    case 0x143:
      return lane < 32 ? kInvalidLane : 31;  // row_bcast:31
    default:
      return kInvalidLane;
  }
}

const DppTable& dpp_table(const Modifiers& modifiers) {
  static const auto tables = [] {
    std::array<DppTable, kDppControls> result{};
    for (int control = 0; control < kDppControls; ++control)
      for (int lane = 0; lane < kLanes; ++lane)
        result[static_cast<size_t>(control)][static_cast<size_t>(lane)] =
            static_cast<int8_t>(dpp_source(control, lane));
    return result;
  }();
  if (modifiers.dpp_ctrl >= kDppControls)
    throw Fault("dpp: expected a control below 0x160, got " + std::to_string(modifiers.dpp_ctrl));
  return tables[modifiers.dpp_ctrl];
}

/// Lanes whose DPP source is there and enabled.
uint64_t dpp_valid(const Modifiers& modifiers, uint64_t exec) {
  const DppTable& from = dpp_table(modifiers);
  uint64_t result = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int source = from[static_cast<size_t>(lane)];
    if (source != kInvalidLane && (exec >> source & 1)) result |= uint64_t{1} << lane;
  }
  return result;
}

/// Lanes that a DPP instruction may write.
uint64_t dpp_mask(const Modifiers& modifiers, uint64_t exec) {
  uint64_t result = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    if ((modifiers.row_mask >> lane / 16 & 1) && (modifiers.bank_mask >> lane / 4 % 4 & 1))
      result |= uint64_t{1} << lane;
  return modifiers.bound_ctrl ? result : result & dpp_valid(modifiers, exec);
}

void permute(const Wave& wave, const Modifiers& modifiers, const Lanes& from, Lanes& to) {
  const DppTable& lanes = dpp_table(modifiers);
  const uint64_t valid = dpp_valid(modifiers, wave.exec);
  Lanes result;
  for (int lane = 0; lane < kLanes; ++lane)
    result[lane] = valid >> lane & 1 ? from[lanes[static_cast<size_t>(lane)]] : 0;
  to = result;
}

/// A byte or a word of each lane (SDWA).
void select(const Operand& operand, const Lanes& from, Lanes& to) {
  const bool byte = operand.sdwa_select < 4;
  const int shift = byte ? operand.sdwa_select * 8 : (operand.sdwa_select - 4) * 16;
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t bits = from[lane] >> shift;
    if (byte)
      to[lane] =
          operand.sign_extend ? static_cast<uint32_t>(static_cast<int8_t>(bits)) : bits & 0xff;
    else
      to[lane] =
          operand.sign_extend ? static_cast<uint32_t>(static_cast<int16_t>(bits)) : bits & 0xffff;
  }
}

/// The new register of an SDWA destination selection.
void deposit(const Modifiers& modifiers, const Lanes& value, const Lanes& old, Lanes& to) {
  const bool byte = modifiers.sdwa_dst_select < 4;
  const int bits = byte ? 8 : 16;
  const int shift = byte ? modifiers.sdwa_dst_select * 8 : (modifiers.sdwa_dst_select - 4) * 16;
  const uint32_t mask = ((1u << bits) - 1) << shift;
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t placed = value[lane] << shift & mask;
    uint32_t rest = 0;
    if (modifiers.sdwa_dst_unused == kUnusedPreserve) rest = old[lane] & ~mask;
    if (modifiers.sdwa_dst_unused == kUnusedSext && (value[lane] >> (bits - 1) & 1))
      rest = ~mask & ~((1u << shift) - 1);
    to[lane] = placed | rest;
  }
}

bool is_vector(const Operand& operand) {
  return operand.where == Where::vector || operand.where == Where::accumulator;
}

/// Where a vector operand lies, s_set_gpr_idx_on applied: `bit` of M0[15:12] says whether to.
size_t relative_slot(const Wave& wave, const Operand& operand, int dword, int bit) {
  int slot = wave.slot(operand, dword);
  const uint32_t m0 = wave.scalar[kM0];
  if (wave.relative_registers() && (m0 >> (12 + bit) & 1)) slot += static_cast<int>(m0 & 0xff);
  if (slot >= kVectorRegisters)
    throw Fault("registers: expected a vector register below " + std::to_string(kVectorRegisters) +
                ", got " + std::to_string(slot));
  return static_cast<size_t>(slot);
}

uint32_t special_scalar(const Wave& wave, int number) {
  switch (number) {
    case kSharedLimit:
    case kPrivateLimit:
      return 0xffffffff;
    case kVccz:
      return wave.vcc() == 0;
    case kExecz:
      return wave.exec == 0;
    case kScc:
      return wave.scc;
    default:
      throw Fault("registers: expected a scalar register, got number " + std::to_string(number));
  }
}

uint32_t scalar_dword(const Wave& wave, const Operand& operand, int dword) {
  const int number = operand.first + dword;
  if (operand.first == kSharedBase) return dword == 0 ? 0 : kSharedAperture;
  if (operand.first == kPrivateBase) return dword == 0 ? 0 : kPrivateAperture;
  if (operand.first >= 128) return dword == 0 ? special_scalar(wave, operand.first) : 0;
  if (dword >= operand.count) return 0;
  if (number == kExec) return static_cast<uint32_t>(wave.exec);
  if (number == kExec + 1) return static_cast<uint32_t>(wave.exec >> 32);
  return wave.scalar[static_cast<size_t>(number)];
}

}  // namespace

namespace detail {

const Lanes& read_slowly(Context& context, const Instruction& instruction, int source,
                         Lanes& scratch, int dword) {
  const Operand& operand = instruction.source[source];
  const Wave& wave = context.wave;
  const Lanes* result = &scratch;
  if (is_vector(operand))
    result = &wave.vector[relative_slot(wave, operand, dword, source)];
  else if (operand.where == Where::scalar)
    scratch.at.fill(scalar_dword(wave, operand, dword));
  else if (operand.where == Where::constant)
    scratch.at.fill(static_cast<uint32_t>(operand.bits >> dword * 32));
  else
    throw Fault("operands: expected source " + std::to_string(source) + ", got none");
  if (instruction.modifiers.dpp && source == 0) {
    permute(wave, instruction.modifiers, *result, scratch);
    result = &scratch;
  }
  if (instruction.modifiers.sdwa && operand.sdwa_select != kSelectDword) {
    select(operand, *result, scratch);
    result = &scratch;
  }
  return *result;
}

void write_slowly(Context& context, const Instruction& instruction, const Lanes& value, int dword,
                  int destination) {
  const Operand& operand = instruction.destination[destination];
  if (!is_vector(operand))
    throw Fault("operands: expected vector destination " + std::to_string(destination) +
                ", got none");
  Wave& wave = context.wave;
  const Modifiers& modifiers = instruction.modifiers;
  const size_t slot = relative_slot(wave, operand, dword, 3);
  Lanes& old = wave.vector[slot];
  Lanes placed;
  const Lanes* from = &value;
  if (modifiers.sdwa && modifiers.sdwa_dst_select != kSelectDword) {
    deposit(modifiers, value, old, placed);
    from = &placed;
  }
  const uint64_t mask = modifiers.dpp ? wave.exec & dpp_mask(modifiers, wave.exec) : wave.exec;
  for (int lane = 0; lane < kLanes; ++lane)
    old[lane] = mask >> lane & 1 ? (*from)[lane] : old[lane];
  wave.written[slot] |= mask;
}

}  // namespace detail

const Lanes& read_float(Context& context, const Instruction& instruction, int source,
                        Lanes& scratch) {
  const Operand& operand = instruction.source[source];
  const Lanes& raw = read(context, instruction, source, scratch);
  if (!operand.negate && !operand.absolute) return raw;
  const uint32_t keep = operand.absolute ? ~kSign : ~0u, flip = operand.negate ? kSign : 0;
  for (int lane = 0; lane < kLanes; ++lane) scratch[lane] = (raw[lane] & keep) ^ flip;
  return scratch;
}

uint64_t read_scalar(Context& context, const Operand& operand) {
  if (operand.where == Where::constant) return operand.bits;
  if (operand.where != Where::scalar)
    throw Fault("operands: expected a scalar register or a constant, got another operand");
  const uint64_t low = scalar_dword(context.wave, operand, 0);
  if (operand.count < 2) return low;
  return low | uint64_t{scalar_dword(context.wave, operand, 1)} << 32;
}

void write_scalar(Context& context, const Operand& operand, uint64_t value) {
  if (operand.where != Where::scalar || operand.first >= 128)
    throw Fault("operands: expected a scalar destination, got another operand");
  Wave& wave = context.wave;
  const uint32_t low = static_cast<uint32_t>(value), high = static_cast<uint32_t>(value >> 32);
  if (operand.first == kExec && operand.count == 2)
    wave.exec = value;
  else if (operand.first == kExec)
    wave.exec = (wave.exec & ~uint64_t{0xffffffff}) | low;
  else if (operand.first == kExec + 1)
    wave.exec = (wave.exec & 0xffffffff) | uint64_t{low} << 32;
  else {
    wave.scalar[operand.first] = low;
    if (operand.count == 2) wave.scalar[operand.first + size_t{1}] = high;
  }
}

void write_mask(Context& context, const Operand& operand, uint64_t lanes) {
  write_scalar(context, operand, lanes & context.wave.exec);
}

}  // namespace hipdecode::sim
