// SPDX-License-Identifier: MIT
// Conversions between fp16, fp32, fp64 and integers.
#include <cmath>

#include "vector.h"

namespace hipdecode::sim {
namespace {

Rounding single_rounding(const Wave& wave) { return static_cast<Rounding>(wave.mode & 3); }

uint32_t to_i32(double x) {
  return static_cast<uint32_t>(to_integer<int32_t>(x, -0x1p31, 0x1p31 - 1));
}
uint32_t to_u32(double x) { return static_cast<uint32_t>(to_integer<int64_t>(x, 0, 0x1p32 - 1)); }
uint32_t to_u16(double x) { return static_cast<uint32_t>(to_integer<int32_t>(x, 0, 0xffff)); }
uint32_t to_i16(double x) {
  return static_cast<uint32_t>(to_integer<int32_t>(x, -0x8000, 0x7fff)) & 0xffff;
}
uint32_t to_u8(double x) { return static_cast<uint32_t>(to_integer<int32_t>(x, 0, 255)); }
/// [-1, 1] and [0, 1] as 16-bit integers, rounded to the nearest even.
uint32_t to_snorm(double x) {
  return to_i16(std::nearbyint((x < -1 ? -1 : (x > 1 ? 1 : x)) * 0x7fff));
}
uint32_t to_unorm(double x) {
  return to_u16(std::nearbyint((x < 0 ? 0 : (x > 1 ? 1 : x)) * 0xffff));
}
float round_half_up(float x) { return std::floor(x + 0.5f); }

// fp32 to integers.
template <auto kOperation>
void from_f32(Context& c, const Instruction& i) {
  Lanes scratch, result;
  const Lanes& a = read_float(c, i, 0, scratch);
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = kOperation(as_float(a[lane]));
  write(c, i, result);
}

template <auto kOperation>
void from_f64(Context& c, const Instruction& i) {
  WideLanes a;
  Lanes result;
  read_double(c, i, 0, a);
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = kOperation(as_double(a[lane]));
  write(c, i, result);
}

void v_cvt_f32_f64(Context& c, const Instruction& i) {
  WideLanes a;
  Lanes result;
  read_double(c, i, 0, a);
  const Rounding rounding = single_rounding(c.wave);
  for (int lane = 0; lane < kLanes; ++lane)
    result[lane] = encode<kSingle>(as_double(a[lane]), rounding);
  write_float(c, i, result);
}

void v_cvt_f64_f32(Context& c, const Instruction& i) {
  Lanes scratch;
  WideLanes result;
  const Lanes& a = read_float(c, i, 0, scratch);
  for (int lane = 0; lane < kLanes; ++lane)
    result[lane] = as_bits(static_cast<double>(as_float(a[lane])));
  write_double(c, i, result);
}

// Integers to floats.
template <auto kNumber>
void to_f32(Context& c, const Instruction& i) {
  Lanes scratch, result;
  const Lanes& a = read(c, i, 0, scratch);
  const Rounding rounding = single_rounding(c.wave);
  for (int lane = 0; lane < kLanes; ++lane)
    result[lane] = encode<kSingle>(kNumber(a[lane]), rounding);
  write_float(c, i, result);
}

template <auto kNumber>
void to_f64(Context& c, const Instruction& i) {
  Lanes scratch;
  WideLanes result;
  const Lanes& a = read(c, i, 0, scratch);
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = as_bits(kNumber(a[lane]));
  write_double(c, i, result);
}

template <auto kNumber>
void to_f16(Context& c, const Instruction& i) {
  Lanes value;
  read_short(c, i, 0, value);
  for (int lane = 0; lane < kLanes; ++lane)
    value[lane] = encode<kHalf>(kNumber(value[lane]), half_rounding(c.wave));
  write_half(c, i, value);
}

double signed_number(uint32_t bits) { return static_cast<int32_t>(bits); }
double unsigned_number(uint32_t bits) { return bits; }
double signed_short(uint32_t bits) { return static_cast<int16_t>(bits); }
template <int kByte>
double byte_number(uint32_t bits) {
  return static_cast<int32_t>(bits >> kByte * 8 & 0xff);
}
double four_bit_offset(uint32_t bits) { return (static_cast<int32_t>(bits << 28) >> 28) * 0.0625; }

// fp16.
template <auto kOperation>
void from_f16(Context& c, const Instruction& i) {
  Lanes value;
  read_half(c, i, 0, value);
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = kOperation(decode<kHalf>(value[lane]));
  write_short(c, i, value);
}

void v_cvt_f32_f16(Context& c, const Instruction& i) {
  Lanes value;
  read_half(c, i, 0, value);
  const HalfMode mode(c.wave.mode);
  for (int lane = 0; lane < kLanes; ++lane)
    value[lane] = as_bits(static_cast<float>(decode<kHalf>(mode.input(value[lane]))));
  write_float(c, i, value);
}

void v_cvt_f16_f32(Context& c, const Instruction& i) {
  Lanes scratch, result;
  const Lanes& a = read_float(c, i, 0, scratch);
  const HalfMode mode(c.wave.mode);
  const Rounding rounding = half_rounding(c.wave);
  const bool saturate = saturates(c.wave);
  for (int lane = 0; lane < kLanes; ++lane)
    result[lane] = mode.output(encode<kHalf>(as_float(a[lane]), rounding, saturate));
  write_half(c, i, result);
}

// Pairs: source 0 becomes the lower half, source 1 the upper one.
template <auto kOperation>
void pack_f32(Context& c, const Instruction& i) {
  Lanes scratch[2], result;
  const Lanes &a = read_float(c, i, 0, scratch[0]), &b = read_float(c, i, 1, scratch[1]);
  const bool saturate = saturates(c.wave);
  for (int lane = 0; lane < kLanes; ++lane)
    result[lane] = kOperation(as_float(a[lane]), saturate) | kOperation(as_float(b[lane]), saturate)
                                                                 << 16;
  write(c, i, result);
}

template <auto kOperation>
void pack_f16(Context& c, const Instruction& i) {
  Lanes low, high;
  read_half(c, i, 0, low);
  read_half(c, i, 1, high);
  for (int lane = 0; lane < kLanes; ++lane)
    low[lane] = kOperation(decode<kHalf>(low[lane])) | kOperation(decode<kHalf>(high[lane])) << 16;
  write(c, i, low);
}

constexpr auto kToHalf = [](float x, bool saturate) {
  return encode<kHalf>(x, Rounding::nearest_even, saturate);
};
constexpr auto kToBfloat = [](float x, bool saturate) {
  return encode<kBfloat>(x, Rounding::nearest_even, saturate);
};
constexpr auto kTruncateToHalf = [](float x, bool saturate) {
  return encode<kHalf>(x, Rounding::toward_zero, saturate);
};
constexpr auto kToSnorm = [](float x, bool) { return to_snorm(x); };
constexpr auto kToUnorm = [](float x, bool) { return to_unorm(x); };
constexpr auto kPackU16 = [](uint32_t a, uint32_t b) {
  return (a > 0xffff ? 0xffff : a) | (b > 0xffff ? 0xffff : b) << 16;
};
constexpr auto kPackI16 = [](uint32_t a, uint32_t b) {
  return to_i16(signed_number(a)) | to_i16(signed_number(b)) << 16;
};

/// One byte of the third source (or of the destination) is replaced.
void v_cvt_pk_u8_f32(Context& c, const Instruction& i) {
  Lanes scratch[3], result;
  const Lanes &a = read_float(c, i, 0, scratch[0]), &place = read(c, i, 1, scratch[1]);
  const Lanes& rest = i.sources > 2
                          ? read(c, i, 2, scratch[2])
                          : c.wave.vector[static_cast<size_t>(c.wave.slot(i.destination[0]))];
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t shift = (place[lane] & 3) * 8;
    result[lane] = (rest[lane] & ~(0xffu << shift)) | to_u8(as_float(a[lane])) << shift;
  }
  write(c, i, result);
}

/// bf16 is the upper half of fp32.
void v_cvt_f32_bf16(Context& c, const Instruction& i) {
  Lanes value;
  read_short(c, i, 0, value);
  const uint32_t keep = i.source[0].absolute ? 0x7fff : 0xffff,
                 flip = i.source[0].negate ? 0x8000 : 0;
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = ((value[lane] & keep) ^ flip) << 16;
  write_float(c, i, value);
}

constexpr Opcode kRows[] = {
    {"v_cvt_i32_f32", Class::valu, from_f32<to_i32>, kVop1},
    {"v_cvt_u32_f32", Class::valu, from_f32<to_u32>, kVop1},
    {"v_cvt_rpi_i32_f32", Class::valu, from_f32<[](float x) { return to_i32(round_half_up(x)); }>,
     kVop1},
    {"v_cvt_flr_i32_f32", Class::valu, from_f32<[](float x) { return to_i32(std::floor(x)); }>,
     kVop1},
    {"v_cvt_i32_f64", Class::valu, from_f64<to_i32>, kVop1},
    {"v_cvt_u32_f64", Class::valu, from_f64<to_u32>, kVop1},
    {"v_cvt_f32_f64", Class::valu, v_cvt_f32_f64, kVop1},
    {"v_cvt_f64_f32", Class::valu, v_cvt_f64_f32, kVop1},
    {"v_cvt_f32_i32", Class::valu, to_f32<signed_number>, kVop1},
    {"v_cvt_f32_u32", Class::valu, to_f32<unsigned_number>, kVop1},
    {"v_cvt_f32_ubyte0", Class::valu, to_f32<byte_number<0>>, kVop1},
    {"v_cvt_f32_ubyte1", Class::valu, to_f32<byte_number<1>>, kVop1},
    {"v_cvt_f32_ubyte2", Class::valu, to_f32<byte_number<2>>, kVop1},
    {"v_cvt_f32_ubyte3", Class::valu, to_f32<byte_number<3>>, kVop1},
    {"v_cvt_off_f32_i4", Class::valu, to_f32<four_bit_offset>, kVop1},
    {"v_cvt_f64_i32", Class::valu, to_f64<signed_number>, kVop1},
    {"v_cvt_f64_u32", Class::valu, to_f64<unsigned_number>, kVop1},
    {"v_cvt_f16_u16", Class::valu, to_f16<unsigned_number>, kVop1},
    {"v_cvt_f16_i16", Class::valu, to_f16<signed_short>, kVop1},
    {"v_cvt_u16_f16", Class::valu, from_f16<to_u16>, kVop1},
    {"v_cvt_i16_f16", Class::valu, from_f16<to_i16>, kVop1},
    {"v_cvt_norm_i16_f16", Class::valu, from_f16<to_snorm>, kVop1},
    {"v_cvt_norm_u16_f16", Class::valu, from_f16<to_unorm>, kVop1},
    {"v_cvt_f32_f16", Class::valu, v_cvt_f32_f16, kVop1},
    {"v_cvt_f16_f32", Class::valu, v_cvt_f16_f32, kVop1},
    {"v_cvt_f32_bf16", Class::valu, v_cvt_f32_bf16, kVop1},
    {"v_cvt_pk_f16_f32", Class::valu, pack_f32<kToHalf>, kVop3},
    {"v_cvt_pk_bf16_f32", Class::valu, pack_f32<kToBfloat>, kVop3},
    {"v_cvt_pkrtz_f16_f32", Class::valu, pack_f32<kTruncateToHalf>, kVop3},
    {"v_cvt_pknorm_i16_f32", Class::valu, pack_f32<kToSnorm>, kVop3},
    {"v_cvt_pknorm_u16_f32", Class::valu, pack_f32<kToUnorm>, kVop3},
    {"v_cvt_pknorm_i16_f16", Class::valu, pack_f16<to_snorm>, kVop3},
    {"v_cvt_pknorm_u16_f16", Class::valu, pack_f16<to_unorm>, kVop3},
    {"v_cvt_pk_u16_u32", Class::valu, binary_b32<kPackU16>, kVop3},
    {"v_cvt_pk_i16_i32", Class::valu, binary_b32<kPackI16>, kVop3},
    {"v_cvt_pk_u8_f32", Class::valu, v_cvt_pk_u8_f32, kVop3},
    {"v_cvt_pkaccum_u8_f32", Class::valu, v_cvt_pk_u8_f32, kVop3},
};

}  // namespace

std::span<const Opcode> vector_convert_opcodes() { return kRows; }

}  // namespace hipdecode::sim
