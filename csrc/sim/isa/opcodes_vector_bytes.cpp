// SPDX-License-Identifier: MIT
// Bytes of a dword: permutations, sums of absolute differences, saturating packs.
#include "vector.h"

namespace hipdecode::sim {
namespace {

uint32_t byte(uint64_t value, int index) {
  return static_cast<uint32_t>(value >> index * 8) & 0xff;
}
uint32_t distance(uint32_t a, uint32_t b) { return a > b ? a - b : b - a; }

/// v_perm_b32: each selector byte names one of eight bytes, a sign, or a constant.
uint32_t permute(uint32_t high, uint32_t low, uint32_t selectors) {
  const uint64_t data = uint64_t{high} << 32 | low;
  uint32_t result = 0;
  for (int place = 0; place < 4; ++place) {
    const uint32_t selector = byte(selectors, place);
    const uint32_t picked = byte(data, static_cast<int>(selector & 7));
    const uint32_t sign = data >> ((selector & 3) * 16 + 15) & 1 ? 0xff : 0;
    const uint32_t constant = selector >= 13 ? 0xff : (selector == 12 ? 0 : sign);
    result |= (selector < 8 ? picked : constant) << place * 8;
  }
  return result;
}

uint32_t align_bits(uint32_t high, uint32_t low, uint32_t count) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (count & 31));
}
uint32_t align_bytes(uint32_t high, uint32_t low, uint32_t count) {
  return align_bits(high, low, (count & 3) * 8);
}

uint32_t lerp(uint32_t a, uint32_t b, uint32_t round) {
  uint32_t result = 0;
  for (int place = 0; place < 4; ++place)
    result |= (byte(a, place) + byte(b, place) + (byte(round, place) & 1)) >> 1 << place * 8;
  return result;
}

uint32_t sad_bytes(uint32_t a, uint32_t b, uint32_t sum) {
  for (int place = 0; place < 4; ++place) sum += distance(byte(a, place), byte(b, place));
  return sum;
}
/// Bytes that are zero in the reference do not count.
uint32_t masked_sad_bytes(uint32_t a, uint32_t b, uint32_t sum) {
  for (int place = 0; place < 4; ++place)
    sum += byte(b, place) == 0 ? 0 : distance(byte(a, place), byte(b, place));
  return sum;
}
uint32_t sad_bytes_high(uint32_t a, uint32_t b, uint32_t sum) {
  return (sad_bytes(a, b, 0) << 16) + sum;
}
uint32_t sad_words(uint32_t a, uint32_t b, uint32_t sum) {
  return sum + distance(a & 0xffff, b & 0xffff) + distance(a >> 16, b >> 16);
}
uint32_t sad_dwords(uint32_t a, uint32_t b, uint32_t sum) { return distance(a, b) + sum; }

/// Four sums over windows that start one byte apart, packed into 16 bits each.
template <auto kSad>
void quad_sad_packed(Context& c, const Instruction& i) {
  Lanes scratch;
  WideLanes a, d;
  read_wide(c, i, 0, a);
  const Lanes& b = read(c, i, 1, scratch);
  read_wide(c, i, 2, d);
  for (int lane = 0; lane < kLanes; ++lane) {
    uint64_t result = 0;
    for (int window = 0; window < 4; ++window) {
      const uint32_t start = static_cast<uint32_t>(d[lane] >> window * 16) & 0xffff;
      const uint32_t sum = kSad(static_cast<uint32_t>(a[lane] >> window * 8), b[lane], start);
      result |= uint64_t{sum & 0xffff} << window * 16;
    }
    d[lane] = result;
  }
  write_wide(c, i, d);
}

void v_mqsad_u32_u8(Context& c, const Instruction& i) {
  Lanes scratch, reference, result[4];
  WideLanes a;
  read_wide(c, i, 0, a);
  reference = read(c, i, 1, scratch);
  for (int window = 0; window < 4; ++window) {
    const Lanes& d = read(c, i, 2, scratch, window);
    for (int lane = 0; lane < kLanes; ++lane)
      result[window][lane] =
          masked_sad_bytes(static_cast<uint32_t>(a[lane] >> window * 8), reference[lane], d[lane]);
  }
  for (int window = 0; window < 4; ++window) write(c, i, result[window], window);
}

uint32_t saturate(int32_t value, int32_t low, int32_t high) {
  return static_cast<uint32_t>(value < low ? low : (value > high ? high : value));
}

/// Two shifted dwords, saturated to bytes, in one half of the destination.
template <int kLow, int kHigh>
void ashr_pack(Context& c, const Instruction& i) {
  Lanes scratch[3], result;
  const Lanes &a = read(c, i, 0, scratch[0]), &b = read(c, i, 1, scratch[1]),
              &d = read(c, i, 2, scratch[2]);
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t count = d[lane] & 31;
    const uint32_t first = saturate(static_cast<int32_t>(a[lane]) >> count, kLow, kHigh) & 0xff;
    const uint32_t second = saturate(static_cast<int32_t>(b[lane]) >> count, kLow, kHigh) & 0xff;
    result[lane] = first | second << 8;
  }
  write_short(c, i, result, true);
}

void v_sat_pk_u8_i16(Context& c, const Instruction& i) {
  Lanes scratch, result;
  const Lanes& a = read(c, i, 0, scratch);
  for (int lane = 0; lane < kLanes; ++lane)
    result[lane] = saturate(static_cast<int16_t>(a[lane]), 0, 255) |
                   saturate(static_cast<int32_t>(a[lane]) >> 16, 0, 255) << 8;
  write_short(c, i, result);
}

constexpr Opcode kRows[] = {
    {"v_perm_b32", Class::valu, ternary_b32<permute>, kVop3},
    {"v_alignbit_b32", Class::valu, ternary_b32<align_bits>, kVop3},
    {"v_alignbyte_b32", Class::valu, ternary_b32<align_bytes>, kVop3},
    {"v_lerp_u8", Class::valu, ternary_b32<lerp>, kVop3},
    {"v_sad_u8", Class::valu, ternary_b32<sad_bytes>, kVop3},
    {"v_sad_hi_u8", Class::valu, ternary_b32<sad_bytes_high>, kVop3},
    {"v_sad_u16", Class::valu, ternary_b32<sad_words>, kVop3},
    {"v_sad_u32", Class::valu, ternary_b32<sad_dwords>, kVop3},
    {"v_msad_u8", Class::valu, ternary_b32<masked_sad_bytes>, kVop3},
    {"v_qsad_pk_u16_u8", Class::valu, quad_sad_packed<sad_bytes>, kVop3},
    {"v_mqsad_pk_u16_u8", Class::valu, quad_sad_packed<masked_sad_bytes>, kVop3},
    {"v_mqsad_u32_u8", Class::valu, v_mqsad_u32_u8, kVop3},
    {"v_ashr_pk_i8_i32", Class::valu, ashr_pack<-128, 127>, kVop3},
    {"v_ashr_pk_u8_i32", Class::valu, ashr_pack<0, 255>, kVop3},
    {"v_sat_pk_u8_i16", Class::valu, v_sat_pk_u8_i16, kVop1},
};

}  // namespace

std::span<const Opcode> vector_bytes_opcodes() { return kRows; }

}  // namespace hipdecode::sim
