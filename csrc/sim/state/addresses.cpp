// SPDX-License-Identifier: MIT
#include "addresses.h"

#include <algorithm>
#include <bit>

#include "../check/counts.h"
#include "lds.h"

namespace hipdecode::sim {
namespace {

const char* text_of(Verb verb) {
  switch (verb) {
    case Verb::reads:
      return "reads";
    case Verb::writes:
      return "writes";
    default:
      return "updates";
  }
}

void count(Context& context, uint64_t lanes, uint32_t bytes, Verb verb) {
  const int64_t total = int64_t{std::popcount(lanes)} * bytes;
  if (verb != Verb::writes) context.counts.global_bytes_read += total;
  if (verb != Verb::reads) context.counts.global_bytes_written += total;
}

/// Base and offset of a global or flat address: v[2] alone, or an SGPR pair and a 32-bit VGPR.
void add_base(Context& context, const Instruction& instruction, std::array<uint64_t, kLanes>& at) {
  Wave& wave = context.wave;
  const Operand& vector = instruction.source[0];
  const Operand& scalar = instruction.source[instruction.sources - 1];
  const auto offset = static_cast<uint64_t>(int64_t{instruction.modifiers.offset});
  const Lanes& low = register_of(wave, vector, 0);
  if (scalar.where == Where::scalar) {
    const uint64_t base = read_scalar(context, scalar) + offset;
    for (int lane = 0; lane < kLanes; ++lane) at[static_cast<size_t>(lane)] = base + low[lane];
    return;
  }
  const Lanes& high = register_of(wave, vector, 1);
  for (int lane = 0; lane < kLanes; ++lane) {
    at[static_cast<size_t>(lane)] = (uint64_t{high[lane]} << 32 | low[lane]) + offset;
  }
}

uint64_t scratch_address(const Wave& wave, int lane, uint64_t offset, uint32_t bytes, Verb verb) {
  if (offset + bytes > wave.scratch_stride) {
    throw Fault(std::string("bounds: ") + text_of(verb) + " private byte " +
                std::to_string(offset) + " of " + std::to_string(wave.scratch_stride) + " (lane " +
                std::to_string(lane) + ")");
  }
  return wave.scratch_base + static_cast<uint64_t>(lane) * wave.scratch_stride + offset;
}

uint64_t lds_lanes(Context& context, Addresses& addresses, uint64_t lanes, uint32_t bytes,
                   Verb verb) {
  std::array<uint32_t, kLanes> offsets{};
  for (uint64_t left = lanes; left != 0; left &= left - 1) {
    const auto lane = static_cast<size_t>(std::countr_zero(left));
    offsets[lane] = static_cast<uint32_t>(addresses.at[lane]);
    addresses.at[lane] = reinterpret_cast<uint64_t>(context.lds.data()) + offsets[lane];
  }
  const int wave = context.wave.index;
  switch (verb) {
    case Verb::reads:
      return context.lds.reading(wave, lanes, offsets.data(), bytes);
    case Verb::writes:
      return context.lds.writing(wave, lanes, offsets.data(), bytes);
    default:
      return context.lds.updating(wave, lanes, offsets.data(), bytes);
  }
}

/// The fields of a buffer resource that matter here (CDNA4 ISA guide 9.1.5).
struct Resource {
  uint64_t base;
  uint32_t stride, records;
  bool swizzled, add_lane;
};

Resource resource_of(const Wave& wave, const Operand& operand) {
  const uint32_t* word = wave.scalar.data() + operand.first;
  return {.base = uint64_t{word[1] & 0xffff} << 32 | word[0],
          .stride = word[1] >> 16 & 0x3fff,
          .records = word[2],
          .swizzled = (word[1] >> 31 & 1) != 0,
          .add_lane = (word[3] >> 23 & 1) != 0};
}

int resource_operand(const Instruction& instruction) {
  for (int i = 0; i < instruction.sources; ++i) {
    const Operand& source = instruction.source[i];
    if (source.where == Where::scalar && source.count == 4) return i;
  }
  throw Fault("disassembly: expected a buffer resource of 4 SGPRs, got none");
}

}  // namespace

Addresses global_addresses(Context& context, const Instruction& instruction, uint32_t bytes,
                           Verb verb) {
  Addresses addresses;
  addresses.lanes = context.wave.exec;
  add_base(context, instruction, addresses.at);
  context.memory.check_lanes(addresses.at.data(), addresses.lanes, bytes, text_of(verb));
  count(context, addresses.lanes, bytes, verb);
  return addresses;
}

Addresses flat_addresses(Context& context, const Instruction& instruction, uint32_t bytes,
                         Verb verb) {
  Addresses addresses;
  Wave& wave = context.wave;
  add_base(context, instruction, addresses.at);
  uint64_t shared = 0, own = 0;
  for (uint64_t left = wave.exec; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    uint64_t& at = addresses.at[static_cast<size_t>(lane)];
    if (at >> 32 == kSharedAperture) shared |= uint64_t{1} << lane;
    if (at >> 32 == kPrivateAperture) {
      own |= uint64_t{1} << lane;
      at = scratch_address(wave, lane, at & 0xffffffff, bytes, verb);
    }
  }
  const uint64_t global = wave.exec & ~shared & ~own;
  context.memory.check_lanes(addresses.at.data(), global, bytes, text_of(verb));
  count(context, global | own, bytes, verb);
  if (shared != 0) addresses.lds = lds_lanes(context, addresses, shared, bytes, verb);
  addresses.lanes = global | own | addresses.lds;
  return addresses;
}

Addresses scratch_addresses(Context& context, const Instruction& instruction, uint32_t bytes,
                            Verb verb) {
  Addresses addresses;
  Wave& wave = context.wave;
  addresses.lanes = wave.exec;
  const Operand& vector = instruction.source[0];
  const Operand& scalar = instruction.source[instruction.sources - 1];
  uint64_t base = static_cast<uint64_t>(int64_t{instruction.modifiers.offset});
  if (scalar.where == Where::scalar) base += read_scalar(context, scalar);
  for (uint64_t left = wave.exec; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    const uint64_t offset =
        base + (vector.where == Where::vector ? register_of(wave, vector, 0)[lane] : 0);
    addresses.at[static_cast<size_t>(lane)] =
        scratch_address(wave, lane, offset & 0xffffffff, bytes, verb);
  }
  count(context, addresses.lanes, bytes, verb);
  return addresses;
}

Addresses buffer_addresses(Context& context, const Instruction& instruction, uint32_t bytes,
                           Verb verb) {
  Addresses addresses;
  Wave& wave = context.wave;
  const int where = resource_operand(instruction);
  const Resource resource = resource_of(wave, instruction.source[where]);
  if (resource.swizzled) {
    throw Fault("buffer: expected a resource that is not swizzled, got one; it is not modelled");
  }
  const Modifiers& modifiers = instruction.modifiers;
  const Operand& vector = instruction.source[where - (where > 0)];
  const uint64_t scalar = read_scalar(context, instruction.source[where + 1]) & 0xffffffff;
  const bool any = modifiers.idxen || modifiers.offen;
  const Lanes* first = any ? &register_of(wave, vector, 0) : nullptr;
  const Lanes* second = modifiers.idxen && modifiers.offen ? &register_of(wave, vector, 1) : first;
  // Raw buffers: out of range where the offset without the scalar one reaches records - scalar.
  const uint64_t limit = resource.records > scalar ? resource.records - scalar : 0;
  uint64_t touched = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    uint64_t index = modifiers.idxen ? (*first)[lane] : 0;
    if (resource.add_lane) index += static_cast<uint64_t>(lane);
    uint64_t offset = static_cast<uint64_t>(modifiers.offset) + index * resource.stride;
    if (modifiers.offen) offset += (*second)[lane];
    const uint64_t room = offset < limit ? limit - offset : 0;
    const auto l = static_cast<size_t>(lane);
    addresses.at[l] = resource.base + scalar + offset;
    addresses.room[l] = static_cast<uint32_t>(std::min<uint64_t>(room, bytes));
    if (room >= std::min(bytes, 4u)) touched |= uint64_t{1} << lane;
    addresses.partial |= room < bytes && wave.active(lane);
  }
  addresses.lanes = wave.exec;
  touched &= wave.exec;
  if (!addresses.partial) {
    context.memory.check_lanes(addresses.at.data(), touched, bytes, text_of(verb));
  } else {
    for (uint64_t left = touched; left != 0; left &= left - 1) {
      const auto lane = static_cast<size_t>(std::countr_zero(left));
      const uint32_t room = bytes < 4 ? addresses.room[lane] : addresses.room[lane] & ~3u;
      context.memory.check(addresses.at[lane], room, text_of(verb));
    }
  }
  count(context, touched, bytes, verb);
  return addresses;
}

}  // namespace hipdecode::sim
