// SPDX-License-Identifier: MIT
// 16-bit integers.
#include "vector.h"

namespace hipdecode::sim {
namespace {

int16_t i16(uint32_t value) { return static_cast<int16_t>(value); }

template <auto kOperation>
void binary(Context& c, const Instruction& i) {
  Lanes a, b;
  read_short(c, i, 0, a);
  read_short(c, i, 1, b);
  for (int lane = 0; lane < kLanes; ++lane) a[lane] = kOperation(a[lane], b[lane]) & 0xffff;
  write_short(c, i, a);
}

template <auto kOperation>
void ternary(Context& c, const Instruction& i) {
  Lanes a, b, d;
  read_short(c, i, 0, a);
  read_short(c, i, 1, b);
  read_short(c, i, 2, d);
  for (int lane = 0; lane < kLanes; ++lane)
    a[lane] = kOperation(a[lane], b[lane], d[lane]) & 0xffff;
  write_short(c, i, a, true);
}

uint32_t shift_left(uint32_t count, uint32_t value) { return value << (count & 15); }
uint32_t shift_right(uint32_t count, uint32_t value) { return value >> (count & 15); }
uint32_t shift_right_signed(uint32_t count, uint32_t value) {
  return static_cast<uint32_t>(i16(value) >> (count & 15));
}
uint32_t min_i(uint32_t a, uint32_t b) { return i16(a) < i16(b) ? a : b; }
uint32_t max_i(uint32_t a, uint32_t b) { return i16(a) < i16(b) ? b : a; }
uint32_t min_u(uint32_t a, uint32_t b) { return a < b ? a : b; }
uint32_t max_u(uint32_t a, uint32_t b) { return a < b ? b : a; }
template <auto kPick>
uint32_t pick3(uint32_t a, uint32_t b, uint32_t c) {
  return kPick(kPick(a, b), c);
}
template <auto kMin, auto kMax>
uint32_t median(uint32_t a, uint32_t b, uint32_t c) {
  return kMax(kMin(a, b), kMin(kMax(a, b), c));
}

constexpr auto kAdd = [](auto a, auto b) { return a + b; };
constexpr auto kSubtract = [](auto a, auto b) { return a - b; };
constexpr auto kSubtractReversed = [](auto a, auto b) { return b - a; };
constexpr auto kMultiply = [](auto a, auto b) { return a * b; };
constexpr auto kMad = [](auto a, auto b, auto d) { return a * b + d; };

constexpr Opcode kRows[] = {
    {"v_add_u16", Class::valu, binary_integer<uint16_t, kAdd>, kVop2},
    {"v_sub_u16", Class::valu, binary_integer<uint16_t, kSubtract>, kVop2},
    {"v_subrev_u16", Class::valu, binary_integer<uint16_t, kSubtractReversed>, kVop2},
    {"v_mul_lo_u16", Class::valu, binary_integer<uint16_t, kMultiply>, kVop2},
    {"v_add_i16", Class::valu, binary_integer<int16_t, kAdd, true>, kVop3},
    {"v_sub_i16", Class::valu, binary_integer<int16_t, kSubtract, true>, kVop3},
    {"v_mad_u16", Class::valu, ternary_integer<uint16_t, kMad, true>, kVop3},
    {"v_mad_i16", Class::valu, ternary_integer<int16_t, kMad, true>, kVop3},
    {"v_mad_legacy_u16", Class::valu, ternary_integer<uint16_t, kMad>, kVop3},
    {"v_mad_legacy_i16", Class::valu, ternary_integer<int16_t, kMad>, kVop3},
    {"v_lshlrev_b16", Class::valu, binary<shift_left>, kVop2},
    {"v_lshrrev_b16", Class::valu, binary<shift_right>, kVop2},
    {"v_ashrrev_i16", Class::valu, binary<shift_right_signed>, kVop2},
    {"v_min_i16", Class::valu, binary<min_i>, kVop2},
    {"v_max_i16", Class::valu, binary<max_i>, kVop2},
    {"v_min_u16", Class::valu, binary<min_u>, kVop2},
    {"v_max_u16", Class::valu, binary<max_u>, kVop2},
    {"v_min3_i16", Class::valu, ternary<pick3<min_i>>, kVop3},
    {"v_max3_i16", Class::valu, ternary<pick3<max_i>>, kVop3},
    {"v_min3_u16", Class::valu, ternary<pick3<min_u>>, kVop3},
    {"v_max3_u16", Class::valu, ternary<pick3<max_u>>, kVop3},
    {"v_med3_i16", Class::valu, ternary<median<min_i, max_i>>, kVop3},
    {"v_med3_u16", Class::valu, ternary<median<min_u, max_u>>, kVop3},
};

}  // namespace

std::span<const Opcode> vector_integer16_opcodes() { return kRows; }

}  // namespace hipdecode::sim
