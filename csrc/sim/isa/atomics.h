// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../state/addresses.h"
#include "conversions.h"
#include "opcodes.h"

namespace hipdecode::sim {

// What an atomic leaves in memory: memory's old value, the operand, and (cmpswap) what the old
// value is compared with.
namespace atomic {

struct Swap {
  template <class T>
  static T next(T, T operand) {
    return operand;
  }
};
struct Add {
  template <class T>
  static T next(T old, T operand) {
    return static_cast<T>(old + operand);
  }
};
struct Subtract {
  template <class T>
  static T next(T old, T operand) {
    return old - operand;
  }
};
struct ReverseSubtract {
  template <class T>
  static T next(T old, T operand) {
    return operand - old;
  }
};
struct And {
  template <class T>
  static T next(T old, T operand) {
    return old & operand;
  }
};
struct Or {
  template <class T>
  static T next(T old, T operand) {
    return old | operand;
  }
};
struct Xor {
  template <class T>
  static T next(T old, T operand) {
    return old ^ operand;
  }
};
struct Minimum {
  template <class T>
  static T next(T old, T operand) {
    return operand < old ? operand : old;
  }
};
struct Maximum {
  template <class T>
  static T next(T old, T operand) {
    return operand > old ? operand : old;
  }
};
struct Increment {  // wraps to 0 past the operand
  template <class T>
  static T next(T old, T operand) {
    return old >= operand ? T{0} : static_cast<T>(old + 1);
  }
};
struct Decrement {  // wraps to the operand below 0 and above the operand
  template <class T>
  static T next(T old, T operand) {
    return old == 0 || old > operand ? operand : static_cast<T>(old - 1);
  }
};
/// Two 16-bit floating-point sums.
template <Format kFormat>
struct AddPair {
  static uint32_t next(uint32_t old, uint32_t operand) {
    const auto sum = [](uint32_t a, uint32_t b) {
      return encode<kFormat>(decode<kFormat>(a & 0xffff) + decode<kFormat>(b & 0xffff));
    };
    return sum(old, operand) | sum(old >> 16, operand >> 16) << 16;
  }
};

}  // namespace atomic

template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

/// Applies one operation atomically among host threads, as workgroups run on several; returns
/// what was there before.
template <class Operation, class T>
BitsOf<T> update(void* place, BitsOf<T> operand) {
  std::atomic_ref<BitsOf<T>> memory(*static_cast<BitsOf<T>*>(place));
  BitsOf<T> old = memory.load();
  while (
      !memory.compare_exchange_weak(old, std::bit_cast<BitsOf<T>>(Operation::next(
                                             std::bit_cast<T>(old), std::bit_cast<T>(operand))))) {
  }
  return old;
}

template <class T>
BitsOf<T> compare_and_swap(void* place, BitsOf<T> value, BitsOf<T> expected) {
  std::atomic_ref<BitsOf<T>> memory(*static_cast<BitsOf<T>*>(place));
  memory.compare_exchange_strong(expected, value);
  return expected;
}

/// A lane's 32 or 64 bits of consecutive registers.
template <class T>
BitsOf<T> bits_of(const Lanes* registers, int lane) {
  if constexpr (sizeof(T) == 4) {
    return registers[0][lane];
  } else {
    return uint64_t{registers[1][lane]} << 32 | registers[0][lane];
  }
}
template <class T>
void set_bits(Lanes* registers, int lane, BitsOf<T> value) {
  registers[0][lane] = static_cast<uint32_t>(value);
  if constexpr (sizeof(T) == 8) registers[1][lane] = static_cast<uint32_t>(value >> 32);
}

/// void Operation: compare and swap, whose data are the new value and then the expected one.
template <Space kSpace, class Operation, class T>
void memory_atomic(Context& context, const Instruction& instruction) {
  constexpr uint32_t kBytes = sizeof(T);
  const Addresses to = addresses_of<kSpace>(context, instruction, kBytes, Verb::updates);
  Wave& wave = context.wave;
  const Lanes* data = &register_of(wave, instruction.source[data_operand<kSpace>()], 0);
  const Operand& destination = instruction.destination[0];
  const bool returns = destination.where != Where::none;
  Lanes* result = returns ? &register_of(wave, destination, 0) : nullptr;
  for (uint64_t left = to.lanes; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    const auto l = static_cast<size_t>(lane);
    BitsOf<T> old = 0;
    if (!to.partial || to.room[l] >= kBytes) {
      void* place = reinterpret_cast<void*>(to.at[l]);
      const BitsOf<T> value = bits_of<T>(data, lane);
      if constexpr (std::is_void_v<Operation>) {
        old = compare_and_swap<T>(place, value, bits_of<T>(data + kBytes / 4, lane));
      } else {
        old = update<Operation, T>(place, value);
      }
    }
    if (returns) set_bits<T>(result, lane, old);
  }
  if (!returns) return;
  for (int i = 0; i < static_cast<int>(kBytes / 4); ++i) {
    mark_written(wave, destination, i, to.lanes);
  }
}

using KeepName = std::string_view (*)(std::string_view prefix, std::string_view rest);

template <Space kSpace>
void add_atomics(std::vector<Opcode>& table, std::string_view prefix, std::string_view section,
                 KeepName keep) {
  using namespace atomic;
  const auto add = [&](std::string_view name, Execute execute) {
    table.push_back({keep(prefix, name), Class::atomic, execute, section});
  };
  const auto both = [&](std::string_view name, Execute narrow, Execute wide) {
    add(name, narrow);
    add(std::string(name) + "_x2", wide);
  };
  both("atomic_swap", memory_atomic<kSpace, Swap, uint32_t>, memory_atomic<kSpace, Swap, uint64_t>);
  both("atomic_cmpswap", memory_atomic<kSpace, void, uint32_t>,
       memory_atomic<kSpace, void, uint64_t>);
  both("atomic_add", memory_atomic<kSpace, Add, uint32_t>, memory_atomic<kSpace, Add, uint64_t>);
  both("atomic_sub", memory_atomic<kSpace, Subtract, uint32_t>,
       memory_atomic<kSpace, Subtract, uint64_t>);
  both("atomic_smin", memory_atomic<kSpace, Minimum, int32_t>,
       memory_atomic<kSpace, Minimum, int64_t>);
  both("atomic_umin", memory_atomic<kSpace, Minimum, uint32_t>,
       memory_atomic<kSpace, Minimum, uint64_t>);
  both("atomic_smax", memory_atomic<kSpace, Maximum, int32_t>,
       memory_atomic<kSpace, Maximum, int64_t>);
  both("atomic_umax", memory_atomic<kSpace, Maximum, uint32_t>,
       memory_atomic<kSpace, Maximum, uint64_t>);
  both("atomic_and", memory_atomic<kSpace, And, uint32_t>, memory_atomic<kSpace, And, uint64_t>);
  both("atomic_or", memory_atomic<kSpace, Or, uint32_t>, memory_atomic<kSpace, Or, uint64_t>);
  both("atomic_xor", memory_atomic<kSpace, Xor, uint32_t>, memory_atomic<kSpace, Xor, uint64_t>);
  both("atomic_inc", memory_atomic<kSpace, Increment, uint32_t>,
       memory_atomic<kSpace, Increment, uint64_t>);
  both("atomic_dec", memory_atomic<kSpace, Decrement, uint32_t>,
       memory_atomic<kSpace, Decrement, uint64_t>);
  add("atomic_add_f32", memory_atomic<kSpace, Add, float>);
  add("atomic_add_f64", memory_atomic<kSpace, Add, double>);
  add("atomic_min_f64", memory_atomic<kSpace, Minimum, double>);
  add("atomic_max_f64", memory_atomic<kSpace, Maximum, double>);
  add("atomic_pk_add_f16", memory_atomic<kSpace, AddPair<kHalf>, uint32_t>);
  add("atomic_pk_add_bf16", memory_atomic<kSpace, AddPair<kBfloat>, uint32_t>);
}

}  // namespace hipdecode::sim
