// SPDX-License-Identifier: MIT
// fp64 arithmetic.
#include <cmath>

#include "float_order.h"
#include "vector.h"

namespace hipdecode::sim {
namespace {

template <auto kPick>
void ordered2(Context& c, const Instruction& i) {
  WideLanes a, b, result;
  read_double(c, i, 0, a);
  read_double(c, i, 1, b);
  const bool ieee = (c.wave.mode & kModeIeee) != 0;
  for (int lane = 0; lane < kLanes; ++lane)
    result[lane] = as_bits(kPick(as_double(a[lane]), as_double(b[lane]), ieee));
  write_double(c, i, result);
}

double fract(double x) {
  const double part = x - std::floor(x);
  return part > 0x1.fffffffffffffp-1 ? 0x1.fffffffffffffp-1 : part;
}

double mantissa(double x) {
  int exponent = 0;
  return std::isfinite(x) ? std::frexp(x, &exponent) : x;
}

void v_frexp_exp_i32_f64(Context& c, const Instruction& i) {
  WideLanes a;
  Lanes result;
  read_double(c, i, 0, a);
  for (int lane = 0; lane < kLanes; ++lane) {
    int exponent = 0;
    if (std::isfinite(as_double(a[lane]))) std::frexp(as_double(a[lane]), &exponent);
    result[lane] = static_cast<uint32_t>(exponent);
  }
  write(c, i, result);
}

void v_ldexp_f64(Context& c, const Instruction& i) {
  WideLanes a;
  Lanes scratch;
  read_double(c, i, 0, a);
  const Lanes& b = read(c, i, 1, scratch);
  {
    const FloatMode mode(c.wave.mode, FloatMode::wide);
    for (int lane = 0; lane < kLanes; ++lane)
      a[lane] = as_bits(std::ldexp(as_double(a[lane]), static_cast<int32_t>(b[lane])));
  }
  write_double(c, i, a);
}

constexpr auto kAdd = [](double a, double b) { return a + b; };
constexpr auto kMultiply = [](double a, double b) { return a * b; };
constexpr auto kFma = [](double a, double b, double d) { return __builtin_fma(a, b, d); };

constexpr Opcode kRows[] = {
    {"v_add_f64", Class::valu, binary_f64<kAdd>, kVop3},
    {"v_mul_f64", Class::valu, binary_f64<kMultiply>, kVop3},
    {"v_fma_f64", Class::valu, ternary_f64<kFma>, kVop3},
    {"v_fmac_f64", Class::valu, ternary_f64<kFma>, kVop2},
    {"v_min_f64", Class::valu, ordered2<Order<double>::min>, kVop3},
    {"v_max_f64", Class::valu, ordered2<Order<double>::max>, kVop3},
    {"v_trunc_f64", Class::valu, unary_f64<[](double x) { return std::trunc(x); }>, kVop1},
    {"v_ceil_f64", Class::valu, unary_f64<[](double x) { return std::ceil(x); }>, kVop1},
    {"v_floor_f64", Class::valu, unary_f64<[](double x) { return std::floor(x); }>, kVop1},
    {"v_rndne_f64", Class::valu, unary_f64<[](double x) { return __builtin_roundeven(x); }>, kVop1},
    {"v_fract_f64", Class::valu, unary_f64<fract>, kVop1},
    {"v_frexp_mant_f64", Class::valu, unary_f64<mantissa>, kVop1},
    {"v_frexp_exp_i32_f64", Class::valu, v_frexp_exp_i32_f64, kVop1},
    {"v_ldexp_f64", Class::valu, v_ldexp_f64, kVop3},
};

}  // namespace

std::span<const Opcode> vector_float64_opcodes() { return kRows; }

}  // namespace hipdecode::sim
