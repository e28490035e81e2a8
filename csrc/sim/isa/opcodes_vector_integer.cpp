// SPDX-License-Identifier: MIT
// 32-bit integers and bits.
#include <bit>

#include "vector.h"

namespace hipdecode::sim {
namespace {

constexpr auto kAdd = [](auto a, auto b) { return a + b; };
constexpr auto kSubtract = [](auto a, auto b) { return a - b; };
constexpr auto kSubtractReversed = [](auto a, auto b) { return b - a; };

int32_t sign_extend(uint32_t value, int bits) {
  return static_cast<int32_t>(value << (32 - bits)) >> (32 - bits);
}
int64_t i24(uint32_t value) { return sign_extend(value, 24); }
uint64_t u24(uint32_t value) { return value & 0xffffff; }
int32_t i32(uint32_t value) { return static_cast<int32_t>(value); }
uint32_t low(int64_t value) { return static_cast<uint32_t>(value); }
uint32_t low(uint64_t value) { return static_cast<uint32_t>(value); }
uint32_t high(int64_t value) { return static_cast<uint32_t>(value >> 32); }
uint32_t high(uint64_t value) { return static_cast<uint32_t>(value >> 32); }

uint32_t shift_right(uint32_t count, uint32_t value) { return value >> (count & 31); }
uint32_t shift_right_signed(uint32_t count, uint32_t value) {
  return static_cast<uint32_t>(i32(value) >> (count & 31));
}
uint32_t min_i32(uint32_t a, uint32_t b) { return i32(a) < i32(b) ? a : b; }
uint32_t max_i32(uint32_t a, uint32_t b) { return i32(a) < i32(b) ? b : a; }
uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }
uint32_t max_u32(uint32_t a, uint32_t b) { return a < b ? b : a; }
template <auto kMin, auto kMax>
uint32_t median(uint32_t a, uint32_t b, uint32_t c) {
  return kMax(kMin(a, b), kMin(kMax(a, b), c));
}

uint32_t bfe_u32(uint32_t value, uint32_t offset, uint32_t width) {
  return value >> (offset & 31) & ((1u << (width & 31)) - 1);
}
uint32_t bfe_i32(uint32_t value, uint32_t offset, uint32_t width) {
  const uint32_t bits = width & 31;
  const uint32_t field = static_cast<uint32_t>(i32(value) >> (offset & 31)) & ((1u << bits) - 1);
  const uint32_t sign = bits == 0 ? 0 : 1u << (bits - 1) % 32;
  return (field ^ sign) - sign;
}
uint32_t reverse(uint32_t x) {
  x = (x >> 1 & 0x55555555) | (x & 0x55555555) << 1;
  x = (x >> 2 & 0x33333333) | (x & 0x33333333) << 2;
  x = (x >> 4 & 0x0f0f0f0f) | (x & 0x0f0f0f0f) << 4;
  return __builtin_bswap32(x);
}
uint32_t leading(uint32_t x) { return x == 0 ? ~0u : static_cast<uint32_t>(std::countl_zero(x)); }
uint32_t trailing(uint32_t x) { return x == 0 ? ~0u : static_cast<uint32_t>(std::countr_zero(x)); }
uint32_t leading_signs(uint32_t x) { return leading(i32(x) < 0 ? ~x : x); }

template <class Integer>
void v_mad_24(Context& c, const Instruction& i) {
  Lanes scratch[3], result;
  const Lanes &a = read(c, i, 0, scratch[0]), &b = read(c, i, 1, scratch[1]),
              &d = read(c, i, 2, scratch[2]);
  constexpr int64_t kLow = std::numeric_limits<Integer>::min(),
                    kHigh = std::numeric_limits<Integer>::max();
  const bool clamp = i.modifiers.clamp;
  for (int lane = 0; lane < kLanes; ++lane) {
    int64_t exact;
    if constexpr (std::is_signed_v<Integer>)
      exact = i24(a[lane]) * i24(b[lane]) + i32(d[lane]);
    else
      exact = static_cast<int64_t>(u24(a[lane]) * u24(b[lane]) + d[lane]);
    const int64_t bounded = exact < kLow ? kLow : (exact > kHigh ? kHigh : exact);
    result[lane] = low(clamp ? bounded : exact);
  }
  write(c, i, result);
}

template <bool kSigned>
void v_mad_16(Context& c, const Instruction& i) {
  Lanes a, b, scratch, result;
  read_short(c, i, 0, a);
  read_short(c, i, 1, b);
  const Lanes& d = read(c, i, 2, scratch);
  constexpr int64_t kLow = kSigned ? INT32_MIN : 0, kHigh = kSigned ? INT32_MAX : UINT32_MAX;
  const bool clamp = i.modifiers.clamp;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int64_t x = kSigned ? static_cast<int16_t>(a[lane]) : static_cast<int64_t>(a[lane]);
    const int64_t y = kSigned ? static_cast<int16_t>(b[lane]) : static_cast<int64_t>(b[lane]);
    const int64_t exact = x * y + (kSigned ? i32(d[lane]) : static_cast<int64_t>(d[lane]));
    const int64_t bounded = exact < kLow ? kLow : (exact > kHigh ? kHigh : exact);
    result[lane] = low(clamp ? bounded : exact);
  }
  write(c, i, result);
}

void bitop3(const Instruction& i, const Lanes& a, const Lanes& b, const Lanes& d, Lanes& result) {
  uint32_t term[8];  // all ones where the truth table has a one
  for (int row = 0; row < 8; ++row) term[row] = i.modifiers.bitop3 >> row & 1 ? ~0u : 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t x = a[lane], y = b[lane], z = d[lane];
    const uint32_t low_half =
        (~y & ((~z & term[0]) | (z & term[1]))) | (y & ((~z & term[2]) | (z & term[3])));
    const uint32_t high_half =
        (~y & ((~z & term[4]) | (z & term[5]))) | (y & ((~z & term[6]) | (z & term[7])));
    result[lane] = (~x & low_half) | (x & high_half);
  }
}

void v_bitop3_b32(Context& c, const Instruction& i) {
  Lanes scratch[3], result;
  bitop3(i, read(c, i, 0, scratch[0]), read(c, i, 1, scratch[1]), read(c, i, 2, scratch[2]),
         result);
  write(c, i, result);
}

void v_bitop3_b16(Context& c, const Instruction& i) {
  Lanes a, b, d;
  read_short(c, i, 0, a);
  read_short(c, i, 1, b);
  read_short(c, i, 2, d);
  bitop3(i, a, b, d, d);
  write_short(c, i, d, true);
}

using U = uint32_t;

constexpr Opcode kRows[] = {
    {"v_add_u32", Class::valu, binary_integer<U, kAdd>, kVop2},
    {"v_sub_u32", Class::valu, binary_integer<U, kSubtract>, kVop2},
    {"v_subrev_u32", Class::valu, binary_integer<U, kSubtractReversed>, kVop2},
    {"v_add_i32", Class::valu, binary_integer<int32_t, kAdd>, kVop3},
    {"v_sub_i32", Class::valu, binary_integer<int32_t, kSubtract>, kVop3},
    {"v_add3_u32", Class::valu, ternary_b32<[](U a, U b, U d) { return a + b + d; }>, kVop3},
    {"v_lshl_add_u32", Class::valu, ternary_b32<[](U a, U b, U d) { return (a << (b & 31)) + d; }>,
     kVop3},
    {"v_add_lshl_u32", Class::valu, ternary_b32<[](U a, U b, U d) { return (a + b) << (d & 31); }>,
     kVop3},
    {"v_lshl_or_b32", Class::valu, ternary_b32<[](U a, U b, U d) { return a << (b & 31) | d; }>,
     kVop3},
    {"v_and_or_b32", Class::valu, ternary_b32<[](U a, U b, U d) { return (a & b) | d; }>, kVop3},
    {"v_or3_b32", Class::valu, ternary_b32<[](U a, U b, U d) { return a | b | d; }>, kVop3},
    {"v_xad_u32", Class::valu, ternary_b32<[](U a, U b, U d) { return (a ^ b) + d; }>, kVop3},
    {"v_bitop3_b32", Class::valu, v_bitop3_b32, kVop3},
    {"v_bitop3_b16", Class::valu, v_bitop3_b16, kVop3},
    {"v_and_b32", Class::valu, binary_b32<[](U a, U b) { return a & b; }>, kVop2},
    {"v_or_b32", Class::valu, binary_b32<[](U a, U b) { return a | b; }>, kVop2},
    {"v_xor_b32", Class::valu, binary_b32<[](U a, U b) { return a ^ b; }>, kVop2},
    {"v_xnor_b32", Class::valu, binary_b32<[](U a, U b) { return ~(a ^ b); }>, kVop2},
    {"v_not_b32", Class::valu, unary_b32<[](U a) { return ~a; }>, kVop1},
    {"v_lshlrev_b32", Class::valu, binary_b32<[](U a, U b) { return b << (a & 31); }>, kVop2},
    {"v_lshrrev_b32", Class::valu, binary_b32<shift_right>, kVop2},
    {"v_ashrrev_i32", Class::valu, binary_b32<shift_right_signed>, kVop2},
    {"v_min_i32", Class::valu, binary_b32<min_i32>, kVop2},
    {"v_max_i32", Class::valu, binary_b32<max_i32>, kVop2},
    {"v_min_u32", Class::valu, binary_b32<min_u32>, kVop2},
    {"v_max_u32", Class::valu, binary_b32<max_u32>, kVop2},
    {"v_min3_i32", Class::valu,
     ternary_b32<[](U a, U b, U d) { return min_i32(min_i32(a, b), d); }>, kVop3},
    {"v_max3_i32", Class::valu,
     ternary_b32<[](U a, U b, U d) { return max_i32(max_i32(a, b), d); }>, kVop3},
    {"v_min3_u32", Class::valu,
     ternary_b32<[](U a, U b, U d) { return min_u32(min_u32(a, b), d); }>, kVop3},
    {"v_max3_u32", Class::valu,
     ternary_b32<[](U a, U b, U d) { return max_u32(max_u32(a, b), d); }>, kVop3},
    {"v_med3_i32", Class::valu, ternary_b32<median<min_i32, max_i32>>, kVop3},
    {"v_med3_u32", Class::valu, ternary_b32<median<min_u32, max_u32>>, kVop3},
    {"v_mul_lo_u32", Class::valu, binary_b32<[](U a, U b) { return a * b; }>, kVop3},
    {"v_mul_hi_u32", Class::valu, binary_b32<[](U a, U b) { return high(uint64_t{a} * b); }>,
     kVop3},
    {"v_mul_hi_i32", Class::valu,
     binary_b32<[](U a, U b) { return high(int64_t{i32(a)} * i32(b)); }>, kVop3},
    {"v_mul_i32_i24", Class::valu, binary_b32<[](U a, U b) { return low(i24(a) * i24(b)); }>,
     kVop2},
    {"v_mul_hi_i32_i24", Class::valu, binary_b32<[](U a, U b) { return high(i24(a) * i24(b)); }>,
     kVop2},
    {"v_mul_u32_u24", Class::valu, binary_b32<[](U a, U b) { return low(u24(a) * u24(b)); }>,
     kVop2},
    {"v_mul_hi_u32_u24", Class::valu, binary_b32<[](U a, U b) { return high(u24(a) * u24(b)); }>,
     kVop2},
    {"v_mad_i32_i24", Class::valu, v_mad_24<int32_t>, kVop3},
    {"v_mad_u32_u24", Class::valu, v_mad_24<uint32_t>, kVop3},
    {"v_mad_i32_i16", Class::valu, v_mad_16<true>, kVop3},
    {"v_mad_u32_u16", Class::valu, v_mad_16<false>, kVop3},
    {"v_bfe_u32", Class::valu, ternary_b32<bfe_u32>, kVop3},
    {"v_bfe_i32", Class::valu, ternary_b32<bfe_i32>, kVop3},
    {"v_bfi_b32", Class::valu, ternary_b32<[](U a, U b, U d) { return (a & b) | (~a & d); }>,
     kVop3},
    {"v_bfm_b32", Class::valu,
     binary_b32<[](U a, U b) { return ((1u << (a & 31)) - 1) << (b & 31); }>, kVop3},
    {"v_bfrev_b32", Class::valu, unary_b32<reverse>, kVop1},
    {"v_bcnt_u32_b32", Class::valu, binary_b32<[](U a, U b) { return b + U(std::popcount(a)); }>,
     kVop3},
    {"v_ffbh_u32", Class::valu, unary_b32<leading>, kVop1},
    {"v_ffbl_b32", Class::valu, unary_b32<trailing>, kVop1},
    {"v_ffbh_i32", Class::valu, unary_b32<leading_signs>, kVop1},
    {"v_prng_b32", Class::valu, unary_b32<next_random>, kVop1},
};

}  // namespace

std::span<const Opcode> vector_integer_opcodes() { return kRows; }

}  // namespace hipdecode::sim
