// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace hipdecode::sim {

/// What a floating-point format spends codes on besides finite numbers.
enum class Specials : uint8_t {
  ieee,    // infinities and NaNs above the largest exponent
  fn,      // one NaN (all ones), no infinity
  fnuz,    // one NaN (the code of -0), no infinity
  finite,  // nothing
};

struct Format {
  int exponent, mantissa, bias;  // bits, bits, value
  Specials specials;

  constexpr int bits() const { return exponent + mantissa; }  // without the sign
};

inline constexpr Format kSingle{8, 23, 127, Specials::ieee};
inline constexpr Format kHalf{5, 10, 15, Specials::ieee};
inline constexpr Format kBfloat{8, 7, 127, Specials::ieee};
inline constexpr Format kE4m3fn{4, 3, 7, Specials::fn};       // "fp8" of gfx950
inline constexpr Format kE5m2{5, 2, 15, Specials::ieee};      // "bf8" of gfx950
inline constexpr Format kE4m3fnuz{4, 3, 8, Specials::fnuz};   // "fp8" of gfx942
inline constexpr Format kE5m2fnuz{5, 2, 16, Specials::fnuz};  // "bf8" of gfx942
inline constexpr Format kE2m3{2, 3, 1, Specials::finite};     // "fp6"
inline constexpr Format kE3m2{3, 2, 3, Specials::finite};     // "bf6"
inline constexpr Format kE2m1{2, 1, 1, Specials::finite};     // "fp4"

/// The first four are encoded as in MODE.FP_ROUND.
enum class Rounding : uint8_t { nearest_even, up, down, toward_zero, stochastic };

/// The value of a code. Branchless, so that loops over lanes vectorise.
template <Format kFormat>
constexpr double decode(uint32_t code) {
  constexpr uint32_t kTop = (1u << kFormat.exponent) - 1;
  const uint32_t mantissa = code & ((1u << kFormat.mantissa) - 1);
  const uint32_t exponent = code >> kFormat.mantissa & kTop;
  const uint64_t fraction = uint64_t{mantissa} << (52 - kFormat.mantissa);
  const double normal = std::bit_cast<double>(
      static_cast<uint64_t>(static_cast<int64_t>(exponent) + 1023 - kFormat.bias) << 52 | fraction);
  constexpr double kStep =
      std::bit_cast<double>(static_cast<uint64_t>(1024 - kFormat.bias - kFormat.mantissa) << 52);
  double value = exponent == 0 ? static_cast<int32_t>(mantissa) * kStep : normal;
  constexpr uint64_t kInfinity = uint64_t{0x7ff} << 52;
  if constexpr (kFormat.specials == Specials::ieee) {
    value = exponent == kTop ? std::bit_cast<double>(kInfinity | fraction) : value;
  } else if constexpr (kFormat.specials == Specials::fn) {
    const bool nan = (code & ((2u << kFormat.bits()) - 1) >> 1) == (1u << kFormat.bits()) - 1;
    value = nan ? std::bit_cast<double>(kInfinity | 1ull << 51) : value;
  } else if constexpr (kFormat.specials == Specials::fnuz) {
    const bool nan = (code & ((2u << kFormat.bits()) - 1)) == 1u << kFormat.bits();
    return nan ? std::bit_cast<double>(kInfinity | 1ull << 51)
               : (code >> kFormat.bits() & 1 ? -value : value);
  }
  return code >> kFormat.bits() & 1 ? -value : value;
}

/// `value` (not negative) in units of the result's last place, rounded to a whole number.
template <Format kFormat>
constexpr uint64_t round_steps(double value, bool negative, Rounding rounding, uint32_t random) {
  constexpr double kWhole = 0x1p52;  // adding it leaves no bits for a fraction
  if (kFormat.mantissa < 23 && rounding == Rounding::stochastic) {
    // The random number's upper bits are added right below the last place, of 23 kept ones.
    constexpr int kDropped = 23 - kFormat.mantissa;
    const double shifted = value * static_cast<double>(1u << kDropped);
    const double near = (shifted + kWhole) - kWhole;
    const double floor = near > shifted ? near - 1 : near;
    const uint64_t units =
        std::bit_cast<uint64_t>(floor + kWhole) - std::bit_cast<uint64_t>(kWhole);
    return (units + (random >> (32 - kDropped) % 32)) >> kDropped;
  }
  const double raised = value + kWhole;
  const uint64_t nearest = std::bit_cast<uint64_t>(raised) - std::bit_cast<uint64_t>(kWhole);
  const double whole = raised - kWhole;
  const bool away = rounding == (negative ? Rounding::down : Rounding::up);
  const uint64_t larger = nearest + (whole < value ? 1 : 0);
  const uint64_t smaller = nearest - (whole > value ? 1 : 0);
  return rounding == Rounding::nearest_even ? nearest : (away ? larger : smaller);
}

/// The code of a number that is too large, without its sign.
template <Format kFormat>
constexpr uint32_t overflow_code(bool negative, bool infinite, Rounding rounding, bool saturate) {
  constexpr uint32_t kOnes = (1u << kFormat.bits()) - 1;
  if constexpr (kFormat.specials == Specials::ieee) {
    constexpr uint32_t kInfinity = kOnes & ~((1u << kFormat.mantissa) - 1);
    const bool toward_zero =
        rounding == Rounding::toward_zero || rounding == (negative ? Rounding::up : Rounding::down);
    // 16-bit results keep true infinities when MODE.FP16_OVFL saturates; 8-bit ones do not.
    const bool keep = infinite && kFormat.bits() > 8;
    return (saturate || (toward_zero && !infinite)) && !keep ? kInfinity - 1 : kInfinity;
  } else if constexpr (kFormat.specials == Specials::fn) {
    return saturate ? kOnes - 1 : kOnes;
  } else if constexpr (kFormat.specials == Specials::fnuz) {
    return saturate ? kOnes : kOnes + 1;
  }
  return kOnes;
}

/// The code of the number nearest to `value` in the sense of `rounding`. Overflow gives infinity
/// or NaN, or the largest number if `saturate`. Formats without NaN take NaN as their largest.
template <Format kFormat>
constexpr uint32_t encode(double value, Rounding rounding = Rounding::nearest_even,
                          bool saturate = false, uint32_t random = 0) {
  constexpr int kLowest = 1 - kFormat.bias;  // exponent of the smallest normal number
  constexpr uint32_t kOnes = (1u << kFormat.bits()) - 1, kSign = 1u << kFormat.bits();
  constexpr uint64_t kInfinity = uint64_t{0x7ff} << 52;
  const uint64_t bits = std::bit_cast<uint64_t>(value);
  const bool negative = bits >> 63 != 0;
  const uint64_t magnitude = bits & ~uint64_t{0} >> 1;
  const int64_t exponent = std::max(static_cast<int64_t>(magnitude >> 52) - 1023, int64_t{kLowest});
  const double unit =
      std::bit_cast<double>(static_cast<uint64_t>(1023 + kFormat.mantissa - exponent) << 52);
  const double scaled = std::bit_cast<double>(magnitude) * unit;
  // Steps carry into the exponent by themselves: the implicit one counts as one more of it.
  const uint64_t code = (static_cast<uint64_t>(exponent - kLowest) << kFormat.mantissa) +
                        round_steps<kFormat>(scaled, negative, rounding, random);
  constexpr uint64_t kLargest = kFormat.specials == Specials::ieee
                                    ? (kOnes & ~((1u << kFormat.mantissa) - 1)) - 1
                                : kFormat.specials == Specials::fn ? kOnes - 1
                                                                   : kOnes;
  const bool infinite = magnitude == kInfinity;
  const bool over = code > kLargest || infinite;
  uint32_t result = over ? overflow_code<kFormat>(negative, infinite, rounding, saturate)
                         : static_cast<uint32_t>(code);
  uint32_t nan = kOnes;
  if constexpr (kFormat.specials == Specials::ieee) {  // quiet, the payload's upper bits stay
    nan = (kOnes & ~((1u << kFormat.mantissa) - 1)) | 1u << (kFormat.mantissa - 1) |
          static_cast<uint32_t>(magnitude >> (52 - kFormat.mantissa) &
                                ((1u << kFormat.mantissa) - 1));
  }
  result = magnitude > kInfinity ? nan : result;
  if constexpr (kFormat.specials == Specials::fnuz) {
    const bool not_a_number = magnitude > kInfinity || result == kSign;
    return not_a_number ? kSign : (result == 0 || !negative ? result : result | kSign);
  }
  return negative ? result | kSign : result;
}

/// value * 2^power, exact for every fp32 value and every E8M0 scale.
constexpr double scale_by(double value, int power) {
  return value * std::bit_cast<double>(static_cast<uint64_t>(1023 + power) << 52);
}

/// Saturating conversions to integers: toward zero, NaN becomes 0.
template <class Integer>
constexpr Integer to_integer(double value, double lowest, double highest) {
  const double bounded = value < lowest ? lowest : (value > highest ? highest : value);
  return value == value ? static_cast<Integer>(bounded) : Integer{0};
}

/// v_prng_b32: one step of the shift register that stochastic rounding draws from.
constexpr uint32_t next_random(uint32_t value) { return value << 1 ^ (value >> 31 ? 197u : 0u); }

}  // namespace hipdecode::sim
