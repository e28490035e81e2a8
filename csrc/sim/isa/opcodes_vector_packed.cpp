// SPDX-License-Identifier: MIT
// Packed pairs: two fp32 in a register pair, two fp16 or 16-bit integers in a register; and the
// fp16/fp32 mixes of VOP3P.
#include "float_order.h"
#include "vector.h"

namespace hipdecode::sim {
namespace {

/// Half `high` of a packed fp32 source: op_sel and op_sel_hi choose a dword, neg_lo and neg_hi
/// its sign.
const Lanes& read_pair(Context& c, const Instruction& i, int source, bool high, Lanes& scratch) {
  const Modifiers& m = i.modifiers;
  const int dword = (high ? m.op_sel_hi : m.op_sel) >> source & 1;
  const Lanes& value = read(c, i, source, scratch, dword);
  if (((high ? m.neg_hi : m.neg_lo) >> source & 1) == 0) return value;
  for (int lane = 0; lane < kLanes; ++lane) scratch[lane] = value[lane] ^ 0x80000000u;
  return scratch;
}

template <auto kOperation, int... kSource>
void packed_single(Context& c, const Instruction& i, std::integer_sequence<int, kSource...>) {
  Lanes result[2];
  for (int half = 0; half < 2; ++half) {
    Lanes scratch[sizeof...(kSource)];
    const Lanes* const from[] = {&read_pair(c, i, kSource, half != 0, scratch[kSource])...};
    const FloatMode mode(c.wave.mode, FloatMode::single);
    for (int lane = 0; lane < kLanes; ++lane)
      result[half][lane] = as_bits(kOperation(as_float((*from[kSource])[lane])...));
    if (i.modifiers.clamp) clamp_float(c.wave, result[half]);
  }
  for (int half = 0; half < 2; ++half) write(c, i, result[half], half);
}
template <auto kOperation>
void binary_pk_f32(Context& c, const Instruction& i) {
  packed_single<kOperation>(c, i, std::integer_sequence<int, 0, 1>{});
}
template <auto kOperation>
void ternary_pk_f32(Context& c, const Instruction& i) {
  packed_single<kOperation>(c, i, std::integer_sequence<int, 0, 1, 2>{});
}

void v_pk_mov_b32(Context& c, const Instruction& i) {
  Lanes scratch, result[2];
  for (int half = 0; half < 2; ++half)
    result[half] = read(c, i, half, scratch, i.modifiers.op_sel >> half & 1);
  for (int half = 0; half < 2; ++half) write(c, i, result[half], half);
}

/// kOperation works on the bits of one half of each source.
template <bool kFloating, auto kOperation, int... kSource>
void packed_short(Context& c, const Instruction& i, std::integer_sequence<int, kSource...>) {
  Lanes result;
  for (int half = 0; half < 2; ++half) {
    Lanes source[sizeof...(kSource)];
    (read_packed(c, i, kSource, half != 0, kFloating, source[kSource]), ...);
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t bits = kOperation(c.wave, i, source[kSource][lane]...) & 0xffff;
      result[lane] = half == 0 ? bits : result[lane] | bits << 16;
    }
  }
  write(c, i, result);
}
template <bool kFloating, auto kOperation>
void binary_pk(Context& c, const Instruction& i) {
  packed_short<kFloating, kOperation>(c, i, std::integer_sequence<int, 0, 1>{});
}
template <bool kFloating, auto kOperation>
void ternary_pk(Context& c, const Instruction& i) {
  packed_short<kFloating, kOperation>(c, i, std::integer_sequence<int, 0, 1, 2>{});
}

/// A lambda on numbers as one on fp16 bits.
template <auto kOperation>
constexpr auto kHalves = [](const Wave& wave, const Instruction& i, auto... bits) {
  const HalfMode mode(wave.mode);
  const double value = kOperation(decode<kHalf>(mode.input(bits))...);
  const double bounded = value > 0 ? (value < 1 ? value : 1.0) : 0.0;
  const bool clamp = i.modifiers.clamp && (value == value || (wave.mode & kModeClampNan) != 0);
  return mode.output(encode<kHalf>(clamp ? bounded : value, half_rounding(wave), saturates(wave)));
};

/// A generic lambda as one on the bits of Integer; clamp saturates.
template <class Integer, auto kOperation>
constexpr auto kIntegers = [](const Wave&, const Instruction& i, auto... bits) {
  const int64_t exact = kOperation(int64_t{static_cast<Integer>(bits)}...);
  constexpr int64_t kLow = std::numeric_limits<Integer>::min(),
                    kHigh = std::numeric_limits<Integer>::max();
  const int64_t bounded = exact < kLow ? kLow : (exact > kHigh ? kHigh : exact);
  return static_cast<uint32_t>(i.modifiers.clamp ? bounded : exact);
};

constexpr auto kAddF32 = [](float a, float b) { return a + b; };
constexpr auto kMultiplyF32 = [](float a, float b) { return a * b; };
constexpr auto kFmaF32 = [](float a, float b, float d) { return __builtin_fmaf(a, b, d); };

constexpr auto kAdd = [](auto a, auto b) { return a + b; };
constexpr auto kSubtract = [](auto a, auto b) { return a - b; };
constexpr auto kMultiply = [](auto a, auto b) { return a * b; };
constexpr auto kMad = [](auto a, auto b, auto d) { return a * b + d; };
constexpr auto kMin = [](auto a, auto b) { return a < b ? a : b; };
constexpr auto kMax = [](auto a, auto b) { return a < b ? b : a; };
constexpr auto kShiftLeft = [](int64_t count, int64_t value) { return value << (count & 15); };
constexpr auto kShiftRight = [](int64_t count, int64_t value) {
  const int64_t shifted = value >> (count & 15);
  return shifted;
};
constexpr auto kMinF16 = [](double a, double b) { return Order<double>::min(a, b, true); };
constexpr auto kMaxF16 = [](double a, double b) { return Order<double>::max(a, b, true); };
constexpr auto kMinimum3 = [](double a, double b, double d) {
  return Order<double>::minimum3(a, b, d, true);
};
constexpr auto kMaximum3 = [](double a, double b, double d) {
  return Order<double>::maximum3(a, b, d, true);
};

using I16 = int16_t;
using U16 = uint16_t;

constexpr Opcode kRows[] = {
    {"v_pk_add_f32", Class::valu, binary_pk_f32<kAddF32>, kVop3p},
    {"v_pk_mul_f32", Class::valu, binary_pk_f32<kMultiplyF32>, kVop3p},
    {"v_pk_fma_f32", Class::valu, ternary_pk_f32<kFmaF32>, kVop3p},
    {"v_pk_mov_b32", Class::valu, v_pk_mov_b32, kVop3p},
    {"v_pk_add_f16", Class::valu, binary_pk<true, kHalves<kAdd>>, kVop3p},
    {"v_pk_mul_f16", Class::valu, binary_pk<true, kHalves<kMultiply>>, kVop3p},
    {"v_pk_fma_f16", Class::valu, ternary_pk<true, kHalves<kMad>>, kVop3p},
    {"v_pk_fmac_f16", Class::valu, ternary_pk<true, kHalves<kMad>>, kVop2},
    {"v_pk_min_f16", Class::valu, binary_pk<true, kHalves<kMinF16>>, kVop3p},
    {"v_pk_max_f16", Class::valu, binary_pk<true, kHalves<kMaxF16>>, kVop3p},
    {"v_pk_minimum3_f16", Class::valu, ternary_pk<true, kHalves<kMinimum3>>, kVop3p},
    {"v_pk_maximum3_f16", Class::valu, ternary_pk<true, kHalves<kMaximum3>>, kVop3p},
    {"v_pk_add_i16", Class::valu, binary_pk<false, kIntegers<I16, kAdd>>, kVop3p},
    {"v_pk_sub_i16", Class::valu, binary_pk<false, kIntegers<I16, kSubtract>>, kVop3p},
    {"v_pk_mad_i16", Class::valu, ternary_pk<false, kIntegers<I16, kMad>>, kVop3p},
    {"v_pk_min_i16", Class::valu, binary_pk<false, kIntegers<I16, kMin>>, kVop3p},
    {"v_pk_max_i16", Class::valu, binary_pk<false, kIntegers<I16, kMax>>, kVop3p},
    {"v_pk_ashrrev_i16", Class::valu, binary_pk<false, kIntegers<I16, kShiftRight>>, kVop3p},
    {"v_pk_add_u16", Class::valu, binary_pk<false, kIntegers<U16, kAdd>>, kVop3p},
    {"v_pk_sub_u16", Class::valu, binary_pk<false, kIntegers<U16, kSubtract>>, kVop3p},
    {"v_pk_mad_u16", Class::valu, ternary_pk<false, kIntegers<U16, kMad>>, kVop3p},
    {"v_pk_mul_lo_u16", Class::valu, binary_pk<false, kIntegers<U16, kMultiply>>, kVop3p},
    {"v_pk_min_u16", Class::valu, binary_pk<false, kIntegers<U16, kMin>>, kVop3p},
    {"v_pk_max_u16", Class::valu, binary_pk<false, kIntegers<U16, kMax>>, kVop3p},
    {"v_pk_lshlrev_b16", Class::valu, binary_pk<false, kIntegers<U16, kShiftLeft>>, kVop3p},
    {"v_pk_lshrrev_b16", Class::valu, binary_pk<false, kIntegers<U16, kShiftRight>>, kVop3p},
};

}  // namespace

std::span<const Opcode> vector_packed_opcodes() { return kRows; }

}  // namespace hipdecode::sim
