// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>

namespace hipdecode::sim {

/// Minimum, maximum and median as the ISA guide spells them out: a quiet NaN loses against a
/// number, a signalling one wins in IEEE mode, and -0 is less than +0.
template <class Float>
struct Order {
  using Bits = std::conditional_t<sizeof(Float) == 8, uint64_t, uint32_t>;
  static constexpr Bits kQuiet = sizeof(Float) == 8 ? static_cast<Bits>(1ull << 51) : 1u << 22;

  static bool is_nan(Float x) { return x != x; }
  static bool negative(Float x) { return std::bit_cast<Bits>(x) >> (sizeof(Bits) * 8 - 1) != 0; }
  static Float quiet(Float x) {
    return std::bit_cast<Float>(static_cast<Bits>(std::bit_cast<Bits>(x) | kQuiet));
  }
  static bool signals(Float x) { return is_nan(x) && (std::bit_cast<Bits>(x) & kQuiet) == 0; }

  static Float pick(bool first, Float a, Float b, bool ieee) {
    Float result = is_nan(a) ? b : (is_nan(b) || first ? a : b);
    result = ieee && signals(b) ? quiet(b) : result;
    return ieee && signals(a) ? quiet(a) : result;
  }
  static Float min(Float a, Float b, bool ieee) {
    return pick(a < b || (a == b && negative(a)), a, b, ieee);
  }
  static Float max(Float a, Float b, bool ieee) {
    return pick(a > b || (a == b && !negative(a)), a, b, ieee);
  }
  static Float min3(Float a, Float b, Float c, bool ieee) { return min(min(a, b, ieee), c, ieee); }
  static Float max3(Float a, Float b, Float c, bool ieee) { return max(max(a, b, ieee), c, ieee); }
  static Float med3(Float a, Float b, Float c, bool ieee) {
    const Float most = max3(a, b, c, ieee);
    const Float middle =
        most == a ? max(b, c, ieee) : (most == b ? max(a, c, ieee) : max(a, b, ieee));
    return is_nan(a) || is_nan(b) || is_nan(c) ? min3(a, b, c, ieee) : middle;
  }
  /// IEEE 754-2019 minimum and maximum: NaN wins.
  static Float minimum3(Float a, Float b, Float c, bool ieee) {
    return is_nan(a) ? a : (is_nan(b) ? b : (is_nan(c) ? c : min3(a, b, c, ieee)));
  }
  static Float maximum3(Float a, Float b, Float c, bool ieee) {
    return is_nan(a) ? a : (is_nan(b) ? b : (is_nan(c) ? c : max3(a, b, c, ieee)));
  }
};

}  // namespace hipdecode::sim
