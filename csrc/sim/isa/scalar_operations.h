// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>

#include "../state/wave.h"

// What the scalar instructions compute, as functions of a wave's state and their operands. Included
// by opcodes_scalar.cpp alone, which makes executors of them.
namespace hipdecode::sim::scalar {

/// What an operation leaves: a value, and SCC where `sets`.
template <class T>
struct Result {
  T value;
  bool scc = false, sets = true;
};

template <class T>
Result<T> nonzero(T value) {
  return {value, value != 0};
}
template <class T>
Result<T> plain(T value) {
  return {value, false, false};
}

// Arithmetic.
inline Result<uint32_t> add(Wave&, uint32_t a, uint32_t b) { return {a + b, a + b < a}; }
inline Result<uint32_t> sub(Wave&, uint32_t a, uint32_t b) { return {a - b, a < b}; }
inline Result<int32_t> add_signed(Wave&, int32_t a, int32_t b) {
  int32_t result;
  const bool overflow = __builtin_add_overflow(a, b, &result);
  return {result, overflow};
}
inline Result<int32_t> sub_signed(Wave&, int32_t a, int32_t b) {
  int32_t result;
  const bool overflow = __builtin_sub_overflow(a, b, &result);
  return {result, overflow};
}
inline Result<uint32_t> add_carry(Wave& wave, uint32_t a, uint32_t b) {
  const uint64_t sum = uint64_t{a} + b + wave.scc;
  return {static_cast<uint32_t>(sum), sum >> 32 != 0};
}
inline Result<uint32_t> sub_borrow(Wave& wave, uint32_t a, uint32_t b) {
  return {a - b - wave.scc, uint64_t{a} < uint64_t{b} + wave.scc};
}
inline Result<uint32_t> mul(Wave&, uint32_t a, uint32_t b) { return plain(a * b); }
template <class T>
Result<T> mul_high(Wave&, T a, T b) {
  using Double = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
  return plain(static_cast<T>(Double{a} * Double{b} >> 32));
}
template <class T>
Result<T> minimum(Wave&, T a, T b) {
  return {a < b ? a : b, a < b};
}
template <class T>
Result<T> maximum(Wave&, T a, T b) {
  return {a > b ? a : b, a > b};
}
template <int kShift>
Result<uint32_t> shift_add(Wave&, uint32_t a, uint32_t b) {
  const uint64_t sum = (uint64_t{a} << kShift) + b;
  return {static_cast<uint32_t>(sum), sum >> 32 != 0};
}
inline Result<uint32_t> difference(Wave&, int32_t a, int32_t b) {
  return nonzero(a > b ? static_cast<uint32_t>(a) - static_cast<uint32_t>(b)
                       : static_cast<uint32_t>(b) - static_cast<uint32_t>(a));
}
inline Result<uint32_t> absolute(Wave&, uint32_t a) { return nonzero(a >> 31 ? 0 - a : a); }

// Bits.
template <class T>
Result<T> choose(Wave& wave, T a, T b) {
  return plain(wave.scc ? a : b);
}
template <class T>
inline constexpr int kBits = static_cast<int>(sizeof(T)) * 8;
template <class T>
Result<T> shift_left(Wave&, T a, uint32_t b) {
  return nonzero(static_cast<T>(a << (b & (kBits<T> - 1))));
}
template <class T>
Result<T> shift_right(Wave&, T a, uint32_t b) {
  return nonzero(static_cast<T>(a >> (b & (kBits<T> - 1))));
}
template <class T>
T low_mask(uint32_t width) {
  return width >= static_cast<uint32_t>(kBits<T>) ? ~T{0} : (T{1} << width) - 1;
}
template <class T>
Result<T> field_mask(Wave&, uint32_t width, uint32_t offset) {
  constexpr uint32_t kWrap = kBits<T> - 1;
  return plain(static_cast<T>(low_mask<T>(width & kWrap) << (offset & kWrap)));
}
template <class T>
Result<T> extract(Wave&, T a, uint32_t b) {
  using Unsigned = std::make_unsigned_t<T>;
  const uint32_t offset = b & (kBits<T> - 1);
  const uint32_t width = std::min<uint32_t>(b >> 16 & 0x7f, kBits<T>);
  if (width == 0) return nonzero(T{0});
  const Unsigned bits = static_cast<Unsigned>(a >> offset) & low_mask<Unsigned>(width);
  if constexpr (std::is_signed_v<T>) {
    const int spare = kBits<T> - static_cast<int>(std::min<uint32_t>(width, kBits<T> - offset));
    return nonzero(static_cast<T>(static_cast<T>(bits << spare) >> spare));
  } else {
    return nonzero(bits);
  }
}
template <int kA, int kB>
Result<uint32_t> pack(Wave&, uint32_t a, uint32_t b) {
  return plain((a >> kA & 0xffff) | (b >> kB & 0xffff) << 16);
}
template <class T>
Result<T> reverse(Wave&, T a) {
  T result = 0;
  for (int i = 0; i < kBits<T>; ++i) result |= (a >> i & 1) << (kBits<T> - 1 - i);
  return plain(result);
}
template <class T, bool kOnes>
Result<uint32_t> count_bits(Wave&, T a) {
  return nonzero(static_cast<uint32_t>(std::popcount(kOnes ? a : static_cast<T>(~a))));
}
template <class T, bool kOnes>
Result<uint32_t> find_first(Wave&, T a) {
  const T bits = kOnes ? a : static_cast<T>(~a);
  return plain(bits == 0 ? ~0u : static_cast<uint32_t>(std::countr_zero(bits)));
}
template <class T>
Result<uint32_t> leading_zeros(Wave&, T a) {
  return plain(a == 0 ? ~0u : static_cast<uint32_t>(std::countl_zero(a)));
}
/// How many bits in front equal the sign.
template <class T>
Result<uint32_t> leading_signs(Wave&, T a) {
  constexpr T kTop = T{1} << (kBits<T> - 1);
  const T flipped = a & kTop ? static_cast<T>(~a) : a;
  return plain(flipped == 0 ? ~0u : static_cast<uint32_t>(std::countl_zero(flipped)));
}
template <class Narrow>
Result<int32_t> extend(Wave&, uint32_t a) {
  return plain(int32_t{static_cast<Narrow>(a)});
}
template <class T>
Result<T> move(Wave&, T a) {
  return plain(a);
}
template <class T>
Result<T> invert(Wave&, T a) {
  return nonzero(static_cast<T>(~a));
}
/// Each group of kGroup bits becomes one bit (quadmask) or all of its bits (wqm).
template <class T, bool kWhole>
Result<T> quads(Wave&, T a) {
  T result = 0;
  for (int i = 0; i < kBits<T>; i += 4)
    if (a >> i & 15) result |= kWhole ? T{15} << i : T{1} << i / 4;
  return nonzero(result);
}
inline Result<uint64_t> replicate(Wave&, uint32_t a) {
  uint64_t result = 0;
  for (int i = 0; i < 32; ++i) result |= uint64_t{a >> i & 1} * 3 << 2 * i;
  return plain(result);
}

// Logic: of two operands, and of a mask and exec.
inline constexpr auto kAnd = [](auto a, auto b) { return static_cast<decltype(a)>(a & b); };
inline constexpr auto kOr = [](auto a, auto b) { return static_cast<decltype(a)>(a | b); };
inline constexpr auto kXor = [](auto a, auto b) { return static_cast<decltype(a)>(a ^ b); };
inline constexpr auto kAndn2 = [](auto a, auto b) { return static_cast<decltype(a)>(a & ~b); };
inline constexpr auto kOrn2 = [](auto a, auto b) { return static_cast<decltype(a)>(a | ~b); };
inline constexpr auto kNand = [](auto a, auto b) { return static_cast<decltype(a)>(~(a & b)); };
inline constexpr auto kNor = [](auto a, auto b) { return static_cast<decltype(a)>(~(a | b)); };
inline constexpr auto kXnor = [](auto a, auto b) { return static_cast<decltype(a)>(~(a ^ b)); };
inline constexpr auto kAndn1 = [](auto a, auto b) { return static_cast<decltype(a)>(~a & b); };
inline constexpr auto kOrn1 = [](auto a, auto b) { return static_cast<decltype(a)>(~a | b); };

}  // namespace hipdecode::sim::scalar
