// SPDX-License-Identifier: MIT
// fp16 arithmetic. The VOP3 forms that gfx9 added keep the other half of their destination; the
// older ones and the _legacy ones clear it.
#include <cmath>

#include "float_order.h"
#include "vector.h"

namespace hipdecode::sim {
namespace {

/// Picks in fp32, where every fp16 value and its quiet bit have their place.
template <auto kPick, bool kKeep, int... kSource>
void ordered_operation(Context& c, const Instruction& i, std::integer_sequence<int, kSource...>) {
  Lanes source[sizeof...(kSource)], result;
  (read_half(c, i, kSource, source[kSource]), ...);
  const HalfMode mode(c.wave.mode);
  const bool ieee = (c.wave.mode & kModeIeee) != 0;
  const auto widen = [&](uint32_t bits) {
    const uint32_t flushed = mode.input(bits);
    const bool nan = (flushed & 0x7fff) > 0x7c00;  // keeps a signalling NaN signalling
    const uint32_t raw = (flushed & 0x8000) << 16 | 0x7f800000 | (flushed & 0x3ff) << 13;
    return nan ? as_float(raw) : static_cast<float>(decode<kHalf>(flushed));
  };
  const auto narrow = [&](float value) {
    const uint32_t bits = as_bits(value);
    const uint32_t nan = (bits >> 16 & 0x8000) | 0x7c00 | (bits >> 13 & 0x3ff);
    return value == value ? encode<kHalf>(value) : nan;
  };
  for (int lane = 0; lane < kLanes; ++lane)
    result[lane] = narrow(kPick(widen(source[kSource][lane])..., ieee));
  write_half(c, i, result, kKeep);
}
template <auto kPick>
void ordered2(Context& c, const Instruction& i) {
  ordered_operation<kPick, false>(c, i, std::integer_sequence<int, 0, 1>{});
}
template <auto kPick>
void ordered3(Context& c, const Instruction& i) {
  ordered_operation<kPick, true>(c, i, std::integer_sequence<int, 0, 1, 2>{});
}

double fract(double x) {
  const double part = x - std::floor(x);
  return part > 0x1.ffcp-1 ? 0x1.ffcp-1 : part;
}

double mantissa(double x) {
  int exponent = 0;
  return std::isfinite(x) ? std::frexp(x, &exponent) : x;
}

void v_frexp_exp_i16_f16(Context& c, const Instruction& i) {
  Lanes value;
  read_half(c, i, 0, value);
  for (int lane = 0; lane < kLanes; ++lane) {
    const double x = decode<kHalf>(value[lane]);
    int exponent = 0;
    if (std::isfinite(x)) std::frexp(x, &exponent);
    value[lane] = static_cast<uint16_t>(exponent);
  }
  write_short(c, i, value);
}

void v_ldexp_f16(Context& c, const Instruction& i) {
  Lanes a, b;
  read_half(c, i, 0, a);
  read_short(c, i, 1, b);
  for (int lane = 0; lane < kLanes; ++lane) {
    const int wanted = static_cast<int16_t>(b[lane]);
    const int power = wanted < -100 ? -100 : (wanted > 100 ? 100 : wanted);
    a[lane] = encode<kHalf>(scale_by(decode<kHalf>(a[lane]), power), half_rounding(c.wave),
                            saturates(c.wave));
  }
  write_half(c, i, a);
}

void v_pack_b32_f16(Context& c, const Instruction& i) {
  Lanes low, high;
  read_half(c, i, 0, low);
  read_half(c, i, 1, high);
  for (int lane = 0; lane < kLanes; ++lane) low[lane] |= high[lane] << 16;
  write(c, i, low);
}

constexpr auto kAdd = [](double a, double b) { return a + b; };
constexpr auto kSubtract = [](double a, double b) { return a - b; };
constexpr auto kSubtractReversed = [](double a, double b) { return b - a; };
constexpr auto kMultiply = [](double a, double b) { return a * b; };
constexpr auto kFma = [](double a, double b, double d) { return a * b + d; };

/// a * b rounded to fp16 before it is added, unlike a fused one.
template <bool kKeep>
void multiply_add(Context& c, const Instruction& i) {
  Lanes a, b, d, result;
  read_half(c, i, 0, a);
  read_half(c, i, 1, b);
  read_half(c, i, 2, d);
  const HalfMode mode(c.wave.mode);
  const Rounding rounding = half_rounding(c.wave);
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t product = encode<kHalf>(
        decode<kHalf>(mode.input(a[lane])) * decode<kHalf>(mode.input(b[lane])), rounding);
    const double sum = decode<kHalf>(mode.output(product)) + decode<kHalf>(mode.input(d[lane]));
    result[lane] = mode.output(encode<kHalf>(sum, rounding, saturates(c.wave)));
  }
  write_half(c, i, result, kKeep);
}

using OrderF16 = Order<float>;

constexpr Opcode kRows[] = {
    {"v_add_f16", Class::valu, binary_f16<kAdd>, kVop2},
    {"v_sub_f16", Class::valu, binary_f16<kSubtract>, kVop2},
    {"v_subrev_f16", Class::valu, binary_f16<kSubtractReversed>, kVop2},
    {"v_mul_f16", Class::valu, binary_f16<kMultiply>, kVop2},
    {"v_mac_f16", Class::valu, multiply_add<false>, kVop2},
    {"v_madak_f16", Class::valu, multiply_add<false>, kVop2},
    {"v_madmk_f16", Class::valu, multiply_add<false>, kVop2},
    {"v_mad_f16", Class::valu, multiply_add<true>, kVop3},
    {"v_mad_legacy_f16", Class::valu, multiply_add<false>, kVop3},
    {"v_fma_f16", Class::valu, ternary_f16<kFma, true>, kVop3},
    {"v_fma_legacy_f16", Class::valu, ternary_f16<kFma>, kVop3},
    {"v_min_f16", Class::valu, ordered2<OrderF16::min>, kVop2},
    {"v_max_f16", Class::valu, ordered2<OrderF16::max>, kVop2},
    {"v_min3_f16", Class::valu, ordered3<OrderF16::min3>, kVop3},
    {"v_max3_f16", Class::valu, ordered3<OrderF16::max3>, kVop3},
    {"v_med3_f16", Class::valu, ordered3<OrderF16::med3>, kVop3},
    {"v_trunc_f16", Class::valu, unary_f16<[](double x) { return std::trunc(x); }>, kVop1},
    {"v_ceil_f16", Class::valu, unary_f16<[](double x) { return std::ceil(x); }>, kVop1},
    {"v_floor_f16", Class::valu, unary_f16<[](double x) { return std::floor(x); }>, kVop1},
    {"v_rndne_f16", Class::valu, unary_f16<[](double x) { return __builtin_roundeven(x); }>, kVop1},
    {"v_fract_f16", Class::valu, unary_f16<fract>, kVop1},
    {"v_frexp_mant_f16", Class::valu, unary_f16<mantissa>, kVop1},
    {"v_frexp_exp_i16_f16", Class::valu, v_frexp_exp_i16_f16, kVop1},
    {"v_ldexp_f16", Class::valu, v_ldexp_f16, kVop2},
    {"v_pack_b32_f16", Class::valu, v_pack_b32_f16, kVop3},
};

}  // namespace

std::span<const Opcode> vector_float16_opcodes() { return kRows; }

}  // namespace hipdecode::sim
