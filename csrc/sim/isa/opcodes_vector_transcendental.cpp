// SPDX-License-Identifier: MIT
// Exponentials, logarithms, roots, reciprocals, sines. The hardware promises about one unit in the
// last place without saying which results it gives; here they are the correctly rounded ones (of a
// result computed to more than 50 bits). The fp32 forms ignore MODE: denormals in and out are
// zeros.
#include <cmath>
#include <numbers>

#include "vector.h"

namespace hipdecode::sim {
namespace {

constexpr double kTwoPi = 2 * std::numbers::pi;

/// 2^x for finite x, in a form that vectorises: 2^whole times a Taylor polynomial of 2^part.
double exp2_wide(double x) {
  const double bounded = x < -1000 ? -1000 : (x > 1000 ? 1000 : x);
  const double raised = bounded + 0x1.8p52;
  const double part = bounded - (raised - 0x1.8p52);  // in [-0.5, 0.5]
  const double t = part * std::numbers::ln2;
  double sum = 1.0 / 479001600;  // 1 / 12!
  constexpr double kTerms[] = {1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                               1.0 / 5040,     1.0 / 720,     1.0 / 120,    1.0 / 24,
                               1.0 / 6,        1.0 / 2,       1.0,          1.0};
  for (const double term : kTerms) sum = sum * t + term;
  const uint64_t whole = as_bits(raised) << 52;  // modulo 2^12: it lands in the exponent
  return as_double(as_bits(sum) + whole);
}

/// log2 of a positive normal number: exponent plus a series in (m - 1) / (m + 1).
double log2_wide(double x) {
  const uint64_t bits = as_bits(x);
  constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcd;
  const int64_t exponent = static_cast<int64_t>(bits - kRootHalf) >> 52;
  const double m = as_double(bits - (static_cast<uint64_t>(exponent) << 52));
  const double s = (m - 1) / (m + 1), square = s * s;
  double sum = 1.0 / 23;
  for (int odd = 21; odd > 0; odd -= 2) sum = sum * square + 1.0 / odd;
  return static_cast<double>(static_cast<int32_t>(exponent)) + s * sum * (2 / std::numbers::ln2);
}

float exp2_single(float x) {
  const float value = static_cast<float>(exp2_wide(x));
  return x == x ? (x > 200.0f ? std::numeric_limits<float>::infinity() : value) : x;
}

float log2_single(float x) {
  const float value = static_cast<float>(log2_wide(x));
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float special = x < 0 ? std::numeric_limits<float>::quiet_NaN() : (x == 0 ? -kInfinity : x);
  return x > 0 && x < kInfinity ? value : special;
}

/// Turns to radians; the hardware takes |x| up to 256 and calls the rest 0.
double angle(double turns) {
  return std::abs(turns) <= 256 || turns != turns || std::isinf(turns)
             ? (turns - std::rint(turns)) * kTwoPi
             : 0.0;
}

template <auto kOperation>
void flushed_f32(Context& c, const Instruction& i) {
  Lanes scratch, result;
  const Lanes& a = read_float(c, i, 0, scratch);
  for (int lane = 0; lane < kLanes; ++lane)
    result[lane] = flush_single(as_bits(kOperation(as_float(flush_single(a[lane])))));
  write_float(c, i, result);
}

constexpr auto kReciprocal = [](float x) { return 1.0f / x; };
constexpr auto kRoot = [](float x) { return std::sqrt(x); };
constexpr auto kReciprocalRoot = [](float x) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x)));
};
constexpr auto kSine = [](float x) { return static_cast<float>(std::sin(angle(x))); };
constexpr auto kCosine = [](float x) { return static_cast<float>(std::cos(angle(x))); };

constexpr Class kClass = Class::transcendental;

constexpr Opcode kRows[] = {
    {"v_exp_f32", kClass, flushed_f32<exp2_single>, kVop1},
    {"v_exp_legacy_f32", kClass, flushed_f32<exp2_single>, kVop1},
    {"v_log_f32", kClass, flushed_f32<log2_single>, kVop1},
    {"v_log_legacy_f32", kClass, flushed_f32<log2_single>, kVop1},
    {"v_rcp_f32", kClass, flushed_f32<kReciprocal>, kVop1},
    {"v_rcp_iflag_f32", kClass, flushed_f32<kReciprocal>, kVop1},
    {"v_rsq_f32", kClass, flushed_f32<kReciprocalRoot>, kVop1},
    {"v_sqrt_f32", kClass, flushed_f32<kRoot>, kVop1},
    {"v_sin_f32", kClass, flushed_f32<kSine>, kVop1},
    {"v_cos_f32", kClass, flushed_f32<kCosine>, kVop1},
    {"v_exp_f16", kClass, unary_f16<[](double x) { return std::exp2(x); }>, kVop1},
    {"v_log_f16", kClass, unary_f16<[](double x) { return std::log2(x); }>, kVop1},
    {"v_rcp_f16", kClass, unary_f16<[](double x) { return 1 / x; }>, kVop1},
    {"v_rsq_f16", kClass, unary_f16<[](double x) { return 1 / std::sqrt(x); }>, kVop1},
    {"v_sqrt_f16", kClass, unary_f16<[](double x) { return std::sqrt(x); }>, kVop1},
    {"v_sin_f16", kClass, unary_f16<[](double x) { return std::sin(angle(x)); }>, kVop1},
    {"v_cos_f16", kClass, unary_f16<[](double x) { return std::cos(angle(x)); }>, kVop1},
    {"v_rcp_f64", kClass, unary_f64<[](double x) { return 1 / x; }>, kVop1},
    {"v_rsq_f64", kClass, unary_f64<[](double x) { return 1 / std::sqrt(x); }>, kVop1},
    {"v_sqrt_f64", kClass, unary_f64<[](double x) { return std::sqrt(x); }>, kVop1},
};

}  // namespace

std::span<const Opcode> vector_transcendental_opcodes() { return kRows; }

}  // namespace hipdecode::sim
