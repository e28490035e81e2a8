// SPDX-License-Identifier: MIT
// All v_cmp and v_cmpx. A predicate's number in the ISA guide is a set of outcomes: bit 0 less,
// bit 1 equal, bit 2 greater, bit 3 unordered. So one template makes every row.
#include <array>
#include <deque>
#include <string>
#include <vector>

#include "vector.h"

namespace hipdecode::sim {
namespace {

constexpr std::string_view kFloatNames[] = {"f", "lt",  "eq",  "le",  "gt",  "lg",  "ge",  "o",
                                            "u", "nge", "nlg", "ngt", "nle", "neq", "nlt", "tru"};
constexpr std::string_view kIntegerNames[] = {"f", "lt", "eq", "le", "gt", "ne", "ge", "t"};

/// v_cmpx writes EXEC too.
void write_result(Context& c, const Instruction& i, const Lanes& flags, bool exec) {
  const uint64_t lanes = gather_bits(flags) & c.wave.exec;
  write_mask(c, i.destination[0], lanes);
  if (exec) c.wave.exec = lanes;
}

/// What is compared: how to read 64 values of it, and how to make numbers of them.
template <class Number>
struct Kind {
  using Values = std::conditional_t<sizeof(Number) == 8, WideLanes, Lanes>;
  static void get(Context& c, const Instruction& i, int source, Values& values) {
    if constexpr (std::is_same_v<Number, double>) {
      read_double(c, i, source, values);
    } else if constexpr (sizeof(Number) == 8) {
      read_wide(c, i, source, values);
    } else if constexpr (sizeof(Number) == 2) {
      read_short(c, i, source, values);
    } else {
      Lanes scratch;
      values = std::is_same_v<Number, float> ? read_float(c, i, source, scratch)
                                             : read(c, i, source, scratch);
    }
  }
  template <class Bits>
  static Number number(Bits bits) {
    if constexpr (std::is_floating_point_v<Number>)
      return std::bit_cast<Number>(bits);
    else
      return static_cast<Number>(bits);
  }
};

/// fp16 numbers are compared as fp32 ones.
struct HalfNumber {};
template <>
struct Kind<HalfNumber> {
  using Values = Lanes;
  static void get(Context& c, const Instruction& i, int source, Values& values) {
    read_half(c, i, source, values);
  }
  static float number(uint32_t bits) { return static_cast<float>(decode<kHalf>(bits)); }
};

template <class Number>
constexpr FloatMode::Width kWidth =
    std::is_same_v<Number, float> ? FloatMode::single : FloatMode::wide;

template <class Number, unsigned kPredicate, bool kExec>
void compare(Context& c, const Instruction& i) {
  typename Kind<Number>::Values a, b;
  Kind<Number>::get(c, i, 0, a);
  Kind<Number>::get(c, i, 1, b);
  Lanes flags;
  {
    const FloatMode mode(c.wave.mode, kWidth<Number>);
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto x = Kind<Number>::number(a[lane]), y = Kind<Number>::number(b[lane]);
      uint32_t flag = (kPredicate & 1) != 0 && x < y ? 1 : 0;
      flag |= (kPredicate & 2) != 0 && x == y ? 1u : 0u;
      flag |= (kPredicate & 4) != 0 && x > y ? 1u : 0u;
      flag |= (kPredicate & 8) != 0 && (x != x || y != y) ? 1u : 0u;
      flags[lane] = flag;
    }
  }
  write_result(c, i, flags, kExec);
}

/// Bit of the class mask: 0 signalling NaN, 1 quiet NaN, then from -infinity to +infinity.
template <class Values>
void classify(Context& c, const Instruction& i, const Values& values, int mantissa, int exponent,
              bool exec) {
  Lanes scratch, flags;
  const Lanes& masks = read(c, i, 1, scratch);
  const uint64_t top = (uint64_t{1} << exponent) - 1;
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint64_t bits = values[lane];
    const uint64_t fraction = bits & ((uint64_t{1} << mantissa) - 1);
    const uint64_t power = bits >> mantissa & top;
    const bool negative = bits >> (mantissa + exponent) & 1;
    const uint32_t magnitude = power == top ? 3 : (power > 0 ? 2 : (fraction > 0 ? 1 : 0));
    const uint32_t number = negative ? 5 - magnitude : 6 + magnitude;
    const uint32_t nan = fraction >> (mantissa - 1) & 1 ? 1 : 0;
    flags[lane] = masks[lane] >> (power == top && fraction != 0 ? nan : number) & 1;
  }
  write_result(c, i, flags, exec);
}

template <class Number, bool kExec>
void compare_class(Context& c, const Instruction& i) {
  typename Kind<Number>::Values values;
  Kind<Number>::get(c, i, 0, values);
  if constexpr (std::is_same_v<Number, HalfNumber>)
    classify(c, i, values, 10, 5, kExec);
  else if constexpr (sizeof(Number) == 4)
    classify(c, i, values, 23, 8, kExec);
  else
    classify(c, i, values, 52, 11, kExec);
}

/// Rows with names that are put together; the deque keeps them where they are.
class Table {
 public:
  template <class Number, size_t kCount, unsigned... kPredicate>
  void add(std::string_view type, const std::string_view (&names)[kCount],
           std::integer_sequence<unsigned, kPredicate...>) {
    (add_row("v_cmp_", names[kPredicate], type, compare<Number, kPredicate, false>), ...);
    (add_row("v_cmpx_", names[kPredicate], type, compare<Number, kPredicate, true>), ...);
  }
  template <class Number>
  void add_integer(std::string_view type) {
    add<Number>(type, kIntegerNames, std::make_integer_sequence<unsigned, 8>{});
  }
  template <class Number>
  void add_float(std::string_view type) {
    add<Number>(type, kFloatNames, std::make_integer_sequence<unsigned, 16>{});
    add_row("v_cmp_", "class", type, compare_class<Number, false>);
    add_row("v_cmpx_", "class", type, compare_class<Number, true>);
  }
  std::vector<Opcode> rows;

 private:
  void add_row(std::string_view prefix, std::string_view predicate, std::string_view type,
               Execute execute) {
    names_.push_back(std::string(prefix) + std::string(predicate) + "_" + std::string(type));
    rows.push_back({names_.back(), Class::valu, execute, kVopc});
  }
  std::deque<std::string> names_;
};

}  // namespace

std::span<const Opcode> vector_compare_opcodes() {
  static const Table table = [] {
    Table result;
    result.add_float<HalfNumber>("f16");
    result.add_float<float>("f32");
    result.add_float<double>("f64");
    result.add_integer<int16_t>("i16");
    result.add_integer<uint16_t>("u16");
    result.add_integer<int32_t>("i32");
    result.add_integer<uint32_t>("u32");
    result.add_integer<int64_t>("i64");
    result.add_integer<uint64_t>("u64");
    return result;
  }();
  return table.rows;
}

}  // namespace hipdecode::sim
