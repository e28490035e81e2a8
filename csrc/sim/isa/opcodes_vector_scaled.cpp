// SPDX-License-Identifier: MIT
// gfx950's scaled conversions. The scale is the exponent of an fp32 number, 2^(e - 127), by which
// results are divided on the way to narrow formats and multiplied on the way back; e = 255 is NaN.
#include <limits>

#include "vector.h"

namespace hipdecode::sim {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

uint32_t scale_exponent(uint32_t scale) { return scale >> 23 & 0xff; }

template <Format kTo>
uint32_t narrow(double value, uint32_t scale, Rounding rounding, bool saturate, uint32_t random) {
  const uint32_t exponent = scale_exponent(scale);
  const double scaled = scale_by(value, 127 - static_cast<int>(exponent));
  const double result = exponent == 255 ? (value < 0 ? -kNan : kNan) : scaled;
  return encode<kTo>(result, rounding, saturate, random);
}

template <Format kFrom, Format kTo>
uint32_t widen(uint32_t code, uint32_t scale) {
  const uint32_t exponent = scale_exponent(scale);
  const double scaled = scale_by(decode<kFrom>(code), static_cast<int>(exponent) - 127);
  return encode<kTo>(exponent == 255 ? kNan : scaled);
}

/// Elements of a wide format in a run of registers, dword by dword.
template <Format kWide>
constexpr int kPerDword = kWide.bits() == 15 ? 2 : 1;

template <Format kWide>
double element(uint32_t dword, int index) {
  return decode<kWide>(dword >> index % 2 * 16 & 0xffff);
}
template <>
double element<kSingle>(uint32_t dword, int) {
  return as_float(dword);
}

/// Source dword with negation and absolute applied, where the element is fp32.
template <Format kWide>
const Lanes& read_element(Context& c, const Instruction& i, int source, int index, Lanes& scratch) {
  if constexpr (kPerDword<kWide> == 2) {
    return read(c, i, source, scratch, index / 2);
  } else {
    return index == 0 ? read_float(c, i, source, scratch) : read(c, i, source, scratch, index);
  }
}

const Lanes& read_scale(Context& c, const Instruction& i, Lanes& scratch) {
  return read(c, i, i.sources - 1, scratch);
}

/// Two narrow values next to each other: fp32 from two sources, 16-bit from the halves of one.
template <Format kFrom, Format kTo>
void pack_pair(Context& c, const Instruction& i) {
  constexpr int kSecond = kPerDword<kFrom> == 2 ? 0 : 1;
  Lanes scratch[3], result;
  const Lanes &a = read_element<kFrom>(c, i, 0, 0, scratch[0]),
              &b = read_element<kFrom>(c, i, kSecond, 0, scratch[1]),
              &scale = read_scale(c, i, scratch[2]);
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto code = [&](double value) {
      return narrow<kTo>(value, scale[lane], Rounding::nearest_even, saturates(c.wave), 0);
    };
    result[lane] = code(element<kFrom>(a[lane], 0)) | code(element<kFrom>(b[lane], 1))
                                                          << (kTo.bits() + 1);
  }
  if constexpr (kTo.bits() == 7)
    write_short(c, i, result, true);
  else
    write_byte(c, i, result);
}

/// One 8-bit value, rounded at random.
template <Format kFrom, Format kTo>
void pack_random(Context& c, const Instruction& i) {
  Lanes scratch[3], result;
  const Lanes &a = read_element<kFrom>(c, i, 0, 0, scratch[0]), &random = read(c, i, 1, scratch[1]),
              &scale = read_scale(c, i, scratch[2]);
  for (int lane = 0; lane < kLanes; ++lane)
    result[lane] = narrow<kTo>(element<kFrom>(a[lane], 0), scale[lane], Rounding::stochastic,
                               saturates(c.wave), random[lane]);
  write_byte(c, i, result);
}

/// Two 4-bit values; the second draws the next random number.
template <Format kFrom>
void pack_fp4_random(Context& c, const Instruction& i) {
  Lanes scratch[4], result;
  const Lanes &a = read_element<kFrom>(c, i, 0, 0, scratch[0]),
              &b = read_element<kFrom>(c, i, 0, 1, scratch[1]), &random = read(c, i, 1, scratch[2]),
              &scale = read_scale(c, i, scratch[3]);
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto code = [&](double value, uint32_t bits) {
      return narrow<kE2m1>(value, scale[lane], Rounding::stochastic, true, bits);
    };
    result[lane] = code(element<kFrom>(a[lane], 0), random[lane]) |
                   code(element<kFrom>(b[lane], 1), next_random(random[lane])) << 4;
  }
  write_byte(c, i, result);
}

/// Appends 6-bit codes to six registers.
class SixBits {
 public:
  SixBits() {
    for (Lanes& dword : dwords_) dword.at.fill(0);
  }
  void put(int position, const Lanes& codes) {
    const int shift = position * 6 % 32;
    Lanes& dword = dwords_[position * 6 / 32];
    for (int lane = 0; lane < kLanes; ++lane) dword[lane] |= codes[lane] << shift;
    if (shift <= 26) return;
    Lanes& next = dwords_[position * 6 / 32 + 1];
    for (int lane = 0; lane < kLanes; ++lane) next[lane] |= codes[lane] >> (32 - shift);
  }
  void write_to(Context& c, const Instruction& i) const {
    for (int dword = 0; dword < 6; ++dword) write(c, i, dwords_[dword], dword);
  }

 private:
  Lanes dwords_[6];
};

template <Format kFrom, Format kTo, bool kRandom>
void pack_32(Context& c, const Instruction& i) {
  Lanes scratch[2], random, codes;
  const Lanes& scale = read_scale(c, i, scratch[0]);
  if (kRandom) random = read(c, i, 1, scratch[1]);
  SixBits result;
  for (int index = 0; index < 32; ++index) {
    const Lanes& a = read_element<kFrom>(c, i, 0, index, scratch[1]);
    for (int lane = 0; lane < kLanes; ++lane) {
      codes[lane] = narrow<kTo>(element<kFrom>(a[lane], index), scale[lane],
                                kRandom ? Rounding::stochastic : Rounding::nearest_even, true,
                                kRandom ? random[lane] : 0);
      if (kRandom) random[lane] = next_random(random[lane]);
    }
    result.put(index, codes);
  }
  result.write_to(c, i);
}

/// Sixteen fp32 of each of two sources, taken in turns.
template <Format kTo>
void pack_2x16(Context& c, const Instruction& i) {
  Lanes scratch[2], codes;
  const Lanes& scale = read_scale(c, i, scratch[0]);
  SixBits result;
  for (int index = 0; index < 32; ++index) {
    const Lanes& a = read_element<kSingle>(c, i, index % 2, index / 2, scratch[1]);
    for (int lane = 0; lane < kLanes; ++lane)
      codes[lane] = narrow<kTo>(as_float(a[lane]), scale[lane], Rounding::nearest_even, true, 0);
    result.put(index, codes);
  }
  result.write_to(c, i);
}

/// One 8-bit value; op_sel[1:0] is its byte.
template <Format kFrom, Format kTo>
void unpack_one(Context& c, const Instruction& i) {
  Lanes scratch[2], result;
  const Lanes &a = read(c, i, 0, scratch[0]), &scale = read_scale(c, i, scratch[1]);
  const int shift = (i.modifiers.op_sel & 3) * 8;
  for (int lane = 0; lane < kLanes; ++lane)
    result[lane] = widen<kFrom, kTo>(a[lane] >> shift & 0xff, scale[lane]);
  if constexpr (kPerDword<kTo> == 2)
    write_short(c, i, result, true);
  else
    write(c, i, result);
}

/// Two neighbours: op_sel[0] is the word of 8-bit ones, op_sel[1:0] the byte of 4-bit ones.
template <Format kFrom, Format kTo>
void unpack_pair(Context& c, const Instruction& i) {
  constexpr int kBits = kFrom.bits() + 1;
  Lanes scratch[2], low, high;
  const Lanes &a = read(c, i, 0, scratch[0]), &scale = read_scale(c, i, scratch[1]);
  const int place = kBits == 8 ? i.modifiers.op_sel & 1 : i.modifiers.op_sel & 3;
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t codes = a[lane] >> place * 2 * kBits;
    low[lane] = widen<kFrom, kTo>(codes & ((1u << kBits) - 1), scale[lane]);
    high[lane] = widen<kFrom, kTo>(codes >> kBits & ((1u << kBits) - 1), scale[lane]);
    if (kPerDword<kTo> == 2) low[lane] |= high[lane] << 16;
  }
  write(c, i, low, 0);
  if constexpr (kPerDword<kTo> == 1) write(c, i, high, 1);
}

template <Format kFrom, Format kTo>
void unpack_32(Context& c, const Instruction& i) {
  constexpr int kDwords = 32 / kPerDword<kTo>;
  Lanes scratch, codes[6], result[kDwords];
  const Lanes scale = read_scale(c, i, scratch);
  for (int dword = 0; dword < 6; ++dword) codes[dword] = read(c, i, 0, scratch, dword);
  for (int index = 0; index < 32; ++index) {
    const int first = index * 6 / 32, shift = index * 6 % 32, next = first < 5 ? first + 1 : first;
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint64_t both = uint64_t{codes[next][lane]} << 32 | codes[first][lane];
      const uint32_t value =
          widen<kFrom, kTo>(static_cast<uint32_t>(both >> shift) & 63, scale[lane]);
      uint32_t& to = result[index / kPerDword<kTo>][lane];
      to = index % kPerDword<kTo> == 0 ? value : to | value << 16;
    }
  }
  for (int dword = 0; dword < kDwords; ++dword) write(c, i, result[dword], dword);
}

constexpr Class kClass = Class::valu;

constexpr Opcode kRows[] = {
    {"v_cvt_scalef32_pk_fp8_f32", kClass, pack_pair<kSingle, kE4m3fn>, kVop3},
    {"v_cvt_scalef32_pk_bf8_f32", kClass, pack_pair<kSingle, kE5m2>, kVop3},
    {"v_cvt_scalef32_pk_fp4_f32", kClass, pack_pair<kSingle, kE2m1>, kVop3},
    {"v_cvt_scalef32_pk_fp8_f16", kClass, pack_pair<kHalf, kE4m3fn>, kVop3},
    {"v_cvt_scalef32_pk_bf8_f16", kClass, pack_pair<kHalf, kE5m2>, kVop3},
    {"v_cvt_scalef32_pk_fp4_f16", kClass, pack_pair<kHalf, kE2m1>, kVop3},
    {"v_cvt_scalef32_pk_fp8_bf16", kClass, pack_pair<kBfloat, kE4m3fn>, kVop3},
    {"v_cvt_scalef32_pk_bf8_bf16", kClass, pack_pair<kBfloat, kE5m2>, kVop3},
    {"v_cvt_scalef32_pk_fp4_bf16", kClass, pack_pair<kBfloat, kE2m1>, kVop3},
    {"v_cvt_scalef32_sr_fp8_f32", kClass, pack_random<kSingle, kE4m3fn>, kVop3},
    {"v_cvt_scalef32_sr_bf8_f32", kClass, pack_random<kSingle, kE5m2>, kVop3},
    {"v_cvt_scalef32_sr_fp8_f16", kClass, pack_random<kHalf, kE4m3fn>, kVop3},
    {"v_cvt_scalef32_sr_bf8_f16", kClass, pack_random<kHalf, kE5m2>, kVop3},
    {"v_cvt_scalef32_sr_fp8_bf16", kClass, pack_random<kBfloat, kE4m3fn>, kVop3},
    {"v_cvt_scalef32_sr_bf8_bf16", kClass, pack_random<kBfloat, kE5m2>, kVop3},
    {"v_cvt_scalef32_sr_pk_fp4_f32", kClass, pack_fp4_random<kSingle>, kVop3},
    {"v_cvt_scalef32_sr_pk_fp4_f16", kClass, pack_fp4_random<kHalf>, kVop3},
    {"v_cvt_scalef32_sr_pk_fp4_bf16", kClass, pack_fp4_random<kBfloat>, kVop3},
    {"v_cvt_scalef32_2xpk16_fp6_f32", kClass, pack_2x16<kE2m3>, kVop3},
    {"v_cvt_scalef32_2xpk16_bf6_f32", kClass, pack_2x16<kE3m2>, kVop3},
    {"v_cvt_scalef32_pk32_fp6_f16", kClass, pack_32<kHalf, kE2m3, false>, kVop3},
    {"v_cvt_scalef32_pk32_bf6_f16", kClass, pack_32<kHalf, kE3m2, false>, kVop3},
    {"v_cvt_scalef32_pk32_fp6_bf16", kClass, pack_32<kBfloat, kE2m3, false>, kVop3},
    {"v_cvt_scalef32_pk32_bf6_bf16", kClass, pack_32<kBfloat, kE3m2, false>, kVop3},
    {"v_cvt_scalef32_sr_pk32_fp6_f32", kClass, pack_32<kSingle, kE2m3, true>, kVop3},
    {"v_cvt_scalef32_sr_pk32_bf6_f32", kClass, pack_32<kSingle, kE3m2, true>, kVop3},
    {"v_cvt_scalef32_sr_pk32_fp6_f16", kClass, pack_32<kHalf, kE2m3, true>, kVop3},
    {"v_cvt_scalef32_sr_pk32_bf6_f16", kClass, pack_32<kHalf, kE3m2, true>, kVop3},
    {"v_cvt_scalef32_sr_pk32_fp6_bf16", kClass, pack_32<kBfloat, kE2m3, true>, kVop3},
    {"v_cvt_scalef32_sr_pk32_bf6_bf16", kClass, pack_32<kBfloat, kE3m2, true>, kVop3},
    {"v_cvt_scalef32_f32_fp8", kClass, unpack_one<kE4m3fn, kSingle>, kVop3},
    {"v_cvt_scalef32_f32_bf8", kClass, unpack_one<kE5m2, kSingle>, kVop3},
    {"v_cvt_scalef32_f16_fp8", kClass, unpack_one<kE4m3fn, kHalf>, kVop3},
    {"v_cvt_scalef32_f16_bf8", kClass, unpack_one<kE5m2, kHalf>, kVop3},
    {"v_cvt_scalef32_pk_f32_fp8", kClass, unpack_pair<kE4m3fn, kSingle>, kVop3},
    {"v_cvt_scalef32_pk_f32_bf8", kClass, unpack_pair<kE5m2, kSingle>, kVop3},
    {"v_cvt_scalef32_pk_f32_fp4", kClass, unpack_pair<kE2m1, kSingle>, kVop3},
    {"v_cvt_scalef32_pk_f16_fp8", kClass, unpack_pair<kE4m3fn, kHalf>, kVop3},
    {"v_cvt_scalef32_pk_f16_bf8", kClass, unpack_pair<kE5m2, kHalf>, kVop3},
    {"v_cvt_scalef32_pk_f16_fp4", kClass, unpack_pair<kE2m1, kHalf>, kVop3},
    {"v_cvt_scalef32_pk_bf16_fp8", kClass, unpack_pair<kE4m3fn, kBfloat>, kVop3},
    {"v_cvt_scalef32_pk_bf16_bf8", kClass, unpack_pair<kE5m2, kBfloat>, kVop3},
    {"v_cvt_scalef32_pk_bf16_fp4", kClass, unpack_pair<kE2m1, kBfloat>, kVop3},
    {"v_cvt_scalef32_pk32_f32_fp6", kClass, unpack_32<kE2m3, kSingle>, kVop3},
    {"v_cvt_scalef32_pk32_f32_bf6", kClass, unpack_32<kE3m2, kSingle>, kVop3},
    {"v_cvt_scalef32_pk32_f16_fp6", kClass, unpack_32<kE2m3, kHalf>, kVop3},
    {"v_cvt_scalef32_pk32_f16_bf6", kClass, unpack_32<kE3m2, kHalf>, kVop3},
    {"v_cvt_scalef32_pk32_bf16_fp6", kClass, unpack_32<kE2m3, kBfloat>, kVop3},
    {"v_cvt_scalef32_pk32_bf16_bf6", kClass, unpack_32<kE3m2, kBfloat>, kVop3},
};

}  // namespace

std::span<const Opcode> vector_scaled_opcodes() { return kRows; }

}  // namespace hipdecode::sim
