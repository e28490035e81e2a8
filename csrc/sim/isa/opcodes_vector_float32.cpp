// SPDX-License-Identifier: MIT
// fp32 arithmetic, minimum and maximum, rounding to whole numbers, exponents.
#include <cmath>

#include "float_order.h"
#include "vector.h"

namespace hipdecode::sim {
namespace {

using OrderF32 = Order<float>;

bool ieee(const Context& c) { return (c.wave.mode & kModeIeee) != 0; }

template <auto kPick>
void ordered2(Context& c, const Instruction& i) {
  Lanes scratch[2], result;
  const Lanes &a = read_float(c, i, 0, scratch[0]), &b = read_float(c, i, 1, scratch[1]);
  const bool quiet = ieee(c);
  {
    const FloatMode mode(c.wave.mode, FloatMode::single);
    for (int lane = 0; lane < kLanes; ++lane)
      result[lane] = as_bits(kPick(as_float(a[lane]), as_float(b[lane]), quiet));
  }
  write_float(c, i, result);
}

template <auto kPick>
void ordered3(Context& c, const Instruction& i) {
  Lanes scratch[3], result;
  const Lanes &a = read_float(c, i, 0, scratch[0]), &b = read_float(c, i, 1, scratch[1]),
              &d = read_float(c, i, 2, scratch[2]);
  const bool quiet = ieee(c);
  {
    const FloatMode mode(c.wave.mode, FloatMode::single);
    for (int lane = 0; lane < kLanes; ++lane)
      result[lane] = as_bits(kPick(as_float(a[lane]), as_float(b[lane]), as_float(d[lane]), quiet));
  }
  write_float(c, i, result);
}

/// x - floor(x), which stays below one for tiny negative numbers too.
float fract(float x) {
  const float part = x - std::floor(x);
  return part > 0x1.fffffep-1f ? 0x1.fffffep-1f : part;
}

/// Mantissa in [0.5, 1) with the sign; infinities and NaN unchanged.
float mantissa(float x) {
  int exponent = 0;
  return std::isfinite(x) ? std::frexp(x, &exponent) : x;
}

uint32_t exponent(float x) {
  int exponent = 0;
  if (std::isfinite(x)) std::frexp(x, &exponent);
  return static_cast<uint32_t>(exponent);
}

void v_frexp_exp_i32_f32(Context& c, const Instruction& i) {
  Lanes scratch, result;
  const Lanes& a = read_float(c, i, 0, scratch);
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = exponent(as_float(a[lane]));
  write(c, i, result);
}

void v_ldexp_f32(Context& c, const Instruction& i) {
  Lanes scratch[2], result;
  const Lanes &a = read_float(c, i, 0, scratch[0]), &b = read(c, i, 1, scratch[1]);
  const Rounding rounding = static_cast<Rounding>(c.wave.mode & 3);
  for (int lane = 0; lane < kLanes; ++lane) {
    const int wanted = static_cast<int32_t>(b[lane]);
    const int power = wanted < -400 ? -400 : (wanted > 400 ? 400 : wanted);
    result[lane] = encode<kSingle>(scale_by(as_float(a[lane]), power), rounding);
  }
  write_float(c, i, result);
}

void v_mul_legacy_f32(Context& c, const Instruction& i) {
  binary_f32<[](float a, float b) { return a == 0 || b == 0 ? 0.0f : a * b; }>(c, i);
}

// Cube map faces: which of x, y and z is the major axis.
enum class Axis : uint8_t { x, y, z };
Axis major_axis(float x, float y, float z) {
  const float ax = std::abs(x), ay = std::abs(y), az = std::abs(z);
  return az >= ax && az >= ay ? Axis::z : (ay >= ax ? Axis::y : Axis::x);
}
float cube_face(float x, float y, float z) {
  const Axis axis = major_axis(x, y, z);
  const float chosen = axis == Axis::z ? z : (axis == Axis::y ? y : x);
  return static_cast<float>(static_cast<int>(axis) * 2 + (chosen < 0 ? 1 : 0));
}
float cube_s(float x, float y, float z) {
  const Axis axis = major_axis(x, y, z);
  if (axis == Axis::z) return z < 0 ? -x : x;
  return axis == Axis::y ? x : (x < 0 ? z : -z);
}
float cube_t(float x, float y, float z) {
  return major_axis(x, y, z) != Axis::y ? -y : (y < 0 ? -z : z);
}
float cube_major(float x, float y, float z) {
  const Axis axis = major_axis(x, y, z);
  return 2 * (axis == Axis::z ? z : (axis == Axis::y ? y : x));
}

constexpr auto kAdd = [](float a, float b) { return a + b; };
constexpr auto kSubtract = [](float a, float b) { return a - b; };
constexpr auto kSubtractReversed = [](float a, float b) { return b - a; };
constexpr auto kMultiply = [](float a, float b) { return a * b; };
constexpr auto kFma = [](float a, float b, float d) { return __builtin_fmaf(a, b, d); };

constexpr Opcode kRows[] = {
    {"v_add_f32", Class::valu, binary_f32<kAdd>, kVop2},
    {"v_sub_f32", Class::valu, binary_f32<kSubtract>, kVop2},
    {"v_subrev_f32", Class::valu, binary_f32<kSubtractReversed>, kVop2},
    {"v_mul_f32", Class::valu, binary_f32<kMultiply>, kVop2},
    {"v_mul_legacy_f32", Class::valu, v_mul_legacy_f32, kVop3},
    {"v_fma_f32", Class::valu, ternary_f32<kFma>, kVop3},
    {"v_fmac_f32", Class::valu, ternary_f32<kFma>, kVop2},
    {"v_fmaak_f32", Class::valu, ternary_f32<kFma>, kVop2},
    {"v_fmamk_f32", Class::valu, ternary_f32<kFma>, kVop2},
    {"v_min_f32", Class::valu, ordered2<OrderF32::min>, kVop2},
    {"v_max_f32", Class::valu, ordered2<OrderF32::max>, kVop2},
    {"v_min3_f32", Class::valu, ordered3<OrderF32::min3>, kVop3},
    {"v_max3_f32", Class::valu, ordered3<OrderF32::max3>, kVop3},
    {"v_med3_f32", Class::valu, ordered3<OrderF32::med3>, kVop3},
    {"v_minimum3_f32", Class::valu, ordered3<OrderF32::minimum3>, kVop3},
    {"v_maximum3_f32", Class::valu, ordered3<OrderF32::maximum3>, kVop3},
    {"v_trunc_f32", Class::valu, unary_f32<[](float x) { return std::trunc(x); }>, kVop1},
    {"v_ceil_f32", Class::valu, unary_f32<[](float x) { return std::ceil(x); }>, kVop1},
    {"v_floor_f32", Class::valu, unary_f32<[](float x) { return std::floor(x); }>, kVop1},
    {"v_rndne_f32", Class::valu, unary_f32<[](float x) { return __builtin_roundevenf(x); }>, kVop1},
    {"v_fract_f32", Class::valu, unary_f32<fract>, kVop1},
    {"v_frexp_mant_f32", Class::valu, unary_f32<mantissa>, kVop1},
    {"v_frexp_exp_i32_f32", Class::valu, v_frexp_exp_i32_f32, kVop1},
    {"v_ldexp_f32", Class::valu, v_ldexp_f32, kVop3},
    {"v_cubeid_f32", Class::valu, ternary_f32<cube_face>, kVop3},
    {"v_cubesc_f32", Class::valu, ternary_f32<cube_s>, kVop3},
    {"v_cubetc_f32", Class::valu, ternary_f32<cube_t>, kVop3},
    {"v_cubema_f32", Class::valu, ternary_f32<cube_major>, kVop3},
};

}  // namespace

std::span<const Opcode> vector_float32_opcodes() { return kRows; }

}  // namespace hipdecode::sim
