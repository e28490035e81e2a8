// SPDX-License-Identifier: MIT
#include "lds_banks.h"

#include <algorithm>
#include <array>
#include <bit>

namespace hipdecode::sim {
namespace {

/// Lanes of each phase as masks.
struct Phases {
  std::array<uint64_t, 8> lanes{};
  int count = 0;
  int banks = 0;
};

constexpr Phases in_order(int lanes_per_phase, int banks) {
  Phases phases{.banks = banks};
  const uint64_t first =
      lanes_per_phase == kLanes ? ~uint64_t{0} : (uint64_t{1} << lanes_per_phase) - 1;
  for (int lane = 0; lane < kLanes; lane += lanes_per_phase) {
    phases.lanes[static_cast<size_t>(phases.count++)] = first << lane;
  }
  return phases;
}

constexpr uint64_t four(int lane) { return uint64_t{0xf} << lane; }

constexpr Phases repeated(std::array<uint64_t, 4> low, int used, int banks) {
  Phases phases{.count = 2 * used, .banks = banks};
  for (size_t i = 0; i < static_cast<size_t>(used); ++i) {
    phases.lanes[i] = low[i];
    phases.lanes[i + static_cast<size_t>(used)] = low[i] << 32;
  }
  return phases;
}

constexpr Phases kNarrow[] = {in_order(32, 32), in_order(16, 32), in_order(8, 32)};
constexpr Phases kNarrowWideRead = repeated(
    {four(0) | four(20), four(4) | four(16), four(8) | four(28), four(12) | four(24)}, 4, 32);
constexpr Phases kWide[] = {in_order(64, 64), in_order(32, 64)};
constexpr Phases kWide128 = repeated(
    {four(0) | four(12) | four(20) | four(24), four(4) | four(8) | four(16) | four(28), 0, 0}, 2,
    64);

const Phases& phases_of(const Lds& lds, bool write, uint32_t bytes) {
  const int size = bytes <= 4 ? 0 : bytes == 8 ? 1 : 2;
  if (!write && bytes == 12) return kNarrowWideRead;
  if (!write && lds.arch().gfx950()) return size == 2 ? kWide128 : kWide[size];
  return !write && size == 2 ? kNarrowWideRead : kNarrow[size];
}

/// Whether no two lanes want the same bank: the common case, decided with one bit per bank.
bool free_of_conflicts(const uint32_t* address, uint64_t lanes, uint32_t dwords, uint32_t banks) {
  const uint64_t run = (uint64_t{1} << dwords) - 1;
  uint64_t taken = 0, twice = 0;
  for (uint64_t left = lanes; left != 0; left &= left - 1) {
    uint32_t first = address[std::countr_zero(left)] / 4 % banks;
    uint64_t wanted = std::rotl(run, static_cast<int>(first));
    if (banks == 32) wanted = (wanted | wanted >> 32) & 0xffffffff;
    twice |= taken & wanted;
    taken |= wanted;
  }
  return twice == 0;
}

/// Dwords that the busiest bank has to give.
int cycles_of(const uint32_t* address, uint64_t lanes, uint32_t dwords, uint32_t banks) {
  if (free_of_conflicts(address, lanes, dwords, banks)) return 1;
  // A bank's dwords so far; broadcasting one dword to many lanes is free.
  std::array<std::array<uint32_t, 32>, 64> rows;
  std::array<uint8_t, 64> count{};
  int most = 1;
  for (uint64_t left = lanes; left != 0; left &= left - 1) {
    const uint32_t first = address[std::countr_zero(left)] / 4;
    for (uint32_t dword = first; dword < first + dwords; ++dword) {
      const uint32_t bank = dword % banks;
      auto* begin = rows[bank].data();
      auto* end = begin + count[bank];
      if (std::find(begin, end, dword) != end) continue;
      *end = dword;
      most = std::max<int>(most, ++count[bank]);
    }
  }
  return most;
}

}  // namespace

void count_banks(Counts& counts, const Lds& lds, bool write, uint64_t lanes,
                 const uint32_t* address, uint32_t bytes) {
  const Phases& phases = phases_of(lds, write, bytes);
  const uint32_t dwords = (bytes + 3) / 4;
  for (int i = 0; i < phases.count; ++i) {
    const uint64_t active = lanes & phases.lanes[static_cast<size_t>(i)];
    if (active == 0) continue;
    const int cycles = cycles_of(address, active, dwords, static_cast<uint32_t>(phases.banks));
    counts.lds_cycles += cycles;
    counts.lds_conflict_cycles += cycles - 1;
  }
}

}  // namespace hipdecode::sim
