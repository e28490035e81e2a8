// SPDX-License-Identifier: MIT
#include "vector.h"

#include <vector>

#include "opcodes.h"

namespace hipdecode::sim {
namespace {

constexpr uint32_t kOneSingle = 0x3f800000, kOneHalf = 0x3c00;

/// omod does something only where denormals are flushed and IEEE is off, as the hardware has it.
bool scales_output(const Wave& wave, uint32_t denormals) {
  return denormals < 2 && (wave.mode & kModeIeee) == 0;
}

double output_factor(const Instruction& i) {
  constexpr double kFactors[] = {1, 2, 4, 0.5};
  return kFactors[i.modifiers.output_scale];
}

/// Constants that are written as numbers are fp32 patterns; fp16 operands want them as fp16.
void read_as_half(Context& c, const Instruction& i, int source, Lanes& value) {
  const Operand& operand = i.source[source];
  if (operand.where == Where::constant && operand.float_constant) {
    value.at.fill(encode<kHalf>(as_float(static_cast<uint32_t>(operand.bits))));
    return;
  }
  Lanes scratch;
  value = read(c, i, source, scratch);
}

void take_half(Lanes& value, bool high) {
  const int shift = high ? 16 : 0;
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = value[lane] >> shift & 0xffff;
}

void change_sign(Lanes& value, bool absolute, bool negate, uint32_t sign) {
  if (!absolute && !negate) return;
  const uint32_t keep = absolute ? ~sign : ~0u, flip = negate ? sign : 0;
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = (value[lane] & keep) ^ flip;
}

}  // namespace

void read_short(Context& c, const Instruction& i, int source, Lanes& value) {
  Lanes scratch;
  value = read(c, i, source, scratch);
  take_half(value, i.modifiers.op_sel >> source & 1);
}

void read_half(Context& c, const Instruction& i, int source, Lanes& value) {
  read_as_half(c, i, source, value);
  take_half(value, i.modifiers.op_sel >> source & 1);
  change_sign(value, i.source[source].absolute, i.source[source].negate, 0x8000);
}

void read_packed(Context& c, const Instruction& i, int source, bool high, bool floating,
                 Lanes& value) {
  const Modifiers& m = i.modifiers;
  if (floating) {
    read_as_half(c, i, source, value);
  } else {
    Lanes scratch;
    value = read(c, i, source, scratch);
  }
  take_half(value, (high ? m.op_sel_hi : m.op_sel) >> source & 1);
  if (floating) change_sign(value, false, (high ? m.neg_hi : m.neg_lo) >> source & 1, 0x8000);
}

void read_wide(Context& c, const Instruction& i, int source, WideLanes& value) {
  Lanes scratch[2];
  const Lanes &low = read(c, i, source, scratch[0], 0), &high = read(c, i, source, scratch[1], 1);
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = uint64_t{high[lane]} << 32 | low[lane];
}

void read_double(Context& c, const Instruction& i, int source, WideLanes& value) {
  read_wide(c, i, source, value);
  const Operand& operand = i.source[source];
  constexpr uint64_t kSign = uint64_t{1} << 63;
  if (!operand.absolute && !operand.negate) return;
  const uint64_t keep = operand.absolute ? ~kSign : ~uint64_t{0}, flip = operand.negate ? kSign : 0;
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = (value[lane] & keep) ^ flip;
}

void clamp_float(const Wave& wave, Lanes& value) {
  const bool nan_to_zero = (wave.mode & kModeClampNan) != 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const float x = as_float(value[lane]);
    const uint32_t bounded = x > 0.0f ? (x < 1.0f ? value[lane] : kOneSingle) : 0;
    value[lane] = x == x || nan_to_zero ? bounded : value[lane];
  }
}

void write_float(Context& c, const Instruction& i, Lanes& value) {
  if (i.modifiers.output_scale != 0 && scales_output(c.wave, c.wave.mode >> 4 & 3)) {
    const float factor = static_cast<float>(output_factor(i));
    for (int lane = 0; lane < kLanes; ++lane)  // -0 becomes +0
      value[lane] = flush_single(as_bits(as_float(value[lane]) * factor + 0.0f));
  }
  if (i.modifiers.clamp) clamp_float(c.wave, value);
  write(c, i, value);
}

void write_short(Context& c, const Instruction& i, Lanes& value, bool keep) {
  const bool upper = i.modifiers.op_sel >> i.sources & 1;
  if (upper || keep) {
    const Lanes& old = c.wave.vector[static_cast<size_t>(c.wave.slot(i.destination[0]))];
    const uint32_t kept = upper ? 0xffff : 0xffff0000;
    const int shift = upper ? 16 : 0;
    for (int lane = 0; lane < kLanes; ++lane)
      value[lane] = (old[lane] & kept) | (value[lane] & 0xffff) << shift;
  }
  write(c, i, value);
}

void write_byte(Context& c, const Instruction& i, Lanes& value) {
  const Lanes& old = c.wave.vector[static_cast<size_t>(c.wave.slot(i.destination[0]))];
  const int shift = (i.modifiers.op_sel >> 2 & 3) * 8;
  const uint32_t mask = 0xffu << shift;
  for (int lane = 0; lane < kLanes; ++lane)
    value[lane] = (old[lane] & ~mask) | (value[lane] << shift & mask);
  write(c, i, value);
}

void write_half(Context& c, const Instruction& i, Lanes& value, bool keep) {
  if (i.modifiers.output_scale != 0 && scales_output(c.wave, c.wave.mode >> 6 & 3)) {
    const HalfMode mode(c.wave.mode);
    const double factor = output_factor(i);
    for (int lane = 0; lane < kLanes; ++lane)
      value[lane] = mode.output(encode<kHalf>(decode<kHalf>(value[lane]) * factor + 0.0));
  }
  if (i.modifiers.clamp) {
    const bool nan_to_zero = (c.wave.mode & kModeClampNan) != 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t bits = value[lane];
      const uint32_t bounded = bits & 0x8000 ? 0 : (bits < kOneHalf ? bits : kOneHalf);
      const bool nan = (bits & 0x7fff) > 0x7c00;
      value[lane] = nan ? (nan_to_zero ? 0 : bits) : bounded;
    }
  }
  write_short(c, i, value, keep);
}

void write_wide(Context& c, const Instruction& i, const WideLanes& value) {
  Lanes half;
  for (int dword = 0; dword < 2; ++dword) {
    for (int lane = 0; lane < kLanes; ++lane)
      half[lane] = static_cast<uint32_t>(value[lane] >> dword * 32);
    write(c, i, half, dword);
  }
}

void write_double(Context& c, const Instruction& i, WideLanes& value) {
  if (i.modifiers.output_scale != 0 && scales_output(c.wave, c.wave.mode >> 6 & 3)) {
    const FloatMode mode(c.wave.mode, FloatMode::wide);
    const double factor = output_factor(i);
    for (int lane = 0; lane < kLanes; ++lane)
      value[lane] = as_bits(as_double(value[lane]) * factor + 0.0);
  }
  if (i.modifiers.clamp) {
    const bool nan_to_zero = (c.wave.mode & kModeClampNan) != 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const double x = as_double(value[lane]);
      const double bounded = x > 0.0 ? (x < 1.0 ? x : 1.0) : 0.0;
      value[lane] = x == x || nan_to_zero ? as_bits(bounded) : value[lane];
    }
  }
  write_wide(c, i, value);
}

std::span<const Opcode> vector_opcodes() {
  static const std::vector<Opcode> rows = [] {
    std::vector<Opcode> result;
    for (const auto family :
         {vector_float32_opcodes(), vector_float16_opcodes(), vector_float64_opcodes(),
          vector_transcendental_opcodes(), vector_division_opcodes(), vector_integer_opcodes(),
          vector_integer16_opcodes(), vector_integer64_opcodes(), vector_bytes_opcodes(),
          vector_carry_opcodes(), vector_packed_opcodes(), vector_dot_opcodes(),
          vector_compare_opcodes(), vector_convert_opcodes(), vector_narrow_opcodes(),
          vector_scaled_opcodes(), vector_lane_opcodes()})
      result.insert(result.end(), family.begin(), family.end());
    return result;
  }();
  return rows;
}

}  // namespace hipdecode::sim
