// SPDX-License-Identifier: MIT
// Dot products, and fused multiply-adds whose operands are fp16 or fp32 as op_sel_hi says.
#include "vector.h"

namespace hipdecode::sim {
namespace {

/// Sum of products of kBits-wide integers plus the third source.
template <int kBits, bool kSigned>
void integer_dot(Context& c, const Instruction& i) {
  constexpr int kPairs = 32 / kBits;
  constexpr int64_t kLow = kSigned ? INT32_MIN : 0, kHigh = kSigned ? INT32_MAX : UINT32_MAX;
  Lanes scratch[3], result;
  const Lanes &a = read(c, i, 0, scratch[0]), &b = read(c, i, 1, scratch[1]),
              &d = read(c, i, 2, scratch[2]);
  const auto element = [](uint32_t word, int pair) {
    const uint32_t top = word << (32 - kBits * (pair + 1));
    return kSigned ? int64_t{static_cast<int32_t>(top) >> (32 - kBits)}
                   : int64_t{top >> (32 - kBits)};
  };
  const bool clamp = i.modifiers.clamp;
  for (int lane = 0; lane < kLanes; ++lane) {
    int64_t sum = kSigned ? int64_t{static_cast<int32_t>(d[lane])} : int64_t{d[lane]};
    for (int pair = 0; pair < kPairs; ++pair)
      sum += element(a[lane], pair) * element(b[lane], pair);
    const int64_t bounded = sum < kLow ? kLow : (sum > kHigh ? kHigh : sum);
    result[lane] = static_cast<uint32_t>(clamp ? bounded : sum);
  }
  write(c, i, result);
}

/// VOP3P dots of 16-bit elements take op_sel and neg; the accumulating VOP2 ones take neither.
void read_pairs(Context& c, const Instruction& i, int source, bool half, Lanes (&value)[2]) {
  for (int element = 0; element < 2; ++element)
    read_packed(c, i, source, element != 0, half, value[element]);
}

template <bool kSigned>
void v_dot2_16(Context& c, const Instruction& i) {
  Lanes a[2], b[2], scratch, result;
  read_pairs(c, i, 0, false, a);
  read_pairs(c, i, 1, false, b);
  const Lanes& d = read(c, i, 2, scratch);
  constexpr int64_t kLow = kSigned ? INT32_MIN : 0, kHigh = kSigned ? INT32_MAX : UINT32_MAX;
  const auto number = [](uint32_t bits) {
    return kSigned ? int64_t{static_cast<int16_t>(bits)} : int64_t{bits};
  };
  const bool clamp = i.modifiers.clamp;
  for (int lane = 0; lane < kLanes; ++lane) {
    int64_t sum = kSigned ? int64_t{static_cast<int32_t>(d[lane])} : int64_t{d[lane]};
    for (int element = 0; element < 2; ++element)
      sum += number(a[element][lane]) * number(b[element][lane]);
    const int64_t bounded = sum < kLow ? kLow : (sum > kHigh ? kHigh : sum);
    result[lane] = static_cast<uint32_t>(clamp ? bounded : sum);
  }
  write(c, i, result);
}

/// Products are exact in fp32; each sum rounds, in the order of the ISA guide's text.
template <Format kFormat, bool kAddendFirst>
void v_dot2_f32(Context& c, const Instruction& i) {
  Lanes a[2], b[2], scratch, result;
  read_pairs(c, i, 0, kFormat.mantissa == kHalf.mantissa, a);
  read_pairs(c, i, 1, kFormat.mantissa == kHalf.mantissa, b);
  if (kFormat.mantissa != kHalf.mantissa) {
    const auto flip = [&](Lanes& value, int bits, int source) {
      if (bits >> source & 1)
        for (int lane = 0; lane < kLanes; ++lane) value[lane] ^= 0x8000;
    };
    for (int source = 0; source < 2; ++source) {
      flip(source == 0 ? a[0] : b[0], i.modifiers.neg_lo, source);
      flip(source == 0 ? a[1] : b[1], i.modifiers.neg_hi, source);
    }
  }
  const Lanes& d = read_float(c, i, 2, scratch);
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto product = [&](int element) {
      return static_cast<float>(decode<kFormat>(a[element][lane]) *
                                decode<kFormat>(b[element][lane]));
    };
    const float addend = as_float(d[lane]);
    const float sum =
        kAddendFirst ? (addend + product(0)) + product(1) : (product(0) + product(1)) + addend;
    result[lane] = as_bits(sum);
  }
  write_float(c, i, result);
}

/// One source of a mixed fma: fp16 where op_sel_hi is set, then op_sel names the half.
void read_mixed(Context& c, const Instruction& i, int source, Lanes& value) {
  if (i.modifiers.op_sel_hi >> source & 1) {
    read_half(c, i, source, value);
    for (int lane = 0; lane < kLanes; ++lane)
      value[lane] = as_bits(static_cast<float>(decode<kHalf>(value[lane])));
    return;
  }
  Lanes scratch;
  value = read_float(c, i, source, scratch);
}

void mixed_fma(Context& c, const Instruction& i, Lanes& result) {
  Lanes a, b, d;
  read_mixed(c, i, 0, a);
  read_mixed(c, i, 1, b);
  read_mixed(c, i, 2, d);
  const FloatMode mode(c.wave.mode, FloatMode::single);
  for (int lane = 0; lane < kLanes; ++lane)
    result[lane] = as_bits(__builtin_fmaf(as_float(a[lane]), as_float(b[lane]), as_float(d[lane])));
}

void v_fma_mix_f32(Context& c, const Instruction& i) {
  Lanes result;
  mixed_fma(c, i, result);
  write_float(c, i, result);
}

template <bool kHigh>
void v_fma_mix_f16(Context& c, const Instruction& i) {
  Lanes result;
  mixed_fma(c, i, result);
  if (i.modifiers.clamp) clamp_float(c.wave, result);
  const Lanes& old = c.wave.vector[static_cast<size_t>(c.wave.slot(i.destination[0]))];
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t half =
        encode<kHalf>(as_float(result[lane]), half_rounding(c.wave), saturates(c.wave));
    result[lane] = kHigh ? (old[lane] & 0xffff) | half << 16 : (old[lane] & 0xffff0000) | half;
  }
  write(c, i, result);
}

constexpr Opcode kRows[] = {
    {"v_dot2_f32_f16", Class::valu, v_dot2_f32<kHalf, true>, kVop3p},
    {"v_dot2_f32_bf16", Class::valu, v_dot2_f32<kBfloat, false>, kVop3p},
    {"v_dot2c_f32_f16", Class::valu, v_dot2_f32<kHalf, true>, kVop2},
    {"v_dot2c_f32_bf16", Class::valu, v_dot2_f32<kBfloat, true>, kVop2},
    {"v_dot2_i32_i16", Class::valu, v_dot2_16<true>, kVop3p},
    {"v_dot2_u32_u16", Class::valu, v_dot2_16<false>, kVop3p},
    {"v_dot2c_i32_i16", Class::valu, v_dot2_16<true>, kVop2},
    {"v_dot4_i32_i8", Class::valu, integer_dot<8, true>, kVop3p},
    {"v_dot4_u32_u8", Class::valu, integer_dot<8, false>, kVop3p},
    {"v_dot4c_i32_i8", Class::valu, integer_dot<8, true>, kVop2},
    {"v_dot8_i32_i4", Class::valu, integer_dot<4, true>, kVop3p},
    {"v_dot8_u32_u4", Class::valu, integer_dot<4, false>, kVop3p},
    {"v_dot8c_i32_i4", Class::valu, integer_dot<4, true>, kVop2},
    {"v_fma_mix_f32", Class::valu, v_fma_mix_f32, kVop3p},
    {"v_fma_mixlo_f16", Class::valu, v_fma_mix_f16<false>, kVop3p},
    {"v_fma_mixhi_f16", Class::valu, v_fma_mix_f16<true>, kVop3p},
};

}  // namespace

std::span<const Opcode> vector_dot_opcodes() { return kRows; }

}  // namespace hipdecode::sim
