// SPDX-License-Identifier: MIT
// Conversions to and from 8-bit floats without a scale, and stochastic rounding to 16 and 8 bits.
// "fp8" and "bf8" are OCP formats on gfx950 and FNUZ ones on gfx942.
#include "vector.h"

namespace hipdecode::sim {
namespace {

/// The fp32 pattern of every code.
template <Format kFormat>
constexpr auto kValues = [] {
  std::array<uint32_t, 256> result{};
  for (uint32_t code = 0; code < 256; ++code)
    result[code] = std::bit_cast<uint32_t>(static_cast<float>(decode<kFormat>(code)));
  return result;
}();

template <Format kOcp, Format kFnuz>
const std::array<uint32_t, 256>& values(const Context& c) {
  return c.arch.fnuz ? kValues<kFnuz> : kValues<kOcp>;
}

/// SDWA has selected the byte already.
template <Format kOcp, Format kFnuz>
void widen(Context& c, const Instruction& i) {
  Lanes scratch, result;
  const Lanes& a = read(c, i, 0, scratch);
  const auto& table = values<kOcp, kFnuz>(c);
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = table[a[lane] & 0xff];
  write_float(c, i, result);
}

template <Format kOcp, Format kFnuz>
void widen_pair(Context& c, const Instruction& i) {
  Lanes scratch, result[2];
  const Lanes& a = read(c, i, 0, scratch);
  const auto& table = values<kOcp, kFnuz>(c);
  for (int lane = 0; lane < kLanes; ++lane) {
    result[0][lane] = table[a[lane] & 0xff];
    result[1][lane] = table[a[lane] >> 8 & 0xff];
  }
  write(c, i, result[0], 0);
  write(c, i, result[1], 1);
}

template <Format kFormat>
void narrow_lanes(const Lanes& a, const Lanes& b, bool saturate, Lanes& result) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t low = encode<kFormat>(as_float(a[lane]), Rounding::nearest_even, saturate);
    const uint32_t high = encode<kFormat>(as_float(b[lane]), Rounding::nearest_even, saturate);
    result[lane] = low | high << 8;
  }
}

template <Format kOcp, Format kFnuz>
void narrow_pair(Context& c, const Instruction& i) {
  Lanes scratch[2], result;
  const Lanes &a = read_float(c, i, 0, scratch[0]), &b = read_float(c, i, 1, scratch[1]);
  if (c.arch.fnuz)
    narrow_lanes<kFnuz>(a, b, saturates(c.wave), result);
  else
    narrow_lanes<kOcp>(a, b, saturates(c.wave), result);
  write_short(c, i, result, true);
}

template <Format kFormat>
void narrow_random(const Context& c, const Lanes& a, const Lanes& random, Lanes& result) {
  for (int lane = 0; lane < kLanes; ++lane)
    result[lane] =
        encode<kFormat>(as_float(a[lane]), Rounding::stochastic, saturates(c.wave), random[lane]);
}

/// op_sel[3:2] is the byte of the destination; the others stay.
template <Format kOcp, Format kFnuz>
void narrow_byte_random(Context& c, const Instruction& i) {
  Lanes scratch[2], result;
  const Lanes &a = read_float(c, i, 0, scratch[0]), &random = read(c, i, 1, scratch[1]);
  if (c.arch.fnuz)
    narrow_random<kFnuz>(c, a, random, result);
  else
    narrow_random<kOcp>(c, a, random, result);
  write_byte(c, i, result);
}

template <Format kFormat>
void narrow_short_random(Context& c, const Instruction& i) {
  Lanes scratch[2], result;
  const Lanes &a = read_float(c, i, 0, scratch[0]), &random = read(c, i, 1, scratch[1]);
  narrow_random<kFormat>(c, a, random, result);
  write_short(c, i, result, true);
}

constexpr Opcode kRows[] = {
    {"v_cvt_f32_fp8", Class::valu, widen<kE4m3fn, kE4m3fnuz>, kVop1},
    {"v_cvt_f32_bf8", Class::valu, widen<kE5m2, kE5m2fnuz>, kVop1},
    {"v_cvt_pk_f32_fp8", Class::valu, widen_pair<kE4m3fn, kE4m3fnuz>, kVop1},
    {"v_cvt_pk_f32_bf8", Class::valu, widen_pair<kE5m2, kE5m2fnuz>, kVop1},
    {"v_cvt_pk_fp8_f32", Class::valu, narrow_pair<kE4m3fn, kE4m3fnuz>, kVop3},
    {"v_cvt_pk_bf8_f32", Class::valu, narrow_pair<kE5m2, kE5m2fnuz>, kVop3},
    {"v_cvt_sr_fp8_f32", Class::valu, narrow_byte_random<kE4m3fn, kE4m3fnuz>, kVop3},
    {"v_cvt_sr_bf8_f32", Class::valu, narrow_byte_random<kE5m2, kE5m2fnuz>, kVop3},
    {"v_cvt_sr_f16_f32", Class::valu, narrow_short_random<kHalf>, kVop3},
    {"v_cvt_sr_bf16_f32", Class::valu, narrow_short_random<kBfloat>, kVop3},
};

}  // namespace

std::span<const Opcode> vector_narrow_opcodes() { return kRows; }

}  // namespace hipdecode::sim
