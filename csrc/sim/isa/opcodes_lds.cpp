// SPDX-License-Identifier: MIT
// DS instructions: reads, writes and atomics of LDS, transposing reads, and lane exchanges.
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../check/counts.h"
#include "../state/lds.h"
#include "../state/lds_banks.h"
#include "atomics.h"
#include "lds_transpose.h"
#include "opcodes.h"

namespace hipdecode::sim {
namespace {

using Offsets = std::array<uint32_t, kLanes>;

constexpr std::string_view kSection = "12.12 DS", kTransposeSection = "11.4 LDS transpose";

Offsets offsets_of(Context& context, const Instruction& instruction, uint32_t offset) {
  const Lanes& address = register_of(context.wave, instruction.source[0], 0);
  Offsets result;
  for (int lane = 0; lane < kLanes; ++lane) {
    result[static_cast<size_t>(lane)] = address[lane] + offset;
  }
  return result;
}

uint32_t offset_of(const Instruction& instruction) {
  return static_cast<uint32_t>(instruction.modifiers.offset);
}

/// Of ds_read2 and ds_write2, whose offsets count steps of kStep bytes.
template <int kStep>
std::array<Offsets, 2> two_offsets(Context& context, const Instruction& instruction) {
  const auto of = [&](int steps) {
    return offsets_of(context, instruction, static_cast<uint32_t>(steps * kStep));
  };
  return {of(instruction.modifiers.offset0), of(instruction.modifiers.offset1)};
}

uint64_t begin_read(Context& context, const Offsets& at, uint32_t bytes) {
  const Wave& wave = context.wave;
  const uint64_t lanes = context.lds.reading(wave.index, wave.exec, at.data(), bytes);
  context.counts.lds_bytes_read += int64_t{std::popcount(lanes)} * bytes;
  count_banks(context.counts, context.lds, false, lanes, at.data(), bytes);
  return lanes;
}

uint64_t begin_write(Context& context, const Offsets& at, uint32_t bytes) {
  const Wave& wave = context.wave;
  const uint64_t lanes = context.lds.writing(wave.index, wave.exec, at.data(), bytes);
  context.counts.lds_bytes_written += int64_t{std::popcount(lanes)} * bytes;
  count_banks(context.counts, context.lds, true, lanes, at.data(), bytes);
  return lanes;
}

/// Each lane's `kDwords`, zero where the address is outside, into consecutive registers.
template <int kDwords>
void fetch(Context& context, const Offsets& at, Lanes* to) {
  const uint64_t lanes = begin_read(context, at, 4 * kDwords);
  const uint8_t* from = context.lds.data();
  for (uint64_t left = context.wave.exec; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    std::array<uint32_t, kDwords> value{};
    if (lanes >> lane & 1) {
      std::memcpy(value.data(), from + at[static_cast<size_t>(lane)], sizeof(value));
    }
    for (int i = 0; i < kDwords; ++i) to[i][lane] = value[static_cast<size_t>(i)];
  }
}

void mark_result(Context& context, const Instruction& instruction, int dwords) {
  for (int i = 0; i < dwords; ++i) {
    mark_written(context.wave, instruction.destination[0], i, context.wave.exec);
  }
}

template <int kDwords>
void read_dwords(Context& context, const Instruction& instruction) {
  const Offsets at = offsets_of(context, instruction, offset_of(instruction));
  fetch<kDwords>(context, at, &register_of(context.wave, instruction.destination[0], 0));
  mark_result(context, instruction, kDwords);
}

/// ds_read2: two elements of kDwords; kUnit: elements that one step of an offset means.
template <int kDwords, int kUnit>
void read_two(Context& context, const Instruction& instruction) {
  const auto [first, second] = two_offsets<4 * kDwords * kUnit>(context, instruction);
  Lanes* to = &register_of(context.wave, instruction.destination[0], 0);
  fetch<kDwords>(context, first, to);
  fetch<kDwords>(context, second, to + kDwords);
  mark_result(context, instruction, 2 * kDwords);
}

enum class Half : uint8_t { none, low, high };

template <class T, Half kHalf>
void read_part(Context& context, const Instruction& instruction) {
  const Offsets at = offsets_of(context, instruction, offset_of(instruction));
  const uint64_t lanes = begin_read(context, at, sizeof(T));
  Lanes& to = register_of(context.wave, instruction.destination[0], 0);
  for (uint64_t left = context.wave.exec; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    T element{};
    if (lanes >> lane & 1) {
      std::memcpy(&element, context.lds.data() + at[static_cast<size_t>(lane)], sizeof(T));
    }
    const auto value = static_cast<uint32_t>(int32_t{element});
    if constexpr (kHalf == Half::low) {
      to[lane] = (to[lane] & 0xffff0000) | (value & 0xffff);
    } else if constexpr (kHalf == Half::high) {
      to[lane] = (to[lane] & 0xffff) | value << 16;
    } else {
      to[lane] = value;
    }
  }
  mark_result(context, instruction, 1);
}

void put(Context& context, const Offsets& at, const Lanes* from, int dwords) {
  const uint64_t lanes = begin_write(context, at, static_cast<uint32_t>(4 * dwords));
  for (uint64_t left = lanes; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    uint8_t* place = context.lds.data() + at[static_cast<size_t>(lane)];
    for (int i = 0; i < dwords; ++i)
      std::memcpy(place + 4 * i, &from[i].at[static_cast<size_t>(lane)], 4);
  }
}

template <int kDwords>
void write_dwords(Context& context, const Instruction& instruction) {
  const Offsets at = offsets_of(context, instruction, offset_of(instruction));
  put(context, at, &register_of(context.wave, instruction.source[1], 0), kDwords);
}

template <int kDwords, int kUnit>
void write_two(Context& context, const Instruction& instruction) {
  const auto [first, second] = two_offsets<4 * kDwords * kUnit>(context, instruction);
  put(context, first, &register_of(context.wave, instruction.source[1], 0), kDwords);
  put(context, second, &register_of(context.wave, instruction.source[2], 0), kDwords);
}

template <class T, int kShift>
void write_part(Context& context, const Instruction& instruction) {
  const Offsets at = offsets_of(context, instruction, offset_of(instruction));
  const Lanes& from = register_of(context.wave, instruction.source[1], 0);
  const uint64_t lanes = begin_write(context, at, sizeof(T));
  for (uint64_t left = lanes; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    const T value = static_cast<T>(from[lane] >> kShift);
    std::memcpy(context.lds.data() + at[static_cast<size_t>(lane)], &value, sizeof(T));
  }
}

/// void Operation: compare and swap. Its data are the expected value and then the new one, the
/// other way round than in global memory.
template <class Operation, class T>
void lds_atomic(Context& context, const Instruction& instruction) {
  constexpr int kDwords = sizeof(T) / 4;
  const Offsets at = offsets_of(context, instruction, offset_of(instruction));
  Wave& wave = context.wave;
  const uint64_t lanes = context.lds.updating(wave.index, wave.exec, at.data(), sizeof(T));
  const int64_t bytes = int64_t{std::popcount(lanes)} * static_cast<int64_t>(sizeof(T));
  context.counts.lds_bytes_read += bytes;
  context.counts.lds_bytes_written += bytes;
  count_banks(context.counts, context.lds, true, lanes, at.data(), sizeof(T));
  const Lanes* data = &register_of(wave, instruction.source[1], 0);
  const Operand& destination = instruction.destination[0];
  const bool returns = destination.where != Where::none;
  Lanes* result = returns ? &register_of(wave, destination, 0) : nullptr;
  for (uint64_t left = lanes; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    void* place = context.lds.data() + at[static_cast<size_t>(lane)];
    BitsOf<T> old;
    if constexpr (std::is_void_v<Operation>) {
      const Lanes* value = &register_of(wave, instruction.source[2], 0);
      old = compare_and_swap<T>(place, bits_of<T>(value, lane), bits_of<T>(data, lane));
    } else {
      old = update<Operation, T>(place, bits_of<T>(data, lane));
    }
    if (returns) set_bits<T>(result, lane, old);
  }
  if (returns) mark_result(context, instruction, kDwords);
}

template <int kDwords, void (*kTranspose)(const Lanes*, int, Lanes*)>
void read_transposed(Context& context, const Instruction& instruction) {
  const Offsets at = offsets_of(context, instruction, offset_of(instruction));
  std::array<Lanes, kDwords> from{}, result;
  fetch<kDwords>(context, at, from.data());
  for (int block = 0; block < kLanes; block += kTransposeLanes) {
    kTranspose(from.data(), block, result.data());
  }
  Wave& wave = context.wave;
  Lanes* to = &register_of(wave, instruction.destination[0], 0);
  for (int i = 0; i < kDwords; ++i) {
    const Lanes& column = result[static_cast<size_t>(i)];
    for (int lane = 0; lane < kLanes; ++lane) {
      to[i][lane] = wave.active(lane) ? column[lane] : to[i][lane];
    }
  }
  mark_result(context, instruction, kDwords);
}

/// Lane l receives what lane source(l) holds; zero where that one is disabled.
template <class Source>
void pull(Context& context, const Instruction& instruction, const Lanes& from, Source source) {
  Wave& wave = context.wave;
  Lanes result;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int other = source(lane);
    result[lane] = wave.active(other) ? from[other] : 0;
  }
  Lanes& to = register_of(wave, instruction.destination[0], 0);
  for (int lane = 0; lane < kLanes; ++lane) to[lane] = wave.active(lane) ? result[lane] : to[lane];
  mark_result(context, instruction, 1);
}

void ds_bpermute_b32(Context& context, const Instruction& instruction) {
  const Offsets at = offsets_of(context, instruction, offset_of(instruction));
  pull(context, instruction, register_of(context.wave, instruction.source[1], 0),
       [&](int lane) { return static_cast<int>(at[static_cast<size_t>(lane)] / 4 % kLanes); });
}

void ds_permute_b32(Context& context, const Instruction& instruction) {
  const Offsets at = offsets_of(context, instruction, offset_of(instruction));
  Wave& wave = context.wave;
  const Lanes& from = register_of(wave, instruction.source[1], 0);
  Lanes result{};
  for (int lane = 0; lane < kLanes; ++lane) {  // the highest lane wins
    if (!wave.active(lane)) continue;
    result[static_cast<int>(at[static_cast<size_t>(lane)] / 4 % kLanes)] = from[lane];
  }
  Lanes& to = register_of(wave, instruction.destination[0], 0);
  for (int lane = 0; lane < kLanes; ++lane) to[lane] = wave.active(lane) ? result[lane] : to[lane];
  mark_result(context, instruction, 1);
}

void ds_swizzle_b32(Context& context, const Instruction& instruction) {
  const auto control = static_cast<int>(offset_of(instruction) & 0xffff);
  const Lanes& from = register_of(context.wave, instruction.source[0], 0);
  if (control >= 0xc000) {
    throw Fault("ds_swizzle_b32: expected quad or bit-mask mode, got control " +
                std::to_string(control) + "; rotation and FFT modes are not modelled");
  }
  if (control >= 0x8000) {
    pull(context, instruction, from,
         [&](int lane) { return (lane & ~3) + (control >> lane % 4 * 2 & 3); });
    return;
  }
  const int keep = control & 31, set = control >> 5 & 31, flip = control >> 10 & 31;
  pull(context, instruction, from,
       [&](int lane) { return (lane & 32) + (((lane & keep) | set) ^ flip); });
}

void ds_nop(Context&, const Instruction&) {}

std::string_view kept(std::string name) {
  static std::vector<std::unique_ptr<std::string>> names;
  names.push_back(std::make_unique<std::string>(std::move(name)));
  return *names.back();
}

/// ds_<verb>_<type> and ds_<verb>_rtn_<type>.
void add_atomic(std::vector<Opcode>& table, const std::string& verb, const std::string& type,
                Execute execute) {
  table.push_back({kept("ds_" + verb + "_" + type), Class::atomic, execute, kSection});
  table.push_back({kept("ds_" + verb + "_rtn_" + type), Class::atomic, execute, kSection});
}

template <class Unsigned, class Signed, class Float>
void add_atomics_of(std::vector<Opcode>& table, const std::string& bits) {
  using namespace atomic;
  add_atomic(table, "add", "u" + bits, lds_atomic<Add, Unsigned>);
  add_atomic(table, "sub", "u" + bits, lds_atomic<Subtract, Unsigned>);
  add_atomic(table, "rsub", "u" + bits, lds_atomic<ReverseSubtract, Unsigned>);
  add_atomic(table, "inc", "u" + bits, lds_atomic<Increment, Unsigned>);
  add_atomic(table, "dec", "u" + bits, lds_atomic<Decrement, Unsigned>);
  add_atomic(table, "min", "u" + bits, lds_atomic<Minimum, Unsigned>);
  add_atomic(table, "max", "u" + bits, lds_atomic<Maximum, Unsigned>);
  add_atomic(table, "min", "i" + bits, lds_atomic<Minimum, Signed>);
  add_atomic(table, "max", "i" + bits, lds_atomic<Maximum, Signed>);
  add_atomic(table, "and", "b" + bits, lds_atomic<And, Unsigned>);
  add_atomic(table, "or", "b" + bits, lds_atomic<Or, Unsigned>);
  add_atomic(table, "xor", "b" + bits, lds_atomic<Xor, Unsigned>);
  add_atomic(table, "cmpst", "b" + bits, lds_atomic<void, Unsigned>);
  add_atomic(table, "wrxchg", "b" + bits, lds_atomic<Swap, Unsigned>);
  add_atomic(table, "add", "f" + bits, lds_atomic<Add, Float>);
  add_atomic(table, "min", "f" + bits, lds_atomic<Minimum, Float>);
  add_atomic(table, "max", "f" + bits, lds_atomic<Maximum, Float>);
}

std::vector<Opcode> make_table() {
  std::vector<Opcode> table = {
      {"ds_read_b32", Class::lds, read_dwords<1>, kSection},
      {"ds_read_b64", Class::lds, read_dwords<2>, kSection},
      {"ds_read_b96", Class::lds, read_dwords<3>, kSection},
      {"ds_read_b128", Class::lds, read_dwords<4>, kSection},
      {"ds_read2_b32", Class::lds, read_two<1, 1>, kSection},
      {"ds_read2_b64", Class::lds, read_two<2, 1>, kSection},
      {"ds_read2st64_b32", Class::lds, read_two<1, 64>, kSection},
      {"ds_read2st64_b64", Class::lds, read_two<2, 64>, kSection},
      {"ds_read_u8", Class::lds, read_part<uint8_t, Half::none>, kSection},
      {"ds_read_i8", Class::lds, read_part<int8_t, Half::none>, kSection},
      {"ds_read_u16", Class::lds, read_part<uint16_t, Half::none>, kSection},
      {"ds_read_i16", Class::lds, read_part<int16_t, Half::none>, kSection},
      {"ds_read_u8_d16", Class::lds, read_part<uint8_t, Half::low>, kSection},
      {"ds_read_u8_d16_hi", Class::lds, read_part<uint8_t, Half::high>, kSection},
      {"ds_read_i8_d16", Class::lds, read_part<int8_t, Half::low>, kSection},
      {"ds_read_i8_d16_hi", Class::lds, read_part<int8_t, Half::high>, kSection},
      {"ds_read_u16_d16", Class::lds, read_part<uint16_t, Half::low>, kSection},
      {"ds_read_u16_d16_hi", Class::lds, read_part<uint16_t, Half::high>, kSection},
      {"ds_write_b32", Class::lds, write_dwords<1>, kSection},
      {"ds_write_b64", Class::lds, write_dwords<2>, kSection},
      {"ds_write_b96", Class::lds, write_dwords<3>, kSection},
      {"ds_write_b128", Class::lds, write_dwords<4>, kSection},
      {"ds_write2_b32", Class::lds, write_two<1, 1>, kSection},
      {"ds_write2_b64", Class::lds, write_two<2, 1>, kSection},
      {"ds_write2st64_b32", Class::lds, write_two<1, 64>, kSection},
      {"ds_write2st64_b64", Class::lds, write_two<2, 64>, kSection},
      {"ds_write_b8", Class::lds, write_part<uint8_t, 0>, kSection},
      {"ds_write_b8_d16_hi", Class::lds, write_part<uint8_t, 16>, kSection},
      {"ds_write_b16", Class::lds, write_part<uint16_t, 0>, kSection},
      {"ds_write_b16_d16_hi", Class::lds, write_part<uint16_t, 16>, kSection},
      {"ds_read_b64_tr_b16", Class::lds_transpose, read_transposed<2, transpose<uint16_t>>,
       kTransposeSection},
      {"ds_read_b64_tr_b8", Class::lds_transpose, read_transposed<2, transpose<uint8_t>>,
       kTransposeSection},
      {"ds_read_b64_tr_b4", Class::lds_transpose, read_transposed<2, transpose_bits<4, 2>>,
       kTransposeSection},
      {"ds_read_b96_tr_b6", Class::lds_transpose, read_transposed<3, transpose_bits<6, 3>>,
       kTransposeSection},
      {"ds_bpermute_b32", Class::lds, ds_bpermute_b32, kSection},
      {"ds_permute_b32", Class::lds, ds_permute_b32, kSection},
      {"ds_swizzle_b32", Class::lds, ds_swizzle_b32, kSection},
      {"ds_nop", Class::lds, ds_nop, kSection},
  };
  add_atomics_of<uint32_t, int32_t, float>(table, "32");
  add_atomics_of<uint64_t, int64_t, double>(table, "64");
  add_atomic(table, "pk_add", "f16", lds_atomic<atomic::AddPair<kHalf>, uint32_t>);
  add_atomic(table, "pk_add", "bf16", lds_atomic<atomic::AddPair<kBfloat>, uint32_t>);
  return table;
}

}  // namespace

std::span<const Opcode> lds_opcodes() {
  static const std::vector<Opcode> table = make_table();
  return table;
}

}  // namespace hipdecode::sim
