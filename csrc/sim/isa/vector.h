// SPDX-License-Identifier: MIT
// What the executors of vector instructions are made of: lanes of 16, 32 and 64 bits, operand
// access that knows modifiers, and one template per shape. An executor is a shape around a lambda:
// its loop runs over all 64 lanes without branches, and write() keeps the active ones.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <type_traits>

#include "../load/instruction.h"
#include "../state/arch.h"
#include "../state/wave.h"
#include "conversions.h"
#include "float_mode.h"

namespace hipdecode::sim {

// Chapters of the CDNA3 and CDNA4 ISA guides that the rows name.
inline constexpr std::string_view kVop1 = "12.8 VOP1", kVop2 = "12.7 VOP2", kVopc = "12.9 VOPC",
                                  kVop3p = "12.10 VOP3P", kVop3 = "12.11 VOP3A & VOP3B";

// The rows of each family.
std::span<const Opcode> vector_float32_opcodes();
std::span<const Opcode> vector_float16_opcodes();
std::span<const Opcode> vector_float64_opcodes();
std::span<const Opcode> vector_transcendental_opcodes();
std::span<const Opcode> vector_division_opcodes();
std::span<const Opcode> vector_integer_opcodes();
std::span<const Opcode> vector_integer16_opcodes();
std::span<const Opcode> vector_integer64_opcodes();
std::span<const Opcode> vector_bytes_opcodes();
std::span<const Opcode> vector_carry_opcodes();
std::span<const Opcode> vector_packed_opcodes();
std::span<const Opcode> vector_dot_opcodes();
std::span<const Opcode> vector_compare_opcodes();
std::span<const Opcode> vector_convert_opcodes();
std::span<const Opcode> vector_narrow_opcodes();
std::span<const Opcode> vector_scaled_opcodes();
std::span<const Opcode> vector_lane_opcodes();

/// 64 lanes of a 64-bit register pair.
struct alignas(64) WideLanes {
  std::array<uint64_t, kLanes> at;
  uint64_t& operator[](int lane) { return at[static_cast<size_t>(lane)]; }
  uint64_t operator[](int lane) const { return at[static_cast<size_t>(lane)]; }
};

inline float as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t as_bits(float value) { return std::bit_cast<uint32_t>(value); }
inline double as_double(uint64_t bits) { return std::bit_cast<double>(bits); }
inline uint64_t as_bits(double value) { return std::bit_cast<uint64_t>(value); }

inline Rounding half_rounding(const Wave& wave) {
  return static_cast<Rounding>(wave.mode >> 2 & 3);
}
inline bool saturates(const Wave& wave) { return (wave.mode & kModeFp16Overflow) != 0; }

// Operands, vector.cpp. 16-bit values lie in the low half of each lane.
/// Integer source of 16 bits with op_sel applied; upper half zero.
void read_short(Context&, const Instruction&, int source, Lanes& value);
/// fp16 source: op_sel, negation and absolute applied; written constants become fp16.
void read_half(Context&, const Instruction&, int source, Lanes& value);
/// Half `high` of a packed source of two 16-bit integers (or fp16 values) under op_sel/op_sel_hi.
void read_packed(Context&, const Instruction&, int source, bool high, bool floating, Lanes& value);
void read_wide(Context&, const Instruction&, int source, WideLanes& value);
/// fp64 source with negation and absolute applied.
void read_double(Context&, const Instruction&, int source, WideLanes& value);

/// fp32 result: output scale and clamp applied.
void write_float(Context&, const Instruction&, Lanes& value);
/// 16-bit result. op_sel may ask for the upper half, which keeps the lower one. The other half is
/// kept too if `keep`, else it becomes zero.
void write_short(Context&, const Instruction&, Lanes& value, bool keep = false);
/// fp16 result: output scale and clamp, then as above.
void write_half(Context&, const Instruction&, Lanes& value, bool keep = false);
/// One byte of the destination, which op_sel[3:2] names; the others stay.
void write_byte(Context&, const Instruction&, Lanes& value);
void write_wide(Context&, const Instruction&, const WideLanes& value);
void write_double(Context&, const Instruction&, WideLanes& value);
/// Clamps fp32 bits to [0, 1] as MODE says.
void clamp_float(const Wave& wave, Lanes& value);

/// One bit per lane from 64 values of 0 or 1.
inline uint64_t gather_bits(const Lanes& flags) {
  std::array<uint8_t, kLanes> bytes;
  for (int lane = 0; lane < kLanes; ++lane)
    bytes[static_cast<size_t>(lane)] = static_cast<uint8_t>(flags[lane]);
  uint64_t result = 0;
  for (size_t group = 0; group < kLanes / 8; ++group) {
    uint64_t eight = 0;
    std::memcpy(&eight, &bytes[group * 8], 8);
    result |= (eight * 0x0102040810204080 >> 56) << group * 8;
  }
  return result;
}

template <auto kOperation>
void unary_b32(Context& c, const Instruction& i) {
  Lanes scratch, result;
  const Lanes& a = read(c, i, 0, scratch);
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = kOperation(a[lane]);
  write(c, i, result);
}

template <auto kOperation>
void binary_b32(Context& c, const Instruction& i) {
  Lanes scratch[2], result;
  const Lanes &a = read(c, i, 0, scratch[0]), &b = read(c, i, 1, scratch[1]);
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = kOperation(a[lane], b[lane]);
  write(c, i, result);
}

template <auto kOperation>
void ternary_b32(Context& c, const Instruction& i) {
  Lanes scratch[3], result;
  const Lanes &a = read(c, i, 0, scratch[0]), &b = read(c, i, 1, scratch[1]),
              &d = read(c, i, 2, scratch[2]);
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = kOperation(a[lane], b[lane], d[lane]);
  write(c, i, result);
}

template <auto kOperation>
void unary_f32(Context& c, const Instruction& i) {
  Lanes scratch, result;
  const Lanes& a = read_float(c, i, 0, scratch);
  {
    const FloatMode mode(c.wave.mode, FloatMode::single);
    for (int lane = 0; lane < kLanes; ++lane) result[lane] = as_bits(kOperation(as_float(a[lane])));
  }
  write_float(c, i, result);
}

template <auto kOperation>
void binary_f32(Context& c, const Instruction& i) {
  Lanes scratch[2], result;
  const Lanes &a = read_float(c, i, 0, scratch[0]), &b = read_float(c, i, 1, scratch[1]);
  {
    const FloatMode mode(c.wave.mode, FloatMode::single);
    for (int lane = 0; lane < kLanes; ++lane)
      result[lane] = as_bits(kOperation(as_float(a[lane]), as_float(b[lane])));
  }
  write_float(c, i, result);
}

template <auto kOperation>
void ternary_f32(Context& c, const Instruction& i) {
  Lanes scratch[3], result;
  const Lanes &a = read_float(c, i, 0, scratch[0]), &b = read_float(c, i, 1, scratch[1]),
              &d = read_float(c, i, 2, scratch[2]);
  {
    const FloatMode mode(c.wave.mode, FloatMode::single);
    for (int lane = 0; lane < kLanes; ++lane)
      result[lane] = as_bits(kOperation(as_float(a[lane]), as_float(b[lane]), as_float(d[lane])));
  }
  write_float(c, i, result);
}

/// fp16 arithmetic in fp64, where sums, products and fused products of fp16 values are exact or
/// round so far below fp16 that the one rounding of encode() is the right one.
template <bool kKeep, auto kOperation, int... kSource>
void half_operation(Context& c, const Instruction& i, std::integer_sequence<int, kSource...>) {
  Lanes source[sizeof...(kSource)], result;
  (read_half(c, i, kSource, source[kSource]), ...);
  const HalfMode mode(c.wave.mode);
  const Rounding rounding = half_rounding(c.wave);
  const bool saturate = saturates(c.wave);
  for (int lane = 0; lane < kLanes; ++lane) {
    const double value = kOperation(decode<kHalf>(mode.input(source[kSource][lane]))...);
    result[lane] = mode.output(encode<kHalf>(value, rounding, saturate));
  }
  write_half(c, i, result, kKeep);
}
template <auto kOperation>
void unary_f16(Context& c, const Instruction& i) {
  half_operation<false, kOperation>(c, i, std::integer_sequence<int, 0>{});
}
template <auto kOperation, bool kKeep = false>
void binary_f16(Context& c, const Instruction& i) {
  half_operation<kKeep, kOperation>(c, i, std::integer_sequence<int, 0, 1>{});
}
template <auto kOperation, bool kKeep = false>
void ternary_f16(Context& c, const Instruction& i) {
  half_operation<kKeep, kOperation>(c, i, std::integer_sequence<int, 0, 1, 2>{});
}

template <auto kOperation, int... kSource>
void double_operation(Context& c, const Instruction& i, std::integer_sequence<int, kSource...>) {
  WideLanes source[sizeof...(kSource)], result;
  (read_double(c, i, kSource, source[kSource]), ...);
  {
    const FloatMode mode(c.wave.mode, FloatMode::wide);
    for (int lane = 0; lane < kLanes; ++lane)
      result[lane] = as_bits(kOperation(as_double(source[kSource][lane])...));
  }
  write_double(c, i, result);
}
template <auto kOperation>
void unary_f64(Context& c, const Instruction& i) {
  double_operation<kOperation>(c, i, std::integer_sequence<int, 0>{});
}
template <auto kOperation>
void binary_f64(Context& c, const Instruction& i) {
  double_operation<kOperation>(c, i, std::integer_sequence<int, 0, 1>{});
}
template <auto kOperation>
void ternary_f64(Context& c, const Instruction& i) {
  double_operation<kOperation>(c, i, std::integer_sequence<int, 0, 1, 2>{});
}

/// Integer arithmetic that wraps, or saturates to Integer where the instruction says clamp.
/// kOperation is generic: it computes in uint32_t, and in int64_t to see what overflows.
template <class Integer, auto kOperation, bool kKeep = false, int... kSource>
void integer_operation(Context& c, const Instruction& i, std::integer_sequence<int, kSource...>) {
  constexpr bool kShort = sizeof(Integer) == 2;
  Lanes scratch[sizeof...(kSource)], result;
  const auto source = [&](int s) -> const Lanes& {
    if constexpr (!kShort) return read(c, i, s, scratch[s]);
    read_short(c, i, s, scratch[s]);
    return scratch[s];
  };
  const Lanes* const from[] = {&source(kSource)...};
  if (!i.modifiers.clamp) {
    for (int lane = 0; lane < kLanes; ++lane)
      result[lane] =
          static_cast<std::make_unsigned_t<Integer>>(kOperation((*from[kSource])[lane]...));
  } else {
    constexpr int64_t kLow = std::numeric_limits<Integer>::min(),
                      kHigh = std::numeric_limits<Integer>::max();
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t exact = kOperation(int64_t{static_cast<Integer>((*from[kSource])[lane])}...);
      result[lane] = static_cast<std::make_unsigned_t<Integer>>(
          exact < kLow ? kLow : (exact > kHigh ? kHigh : exact));
    }
  }
  if constexpr (kShort)
    write_short(c, i, result, kKeep);
  else
    write(c, i, result);
}
template <class Integer, auto kOperation, bool kKeep = false>
void binary_integer(Context& c, const Instruction& i) {
  integer_operation<Integer, kOperation, kKeep>(c, i, std::integer_sequence<int, 0, 1>{});
}
template <class Integer, auto kOperation, bool kKeep = false>
void ternary_integer(Context& c, const Instruction& i) {
  integer_operation<Integer, kOperation, kKeep>(c, i, std::integer_sequence<int, 0, 1, 2>{});
}

}  // namespace hipdecode::sim
