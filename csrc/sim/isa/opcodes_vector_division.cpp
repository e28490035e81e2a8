// SPDX-License-Identifier: MIT
// The three steps that compilers divide with: scale so that nothing over- or underflows on the
// way, undo the scaling, and put the special cases right.
#include <cmath>
#include <limits>

#include "vector.h"

namespace hipdecode::sim {
namespace {

#if defined(__SIZEOF_FLOAT128__)
using Quad = __float128;
#else
using Quad = long double;  // quadruple precision on AArch64
#endif

/// What differs between the formats.
template <class Float>
struct Limits;
template <>
struct Limits<float> {
  using Bits = uint32_t;
  static constexpr int kMantissa = 23, kTop = 255;
  using Wide = double;  // holds a product exactly
  static constexpr int kFar = 96, kScale = 64, kTiny = 23, kUnderflow = -150, kBias = 127;
  static constexpr FloatMode::Width kWidth = FloatMode::single;
};
template <>
struct Limits<double> {
  using Bits = uint64_t;
  static constexpr int kMantissa = 52, kTop = 2047;
  using Wide = Quad;
  static constexpr int kFar = 768, kScale = 128, kTiny = 53, kUnderflow = -1075, kBias = 1023;
  static constexpr FloatMode::Width kWidth = FloatMode::wide;
};

template <class Float>
int exponent_field(Float x) {
  using L = Limits<Float>;
  return static_cast<int>(std::bit_cast<typename L::Bits>(x) >> L::kMantissa) & L::kTop;
}

template <class Float>
bool denormal(Float x) {
  return x != 0 && exponent_field(x) == 0;
}

template <class Float>
struct Scaled {
  Float value;
  bool flag;  // tells v_div_fmas to scale its result back
};

/// `chosen` is the one of denominator and numerator that this instruction scales.
template <class Float>
Scaled<Float> div_scale(Float chosen, Float denominator, Float numerator) {
  using L = Limits<Float>;
  const Float up = std::ldexp(chosen, L::kScale), down = std::ldexp(chosen, -L::kScale);
  const bool is_denominator = chosen == denominator, is_numerator = chosen == numerator;
  if (denominator == 0 || numerator == 0) return {std::numeric_limits<Float>::quiet_NaN(), false};
  const int distance = exponent_field(numerator) - exponent_field(denominator);
  if (distance >= L::kFar) return {is_denominator ? up : chosen, true};
  if (denormal(denominator)) return {up, false};
  const bool small_reciprocal = denormal(Float{1} / denominator);
  const bool small_quotient = denormal(numerator / denominator);
  if (small_reciprocal && small_quotient) return {is_denominator ? down : chosen, true};
  if (small_reciprocal) return {down, false};
  if (small_quotient) return {is_numerator ? up : chosen, true};
  return {exponent_field(numerator) <= L::kTiny ? up : chosen, false};
}

template <class Float>
Float div_fixup(Float quotient, Float denominator, Float numerator) {
  using L = Limits<Float>;
  constexpr Float kInfinity = std::numeric_limits<Float>::infinity();
  const Float sign = std::signbit(denominator) != std::signbit(numerator) ? Float{-1} : Float{1};
  if (std::isnan(numerator)) return numerator + numerator;  // quiet
  if (std::isnan(denominator)) return denominator + denominator;
  const bool zero_by_zero = denominator == 0 && numerator == 0;
  if (zero_by_zero || (std::isinf(denominator) && std::isinf(numerator)))
    return -std::numeric_limits<Float>::quiet_NaN();
  if (denominator == 0 || std::isinf(numerator)) return sign * kInfinity;
  if (std::isinf(denominator) || numerator == 0) return sign * Float{0};
  if (exponent_field(numerator) - exponent_field(denominator) < L::kUnderflow)
    return sign * Float{0};
  // Between finite numbers, NaN comes from an infinity on the way: the quotient is too large.
  return sign * (std::isnan(quotient) ? kInfinity : std::abs(quotient));
}

template <class Float>
void read_all(Context& c, const Instruction& i, int source, std::array<Float, kLanes>& values) {
  if constexpr (sizeof(Float) == 4) {
    Lanes scratch;
    const Lanes& lanes = read_float(c, i, source, scratch);
    for (int lane = 0; lane < kLanes; ++lane)
      values[static_cast<size_t>(lane)] = as_float(lanes[lane]);
  } else {
    WideLanes lanes;
    read_double(c, i, source, lanes);
    for (int lane = 0; lane < kLanes; ++lane)
      values[static_cast<size_t>(lane)] = as_double(lanes[lane]);
  }
}

template <class Float>
void write_all(Context& c, const Instruction& i, const std::array<Float, kLanes>& values) {
  std::conditional_t<sizeof(Float) == 4, Lanes, WideLanes> lanes;
  for (int lane = 0; lane < kLanes; ++lane)
    lanes[lane] = as_bits(values[static_cast<size_t>(lane)]);
  if constexpr (sizeof(Float) == 4)
    write_float(c, i, lanes);
  else
    write_double(c, i, lanes);
}

template <class Float>
void v_div_scale(Context& c, const Instruction& i) {
  std::array<Float, kLanes> chosen, denominator, numerator;
  read_all(c, i, 0, chosen);
  read_all(c, i, 1, denominator);
  read_all(c, i, 2, numerator);
  uint64_t flags = 0;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const auto [value, flag] = div_scale(chosen[lane], denominator[lane], numerator[lane]);
    chosen[lane] = value;
    flags |= uint64_t{flag} << lane;
  }
  write_all(c, i, chosen);
  write_mask(c, i.destination[1], flags);
}

/// Undoes the scaling: the quotient is too small if only a small denominator was scaled up, which
/// shows in its size. One rounding, so that denormal quotients come out right.
template <class Float>
Float div_fmas_scaled(Float a, Float b, Float d) {
  using L = Limits<Float>;
  using Wide = typename L::Wide;
  const Wide factor = std::ldexp(Float{1}, exponent_field(d) > L::kBias ? L::kScale : -L::kScale);
  return static_cast<Float>((static_cast<Wide>(a) * b + d) * factor);
}

template <class Float>
void v_div_fmas(Context& c, const Instruction& i) {
  using L = Limits<Float>;
  std::array<Float, kLanes> a, b, d;
  read_all(c, i, 0, a);
  read_all(c, i, 1, b);
  read_all(c, i, 2, d);
  const uint64_t flags = c.wave.vcc();
  {
    const FloatMode mode(c.wave.mode, L::kWidth);
    for (size_t lane = 0; lane < kLanes; ++lane)
      d[lane] = flags >> lane & 1 ? div_fmas_scaled(a[lane], b[lane], d[lane])
                                  : std::fma(a[lane], b[lane], d[lane]);
  }
  write_all(c, i, d);
}

template <class Float>
void v_div_fixup(Context& c, const Instruction& i) {
  std::array<Float, kLanes> a, b, d;
  read_all(c, i, 0, a);
  read_all(c, i, 1, b);
  read_all(c, i, 2, d);
  for (size_t lane = 0; lane < kLanes; ++lane) d[lane] = div_fixup(a[lane], b[lane], d[lane]);
  write_all(c, i, d);
}

/// fp16 quotients come from fp32 and cannot underflow there.
constexpr auto kFixupHalf = [](double quotient, double denominator, double numerator) {
  return div_fixup(static_cast<float>(quotient), static_cast<float>(denominator),
                   static_cast<float>(numerator));
};

constexpr Opcode kRows[] = {
    {"v_div_scale_f32", Class::valu, v_div_scale<float>, kVop3},
    {"v_div_scale_f64", Class::valu, v_div_scale<double>, kVop3},
    {"v_div_fmas_f32", Class::valu, v_div_fmas<float>, kVop3},
    {"v_div_fmas_f64", Class::valu, v_div_fmas<double>, kVop3},
    {"v_div_fixup_f32", Class::valu, v_div_fixup<float>, kVop3},
    {"v_div_fixup_f64", Class::valu, v_div_fixup<double>, kVop3},
    {"v_div_fixup_f16", Class::valu, ternary_f16<kFixupHalf, true>, kVop3},
    {"v_div_fixup_legacy_f16", Class::valu, ternary_f16<kFixupHalf>, kVop3},
};

}  // namespace

std::span<const Opcode> vector_division_opcodes() { return kRows; }

}  // namespace hipdecode::sim
