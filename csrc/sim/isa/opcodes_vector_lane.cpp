// SPDX-License-Identifier: MIT
// Moves, and everything that looks at more than its own lane.
#include <bit>

#include "vector.h"

namespace hipdecode::sim {
namespace {

void v_nop(Context&, const Instruction&) {}

void move_wide(Context& c, const Instruction& i) {
  WideLanes value;
  read_wide(c, i, 0, value);
  write_wide(c, i, value);
}

void v_cndmask_b32(Context& c, const Instruction& i) {
  Lanes scratch[2], result;
  const Lanes &a = read_float(c, i, 0, scratch[0]), &b = read_float(c, i, 1, scratch[1]);
  const uint64_t mask = read_scalar(c, i.source[2]);
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = mask >> lane & 1 ? b[lane] : a[lane];
  write(c, i, result);
}

void v_readfirstlane_b32(Context& c, const Instruction& i) {
  Lanes scratch;
  const uint64_t exec = c.wave.exec;
  const int lane = exec == 0 ? 0 : std::countr_zero(exec);
  write_scalar(c, i.destination[0], read(c, i, 0, scratch)[lane]);
}

int lane_number(Context& c, const Instruction& i) {
  return static_cast<int>(read_scalar(c, i.source[1]) & (kLanes - 1));
}

void v_readlane_b32(Context& c, const Instruction& i) {
  Lanes scratch;
  write_scalar(c, i.destination[0], read(c, i, 0, scratch)[lane_number(c, i)]);
}

/// Writes its lane whether EXEC has it or not.
void v_writelane_b32(Context& c, const Instruction& i) {
  const auto slot = static_cast<size_t>(c.wave.slot(i.destination[0]));
  const int lane = lane_number(c, i);
  c.wave.vector[slot][lane] = static_cast<uint32_t>(read_scalar(c, i.source[0]));
  c.wave.written[slot] |= uint64_t{1} << lane;
}

void v_swap_b32(Context& c, const Instruction& i) {
  Lanes scratch[2];
  const Lanes first = read(c, i, 0, scratch[0]), second = read(c, i, 1, scratch[1]);
  write(c, i, second, 0, 0);
  write(c, i, first, 0, 1);
}

/// Exchanges the lanes of the first register that have bit kDistance set with those of the second
/// that have not. A lane whose partner EXEC disables keeps its value, or is zero under bound_ctrl.
template <int kDistance>
void permlane_swap(Context& c, const Instruction& i) {
  Lanes scratch[2];
  const Lanes &a = read(c, i, 0, scratch[0]), &b = read(c, i, 1, scratch[1]);
  Lanes first = a, second = b;
  for (int block = 0; block < kLanes; block += 2 * kDistance)
    for (int lane = block; lane < block + kDistance; ++lane) {
      first[lane + kDistance] = b[lane];
      second[lane] = a[lane + kDistance];
    }
  if (!i.modifiers.fetch_inactive && c.wave.exec != ~uint64_t{0}) {
    const uint32_t keep = i.modifiers.bound_ctrl ? 0 : ~0u;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (c.wave.active(lane ^ kDistance)) continue;
      if ((lane & kDistance) != 0)
        first[lane] = a[lane] & keep;
      else
        second[lane] = b[lane] & keep;
    }
  }
  write(c, i, first, 0, 0);
  write(c, i, second, 0, 1);
}

/// Counts the mask's lanes below one's own, of the lower or the upper half of the wave.
template <int kFirst>
void mbcnt(Context& c, const Instruction& i) {
  Lanes scratch[2], result;
  const Lanes &mask = read(c, i, 0, scratch[0]), &base = read(c, i, 1, scratch[1]);
  for (int lane = 0; lane < kLanes; ++lane) {
    const int below = lane - kFirst < 0 ? 0 : (lane - kFirst > 32 ? 32 : lane - kFirst);
    const uint32_t lanes = static_cast<uint32_t>((uint64_t{1} << below) - 1);
    result[lane] = base[lane] + static_cast<uint32_t>(std::popcount(mask[lane] & lanes));
  }
  write(c, i, result);
}

constexpr auto kSame = [](uint32_t a) { return a; };

constexpr Opcode kRows[] = {
    {"v_nop", Class::valu, v_nop, kVop1},
    {"v_mov_b32", Class::valu, unary_b32<kSame>, kVop1},
    {"v_mov_b64", Class::valu, move_wide, kVop1},
    {"v_accvgpr_mov_b32", Class::valu, unary_b32<kSame>, kVop1},
    {"v_accvgpr_read_b32", Class::valu, unary_b32<kSame>, "12.10 VOP3P-MAI"},
    {"v_accvgpr_write_b32", Class::valu, unary_b32<kSame>, "12.10 VOP3P-MAI"},
    {"v_cndmask_b32", Class::valu, v_cndmask_b32, kVop2},
    {"v_readfirstlane_b32", Class::valu, v_readfirstlane_b32, kVop1},
    {"v_readlane_b32", Class::valu, v_readlane_b32, kVop3},
    {"v_writelane_b32", Class::valu, v_writelane_b32, kVop3},
    {"v_swap_b32", Class::valu, v_swap_b32, kVop1},
    {"v_permlane16_swap_b32", Class::valu, permlane_swap<16>, kVop1},
    {"v_permlane32_swap_b32", Class::valu, permlane_swap<32>, kVop1},
    {"v_mbcnt_lo_u32_b32", Class::valu, mbcnt<0>, kVop3},
    {"v_mbcnt_hi_u32_b32", Class::valu, mbcnt<32>, kVop3},
};

}  // namespace

std::span<const Opcode> vector_lane_opcodes() { return kRows; }

}  // namespace hipdecode::sim
