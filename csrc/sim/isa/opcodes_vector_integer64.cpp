// SPDX-License-Identifier: MIT
// 64-bit integers, and carries through lane masks.
#include "vector.h"

namespace hipdecode::sim {
namespace {

template <auto kShift>
void shift_wide(Context& c, const Instruction& i) {
  Lanes scratch;
  WideLanes value;
  const Lanes& count = read(c, i, 0, scratch);
  read_wide(c, i, 1, value);
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = kShift(value[lane], count[lane] & 63);
  write_wide(c, i, value);
}

uint64_t shift_left(uint64_t value, uint32_t count) { return value << count; }
uint64_t shift_right(uint64_t value, uint32_t count) { return value >> count; }
uint64_t shift_right_signed(uint64_t value, uint32_t count) {
  return static_cast<uint64_t>(static_cast<int64_t>(value) >> count);
}

void v_lshl_add_u64(Context& c, const Instruction& i) {
  Lanes scratch;
  WideLanes a, d;
  read_wide(c, i, 0, a);
  const Lanes& count = read(c, i, 1, scratch);
  read_wide(c, i, 2, d);
  for (int lane = 0; lane < kLanes; ++lane) d[lane] += a[lane] << (count[lane] & 7);
  write_wide(c, i, d);
}

/// 32 x 32 + 64 bits; the mask receives what does not fit into 64.
template <bool kSigned>
void v_mad_64_32(Context& c, const Instruction& i) {
  Lanes scratch[2];
  WideLanes d;
  Lanes carry;
  const Lanes &a = read(c, i, 0, scratch[0]), &b = read(c, i, 1, scratch[1]);
  read_wide(c, i, 2, d);
  for (int lane = 0; lane < kLanes; ++lane) {
    uint64_t product = uint64_t{a[lane]} * b[lane];
    if constexpr (kSigned)
      product = static_cast<uint64_t>(int64_t{static_cast<int32_t>(a[lane])} *
                                      static_cast<int32_t>(b[lane]));
    const uint64_t sum = product + d[lane];
    const bool overflow = kSigned ? ((product ^ sum) & (d[lane] ^ sum)) >> 63 != 0 : sum < product;
    carry[lane] = overflow;
    d[lane] = sum;
  }
  write_wide(c, i, d);
  write_mask(c, i.destination[1], gather_bits(carry));
}

enum class Carry : uint8_t { out, in_and_out };
enum class Sense : uint8_t { add, subtract, subtract_reversed };

template <Sense kSense, Carry kCarry>
void with_carry(Context& c, const Instruction& i) {
  constexpr int kFirst = kSense == Sense::subtract_reversed ? 1 : 0;
  Lanes scratch[2], result, in, out;
  const Lanes &a = read(c, i, kFirst, scratch[0]), &b = read(c, i, 1 - kFirst, scratch[1]);
  const uint64_t mask = kCarry == Carry::in_and_out ? read_scalar(c, i.source[2]) : 0;
  for (int lane = 0; lane < kLanes; ++lane) in[lane] = static_cast<uint32_t>(mask >> lane & 1);
  const uint32_t clamp = i.modifiers.clamp ? 1 : 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t x = a[lane], y = b[lane];
    uint32_t once, twice, carry, saturated;
    if constexpr (kSense == Sense::add) {
      once = x + y, twice = once + in[lane], saturated = ~0u;
      carry = (once < x ? 1u : 0u) | (twice < once ? 1u : 0u);
    } else {
      once = x - y, twice = once - in[lane], saturated = 0;
      carry = (x < y ? 1u : 0u) | (once < in[lane] ? 1u : 0u);
    }
    out[lane] = carry;
    result[lane] = (clamp & carry) != 0 ? saturated : twice;
  }
  write(c, i, result);
  write_mask(c, i.destination[1], gather_bits(out));
}

constexpr Opcode kWideRows[] = {
    {"v_lshlrev_b64", Class::valu, shift_wide<shift_left>, kVop3},
    {"v_lshrrev_b64", Class::valu, shift_wide<shift_right>, kVop3},
    {"v_ashrrev_i64", Class::valu, shift_wide<shift_right_signed>, kVop3},
    {"v_lshl_add_u64", Class::valu, v_lshl_add_u64, kVop3},
    {"v_mad_u64_u32", Class::valu, v_mad_64_32<false>, kVop3},
    {"v_mad_i64_i32", Class::valu, v_mad_64_32<true>, kVop3},
};

constexpr Opcode kCarryRows[] = {
    {"v_add_co_u32", Class::valu, with_carry<Sense::add, Carry::out>, kVop2},
    {"v_addc_co_u32", Class::valu, with_carry<Sense::add, Carry::in_and_out>, kVop2},
    {"v_sub_co_u32", Class::valu, with_carry<Sense::subtract, Carry::out>, kVop2},
    {"v_subb_co_u32", Class::valu, with_carry<Sense::subtract, Carry::in_and_out>, kVop2},
    {"v_subrev_co_u32", Class::valu, with_carry<Sense::subtract_reversed, Carry::out>, kVop2},
    {"v_subbrev_co_u32", Class::valu, with_carry<Sense::subtract_reversed, Carry::in_and_out>,
     kVop2},
};

}  // namespace

std::span<const Opcode> vector_integer64_opcodes() { return kWideRows; }
std::span<const Opcode> vector_carry_opcodes() { return kCarryRows; }

}  // namespace hipdecode::sim
