// SPDX-License-Identifier: MIT
// Loads and stores of global, flat, private and buffer memory, and loads that go to LDS directly.
// Atomics: opcodes_atomic.cpp.
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../check/counts.h"
#include "../state/addresses.h"
#include "../state/lds.h"
#include "atomics.h"
#include "opcodes.h"

namespace hipdecode::sim {
namespace {

/// How less than a dword fills its register.
enum class Part : uint8_t { zero_extended, sign_extended, low_half, high_half };

template <class T>
T load_as(uint64_t address) {
  T value;
  std::memcpy(&value, reinterpret_cast<const void*>(address), sizeof(T));
  return value;
}

template <Space kSpace, int kDwords>
void load(Context& context, const Instruction& instruction) {
  constexpr uint32_t kBytes = 4 * kDwords;
  const Addresses from = addresses_of<kSpace>(context, instruction, kBytes, Verb::reads);
  const Operand& destination = instruction.destination[0];
  Lanes* to = &register_of(context.wave, destination, 0);
  for (uint64_t left = from.lanes; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    const auto l = static_cast<size_t>(lane);
    std::array<uint32_t, kDwords> value{};
    const uint32_t bytes = from.partial ? from.room[l] & ~3u : kBytes;
    if (bytes == kBytes) [[likely]] {
      std::memcpy(value.data(), reinterpret_cast<const void*>(from.at[l]), kBytes);
    } else {
      std::memcpy(value.data(), reinterpret_cast<const void*>(from.at[l]), bytes);
    }
    for (int i = 0; i < kDwords; ++i) to[i][lane] = value[static_cast<size_t>(i)];
  }
  for (int i = 0; i < kDwords; ++i) mark_written(context.wave, destination, i, from.lanes);
}

uint32_t merge(uint32_t old, uint32_t value, Part part) {
  if (part == Part::low_half) return (old & 0xffff0000) | (value & 0xffff);
  if (part == Part::high_half) return (old & 0xffff) | value << 16;
  return value;
}

/// kSigned: of the element in memory; kPart: what it becomes.
template <Space kSpace, class T, Part kPart>
void load_part(Context& context, const Instruction& instruction) {
  const Addresses from = addresses_of<kSpace>(context, instruction, sizeof(T), Verb::reads);
  const Operand& destination = instruction.destination[0];
  Lanes& to = register_of(context.wave, destination, 0);
  for (uint64_t left = from.lanes; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    const auto l = static_cast<size_t>(lane);
    const bool outside = from.partial && from.room[l] < sizeof(T);
    const auto value = static_cast<uint32_t>(outside ? 0 : int32_t{load_as<T>(from.at[l])});
    to[lane] = merge(to[lane], value, kPart);
  }
  mark_written(context.wave, destination, 0, from.lanes);
}

template <Space kSpace, int kDwords>
void store(Context& context, const Instruction& instruction) {
  constexpr uint32_t kBytes = 4 * kDwords;
  const Addresses to = addresses_of<kSpace>(context, instruction, kBytes, Verb::writes);
  const Operand& data = instruction.source[data_operand<kSpace>()];
  const Lanes* from = &register_of(context.wave, data, 0);
  for (uint64_t left = to.lanes; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    const auto l = static_cast<size_t>(lane);
    std::array<uint32_t, kDwords> value;
    for (int i = 0; i < kDwords; ++i) value[static_cast<size_t>(i)] = from[i][lane];
    const uint32_t bytes = to.partial ? to.room[l] & ~3u : kBytes;
    std::memcpy(reinterpret_cast<void*>(to.at[l]), value.data(), bytes);
  }
}

/// kShift: 16 for the _d16_hi forms.
template <Space kSpace, class T, int kShift>
void store_part(Context& context, const Instruction& instruction) {
  const Addresses to = addresses_of<kSpace>(context, instruction, sizeof(T), Verb::writes);
  const Operand& data = instruction.source[data_operand<kSpace>()];
  const Lanes& from = register_of(context.wave, data, 0);
  for (uint64_t left = to.lanes; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    const auto l = static_cast<size_t>(lane);
    if (to.partial && to.room[l] < sizeof(T)) continue;
    const T value = static_cast<T>(from[lane] >> kShift);
    std::memcpy(reinterpret_cast<void*>(to.at[l]), &value, sizeof(T));
  }
}

/// To LDS at M0 + offset + lane * size, size the dwords of the element (CDNA4 ISA guide 9.1.9).
template <Space kSpace, class T, int kElements>
void load_to_lds(Context& context, const Instruction& instruction) {
  constexpr uint32_t kElement = sizeof(T), kBytes = kElement * kElements;
  constexpr uint32_t kStride = kElement < 4 ? 4 : kBytes;
  const Addresses from = addresses_of<kSpace>(context, instruction, kBytes, Verb::reads);
  Wave& wave = context.wave;
  const uint32_t first = wave.scalar[kM0] + static_cast<uint32_t>(instruction.modifiers.offset);
  std::array<uint32_t, kLanes> to;
  for (uint32_t lane = 0; lane < kLanes; ++lane) to[lane] = first + lane * kStride;
  const uint64_t lanes = context.lds.loading(wave.index, from.lanes, to.data(), kStride);
  for (uint64_t left = lanes; left != 0; left &= left - 1) {
    const auto lane = static_cast<size_t>(std::countr_zero(left));
    std::array<T, kElements> value{};
    const uint32_t bytes = from.partial ? from.room[lane] / kElement * kElement : kBytes;
    std::memcpy(value.data(), reinterpret_cast<const void*>(from.at[lane]), bytes);
    uint8_t* place = context.lds.data() + to[lane];
    if constexpr (sizeof(T) < 4) {
      const auto extended = static_cast<int32_t>(value[0]);
      std::memcpy(place, &extended, sizeof(extended));
    } else {
      std::memcpy(place, value.data(), kBytes);
    }
  }
  context.counts.direct_to_lds_bytes += int64_t{std::popcount(lanes)} * kBytes;
}

/// Memory is coherent here: writing back and invalidating caches orders host threads at most.
void cache_control(Context&, const Instruction&) {
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

/// The names that the ISA guide gives to one space's loads and stores.
struct SpaceNames {
  std::string_view prefix, section;
};

// Mnemonics are made once: the table keeps views of them.
std::string_view keep(std::string_view prefix, std::string_view rest) {
  static std::vector<std::unique_ptr<std::string>> names;
  names.push_back(std::make_unique<std::string>(std::string(prefix) + std::string(rest)));
  return *names.back();
}

template <Space kSpace>
void add_loads(std::vector<Opcode>& table, SpaceNames names) {
  const auto add = [&](std::string_view name, Execute execute) {
    table.push_back({keep(names.prefix, name), Class::vmem, execute, names.section});
  };
  add("load_dword", load<kSpace, 1>);
  add("load_dwordx2", load<kSpace, 2>);
  add("load_dwordx3", load<kSpace, 3>);
  add("load_dwordx4", load<kSpace, 4>);
  add("load_ubyte", load_part<kSpace, uint8_t, Part::zero_extended>);
  add("load_sbyte", load_part<kSpace, int8_t, Part::sign_extended>);
  add("load_ushort", load_part<kSpace, uint16_t, Part::zero_extended>);
  add("load_sshort", load_part<kSpace, int16_t, Part::sign_extended>);
  add("load_ubyte_d16", load_part<kSpace, uint8_t, Part::low_half>);
  add("load_ubyte_d16_hi", load_part<kSpace, uint8_t, Part::high_half>);
  add("load_sbyte_d16", load_part<kSpace, int8_t, Part::low_half>);
  add("load_sbyte_d16_hi", load_part<kSpace, int8_t, Part::high_half>);
  add("load_short_d16", load_part<kSpace, uint16_t, Part::low_half>);
  add("load_short_d16_hi", load_part<kSpace, uint16_t, Part::high_half>);
  add("store_dword", store<kSpace, 1>);
  add("store_dwordx2", store<kSpace, 2>);
  add("store_dwordx3", store<kSpace, 3>);
  add("store_dwordx4", store<kSpace, 4>);
  add("store_byte", store_part<kSpace, uint8_t, 0>);
  add("store_byte_d16_hi", store_part<kSpace, uint8_t, 16>);
  add("store_short", store_part<kSpace, uint16_t, 0>);
  add("store_short_d16_hi", store_part<kSpace, uint16_t, 16>);
}

/// Direct-to-LDS loads: the size stands last in global and scratch names; the decoder gives the
/// buffer loads that have the `lds` modifier the ending _lds.
template <Space kSpace>
void add_loads_to_lds(std::vector<Opcode>& table, SpaceNames names, std::string_view before,
                      std::string_view after) {
  const auto add = [&](std::string_view size, Execute execute) {
    const std::string rest = std::string(before) + std::string(size) + std::string(after);
    table.push_back({keep(names.prefix, rest), Class::vmem_to_lds, execute, names.section});
  };
  add("dword", load_to_lds<kSpace, uint32_t, 1>);
  add("dwordx3", load_to_lds<kSpace, uint32_t, 3>);
  add("dwordx4", load_to_lds<kSpace, uint32_t, 4>);
  add("ubyte", load_to_lds<kSpace, uint8_t, 1>);
  add("sbyte", load_to_lds<kSpace, int8_t, 1>);
  add("ushort", load_to_lds<kSpace, uint16_t, 1>);
  add("sshort", load_to_lds<kSpace, int16_t, 1>);
}

std::vector<Opcode> make_table() {
  std::vector<Opcode> table;
  const SpaceNames global = {"global_", "12.14 GLOBAL"}, flat = {"flat_", "12.14 FLAT"},
                   scratch = {"scratch_", "12.14 SCRATCH"}, buffer = {"buffer_", "12.13 MUBUF"};
  add_loads<Space::global>(table, global);
  add_loads<Space::flat>(table, flat);
  add_loads<Space::scratch>(table, scratch);
  add_loads<Space::buffer>(table, buffer);
  add_loads_to_lds<Space::global>(table, global, "load_lds_", "");
  add_loads_to_lds<Space::buffer>(table, buffer, "load_", "_lds");
  for (std::string_view name : {"buffer_wbl2", "buffer_inv"}) {
    table.push_back({name, Class::vmem, cache_control, "12.13 MUBUF"});
  }
  add_atomics<Space::global>(table, "global_", global.section, keep);
  add_atomics<Space::flat>(table, "flat_", flat.section, keep);
  add_atomics<Space::buffer>(table, "buffer_", buffer.section, keep);
  return table;
}

}  // namespace

std::span<const Opcode> memory_opcodes() {
  static const std::vector<Opcode> table = make_table();
  return table;
}

}  // namespace hipdecode::sim
