// SPDX-License-Identifier: MIT
// Scalar arithmetic: SOP1, SOP2, SOPC and SOPK.
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "../state/wave.h"
#include "opcodes.h"
#include "opcodes_flow.h"
#include "scalar_operations.h"

namespace hipdecode::sim {
namespace {

using namespace scalar;  // NOLINT: their only user

constexpr std::string_view kSop2 = "12.1 SOP2", kSopk = "12.2 SOPK", kSop1 = "12.3 SOP1",
                           kSopc = "12.4 SOPC";

template <class T>
T source(Context& context, const Instruction& instruction, int index) {
  return static_cast<T>(read_scalar(context, instruction.source[index]));
}

template <class T>
void finish(Context& context, const Instruction& instruction, const Result<T>& result) {
  if constexpr (std::is_signed_v<T>)
    write_scalar(context, instruction.destination[0],
                 static_cast<uint64_t>(static_cast<std::make_unsigned_t<T>>(result.value)));
  else
    write_scalar(context, instruction.destination[0], result.value);
  if (result.sets) context.wave.scc = result.scc;
}

// F(wave, a, b) with operands of types A and B; the result's type is F's.
template <class A, class B, auto F>
void two(Context& context, const Instruction& instruction) {
  finish(context, instruction,
         F(context.wave, source<A>(context, instruction, 0), source<B>(context, instruction, 1)));
}

template <class A, auto F>
void one(Context& context, const Instruction& instruction) {
  finish(context, instruction, F(context.wave, source<A>(context, instruction, 0)));
}

template <class T, auto F>
void compare(Context& context, const Instruction& instruction) {
  context.wave.scc = F(source<T>(context, instruction, 0), source<T>(context, instruction, 1));
}

/// s_cmpk: the second operand is simm16, sign- or zero-extended as T is.
template <class T, auto F>
void compare_immediate(Context& context, const Instruction& instruction) {
  const T immediate = std::is_signed_v<T> ? static_cast<T>(instruction.immediate)
                                          : static_cast<T>(instruction.immediate & 0xffff);
  context.wave.scc = F(source<T>(context, instruction, 0), immediate);
}

/// s_<op>_saveexec_b64 and its like: exec becomes F(source, exec), SCC its not being zero.
template <auto F, bool kSave>
void on_exec(Context& context, const Instruction& instruction) {
  const uint64_t from = source<uint64_t>(context, instruction, 0), old = context.wave.exec;
  context.wave.exec = F(from, old);
  context.wave.scc = context.wave.exec != 0;
  write_scalar(context, instruction.destination[0], kSave ? old : context.wave.exec);
}

/// Operands that the instruction both reads and writes are its destination.
template <class T>
T old_value(Context& context, const Instruction& instruction) {
  return static_cast<T>(read_scalar(context, instruction.destination[0]));
}

template <class T>
void conditional_move(Context& context, const Instruction& instruction) {
  if (context.wave.scc) finish(context, instruction, plain(source<T>(context, instruction, 0)));
}
template <class T, bool kSet>
void set_bit(Context& context, const Instruction& instruction) {
  const uint32_t bit = source<uint32_t>(context, instruction, 0) & (kBits<T> - 1);
  const T old = old_value<T>(context, instruction), mask = T{1} << bit;
  finish(context, instruction, plain(static_cast<T>(kSet ? old | mask : old & ~mask)));
}
template <class T, bool kOne>
void test_bit(Context& context, const Instruction& instruction) {
  const uint32_t bit = source<uint32_t>(context, instruction, 1) & (kBits<T> - 1);
  context.wave.scc = (source<T>(context, instruction, 0) >> bit & 1) == kOne;
}

/// The operand `by` registers further: s_movrels, s_movreld.
Operand moved(Operand operand, uint32_t by) {
  operand.first = static_cast<uint16_t>(operand.first + by);
  if (operand.first + operand.count > kFlatScratch)
    throw Fault("registers: expected s0 to s101, got s" + std::to_string(operand.first));
  return operand;
}
void move_relative_source(Context& context, const Instruction& instruction) {
  const Operand from = moved(instruction.source[0], context.wave.scalar[kM0]);
  write_scalar(context, instruction.destination[0], read_scalar(context, from));
}
void move_relative_destination(Context& context, const Instruction& instruction) {
  const Operand to = moved(instruction.destination[0], context.wave.scalar[kM0]);
  write_scalar(context, to, read_scalar(context, instruction.source[0]));
}

// SOPK: simm16 is an operand.
void move_immediate(Context& context, const Instruction& instruction) {
  write_scalar(context, instruction.destination[0], static_cast<uint32_t>(instruction.immediate));
}
void conditional_move_immediate(Context& context, const Instruction& instruction) {
  if (context.wave.scc) move_immediate(context, instruction);
}
void add_immediate(Context& context, const Instruction& instruction) {
  finish(context, instruction,
         add_signed(context.wave, old_value<int32_t>(context, instruction), instruction.immediate));
}
void mul_immediate(Context& context, const Instruction& instruction) {
  const uint32_t old = old_value<uint32_t>(context, instruction);
  finish(context, instruction, plain(old * static_cast<uint32_t>(instruction.immediate)));
}

template <class T, auto F>
void logic(Context& context, const Instruction& instruction) {
  finish(context, instruction,
         nonzero(F(source<T>(context, instruction, 0), source<T>(context, instruction, 1))));
}

// clang-format off: one row per opcode
constexpr Opcode kTwoOperands[] = {
      {"s_add_u32", Class::salu, two<uint32_t, uint32_t, add>, kSop2},
      {"s_sub_u32", Class::salu, two<uint32_t, uint32_t, sub>, kSop2},
      {"s_add_i32", Class::salu, two<int32_t, int32_t, add_signed>, kSop2},
      {"s_sub_i32", Class::salu, two<int32_t, int32_t, sub_signed>, kSop2},
      {"s_addc_u32", Class::salu, two<uint32_t, uint32_t, add_carry>, kSop2},
      {"s_subb_u32", Class::salu, two<uint32_t, uint32_t, sub_borrow>, kSop2},
      {"s_mul_i32", Class::salu, two<uint32_t, uint32_t, mul>, kSop2},
      {"s_mul_hi_u32", Class::salu, two<uint32_t, uint32_t, mul_high<uint32_t>>, kSop2},
      {"s_mul_hi_i32", Class::salu, two<int32_t, int32_t, mul_high<int32_t>>, kSop2},
      {"s_min_u32", Class::salu, two<uint32_t, uint32_t, minimum<uint32_t>>, kSop2},
      {"s_min_i32", Class::salu, two<int32_t, int32_t, minimum<int32_t>>, kSop2},
      {"s_max_u32", Class::salu, two<uint32_t, uint32_t, maximum<uint32_t>>, kSop2},
      {"s_max_i32", Class::salu, two<int32_t, int32_t, maximum<int32_t>>, kSop2},
      {"s_lshl1_add_u32", Class::salu, two<uint32_t, uint32_t, shift_add<1>>, kSop2},
      {"s_lshl2_add_u32", Class::salu, two<uint32_t, uint32_t, shift_add<2>>, kSop2},
      {"s_lshl3_add_u32", Class::salu, two<uint32_t, uint32_t, shift_add<3>>, kSop2},
      {"s_lshl4_add_u32", Class::salu, two<uint32_t, uint32_t, shift_add<4>>, kSop2},
      {"s_absdiff_i32", Class::salu, two<int32_t, int32_t, difference>, kSop2},
      {"s_cselect_b32", Class::salu, two<uint32_t, uint32_t, choose<uint32_t>>, kSop2},
      {"s_lshl_b32", Class::salu, two<uint32_t, uint32_t, shift_left<uint32_t>>, kSop2},
      {"s_lshr_b32", Class::salu, two<uint32_t, uint32_t, shift_right<uint32_t>>, kSop2},
      {"s_bfm_b32", Class::salu, two<uint32_t, uint32_t, field_mask<uint32_t>>, kSop2},
      {"s_cselect_b64", Class::salu, two<uint64_t, uint64_t, choose<uint64_t>>, kSop2},
      {"s_lshl_b64", Class::salu, two<uint64_t, uint32_t, shift_left<uint64_t>>, kSop2},
      {"s_lshr_b64", Class::salu, two<uint64_t, uint32_t, shift_right<uint64_t>>, kSop2},
      {"s_bfm_b64", Class::salu, two<uint32_t, uint32_t, field_mask<uint64_t>>, kSop2},
      {"s_ashr_i32", Class::salu, two<int32_t, uint32_t, shift_right<int32_t>>, kSop2},
      {"s_ashr_i64", Class::salu, two<int64_t, uint32_t, shift_right<int64_t>>, kSop2},
      {"s_bfe_u32", Class::salu, two<uint32_t, uint32_t, extract<uint32_t>>, kSop2},
      {"s_bfe_i32", Class::salu, two<int32_t, uint32_t, extract<int32_t>>, kSop2},
      {"s_bfe_u64", Class::salu, two<uint64_t, uint32_t, extract<uint64_t>>, kSop2},
      {"s_bfe_i64", Class::salu, two<int64_t, uint32_t, extract<int64_t>>, kSop2},
      {"s_pack_ll_b32_b16", Class::salu, two<uint32_t, uint32_t, (pack<0, 0>)>, kSop2},
      {"s_pack_lh_b32_b16", Class::salu, two<uint32_t, uint32_t, (pack<0, 16>)>, kSop2},
      {"s_pack_hh_b32_b16", Class::salu, two<uint32_t, uint32_t, (pack<16, 16>)>, kSop2},
      {"s_and_b32", Class::salu, logic<uint32_t, kAnd>, kSop2},
      {"s_and_b64", Class::salu, logic<uint64_t, kAnd>, kSop2},
      {"s_or_b32", Class::salu, logic<uint32_t, kOr>, kSop2},
      {"s_or_b64", Class::salu, logic<uint64_t, kOr>, kSop2},
      {"s_xor_b32", Class::salu, logic<uint32_t, kXor>, kSop2},
      {"s_xor_b64", Class::salu, logic<uint64_t, kXor>, kSop2},
      {"s_andn2_b32", Class::salu, logic<uint32_t, kAndn2>, kSop2},
      {"s_andn2_b64", Class::salu, logic<uint64_t, kAndn2>, kSop2},
      {"s_orn2_b32", Class::salu, logic<uint32_t, kOrn2>, kSop2},
      {"s_orn2_b64", Class::salu, logic<uint64_t, kOrn2>, kSop2},
      {"s_nand_b32", Class::salu, logic<uint32_t, kNand>, kSop2},
      {"s_nand_b64", Class::salu, logic<uint64_t, kNand>, kSop2},
      {"s_nor_b32", Class::salu, logic<uint32_t, kNor>, kSop2},
      {"s_nor_b64", Class::salu, logic<uint64_t, kNor>, kSop2},
      {"s_xnor_b32", Class::salu, logic<uint32_t, kXnor>, kSop2},
      {"s_xnor_b64", Class::salu, logic<uint64_t, kXnor>, kSop2},
};

constexpr Opcode kOneOperand[] = {
      {"s_and_saveexec_b64", Class::salu, on_exec<kAnd, true>, kSop1},
      {"s_or_saveexec_b64", Class::salu, on_exec<kOr, true>, kSop1},
      {"s_xor_saveexec_b64", Class::salu, on_exec<kXor, true>, kSop1},
      {"s_andn2_saveexec_b64", Class::salu, on_exec<kAndn2, true>, kSop1},
      {"s_orn2_saveexec_b64", Class::salu, on_exec<kOrn2, true>, kSop1},
      {"s_nand_saveexec_b64", Class::salu, on_exec<kNand, true>, kSop1},
      {"s_nor_saveexec_b64", Class::salu, on_exec<kNor, true>, kSop1},
      {"s_xnor_saveexec_b64", Class::salu, on_exec<kXnor, true>, kSop1},
      {"s_andn1_saveexec_b64", Class::salu, on_exec<kAndn1, true>, kSop1},
      {"s_orn1_saveexec_b64", Class::salu, on_exec<kOrn1, true>, kSop1},
      {"s_andn1_wrexec_b64", Class::salu, on_exec<kAndn1, false>, kSop1},
      {"s_andn2_wrexec_b64", Class::salu, on_exec<kAndn2, false>, kSop1},
      {"s_mov_b32", Class::salu, one<uint32_t, move<uint32_t>>, kSop1},
      {"s_cmov_b32", Class::salu, conditional_move<uint32_t>, kSop1},
      {"s_not_b32", Class::salu, one<uint32_t, invert<uint32_t>>, kSop1},
      {"s_brev_b32", Class::salu, one<uint32_t, reverse<uint32_t>>, kSop1},
      {"s_wqm_b32", Class::salu, one<uint32_t, (quads<uint32_t, true>)>, kSop1},
      {"s_quadmask_b32", Class::salu, one<uint32_t, (quads<uint32_t, false>)>, kSop1},
      {"s_bcnt0_i32_b32", Class::salu, one<uint32_t, (count_bits<uint32_t, false>)>, kSop1},
      {"s_ff0_i32_b32", Class::salu, one<uint32_t, (find_first<uint32_t, false>)>, kSop1},
      {"s_bitset0_b32", Class::salu, set_bit<uint32_t, false>, kSop1},
      {"s_bcnt1_i32_b32", Class::salu, one<uint32_t, (count_bits<uint32_t, true>)>, kSop1},
      {"s_ff1_i32_b32", Class::salu, one<uint32_t, (find_first<uint32_t, true>)>, kSop1},
      {"s_bitset1_b32", Class::salu, set_bit<uint32_t, true>, kSop1},
      {"s_flbit_i32_b32", Class::salu, one<uint32_t, leading_zeros<uint32_t>>, kSop1},
      {"s_movrels_b32", Class::salu, move_relative_source, kSop1},
      {"s_movreld_b32", Class::salu, move_relative_destination, kSop1},
      {"s_mov_b64", Class::salu, one<uint64_t, move<uint64_t>>, kSop1},
      {"s_cmov_b64", Class::salu, conditional_move<uint64_t>, kSop1},
      {"s_not_b64", Class::salu, one<uint64_t, invert<uint64_t>>, kSop1},
      {"s_brev_b64", Class::salu, one<uint64_t, reverse<uint64_t>>, kSop1},
      {"s_wqm_b64", Class::salu, one<uint64_t, (quads<uint64_t, true>)>, kSop1},
      {"s_quadmask_b64", Class::salu, one<uint64_t, (quads<uint64_t, false>)>, kSop1},
      {"s_bcnt0_i32_b64", Class::salu, one<uint64_t, (count_bits<uint64_t, false>)>, kSop1},
      {"s_ff0_i32_b64", Class::salu, one<uint64_t, (find_first<uint64_t, false>)>, kSop1},
      {"s_bitset0_b64", Class::salu, set_bit<uint64_t, false>, kSop1},
      {"s_bcnt1_i32_b64", Class::salu, one<uint64_t, (count_bits<uint64_t, true>)>, kSop1},
      {"s_ff1_i32_b64", Class::salu, one<uint64_t, (find_first<uint64_t, true>)>, kSop1},
      {"s_bitset1_b64", Class::salu, set_bit<uint64_t, true>, kSop1},
      {"s_flbit_i32_b64", Class::salu, one<uint64_t, leading_zeros<uint64_t>>, kSop1},
      {"s_movrels_b64", Class::salu, move_relative_source, kSop1},
      {"s_movreld_b64", Class::salu, move_relative_destination, kSop1},
      {"s_flbit_i32", Class::salu, one<uint32_t, leading_signs<uint32_t>>, kSop1},
      {"s_flbit_i32_i64", Class::salu, one<uint64_t, leading_signs<uint64_t>>, kSop1},
      {"s_sext_i32_i8", Class::salu, one<uint32_t, extend<int8_t>>, kSop1},
      {"s_sext_i32_i16", Class::salu, one<uint32_t, extend<int16_t>>, kSop1},
      {"s_abs_i32", Class::salu, one<uint32_t, absolute>, kSop1},
      {"s_bitreplicate_b64_b32", Class::salu, one<uint32_t, replicate>, kSop1},
};

constexpr Opcode kCompares[] = {
      {"s_bitcmp0_b32", Class::salu, test_bit<uint32_t, false>, kSopc},
      {"s_bitcmp1_b32", Class::salu, test_bit<uint32_t, true>, kSopc},
      {"s_bitcmp0_b64", Class::salu, test_bit<uint64_t, false>, kSopc},
      {"s_bitcmp1_b64", Class::salu, test_bit<uint64_t, true>, kSopc},
      {"s_cmp_eq_u32", Class::salu, compare<uint32_t, std::equal_to<>{}>, kSopc},
      {"s_cmp_eq_i32", Class::salu, compare<int32_t, std::equal_to<>{}>, kSopc},
      {"s_cmp_lg_u32", Class::salu, compare<uint32_t, std::not_equal_to<>{}>, kSopc},
      {"s_cmp_lg_i32", Class::salu, compare<int32_t, std::not_equal_to<>{}>, kSopc},
      {"s_cmp_gt_u32", Class::salu, compare<uint32_t, std::greater<>{}>, kSopc},
      {"s_cmp_gt_i32", Class::salu, compare<int32_t, std::greater<>{}>, kSopc},
      {"s_cmp_ge_u32", Class::salu, compare<uint32_t, std::greater_equal<>{}>, kSopc},
      {"s_cmp_ge_i32", Class::salu, compare<int32_t, std::greater_equal<>{}>, kSopc},
      {"s_cmp_lt_u32", Class::salu, compare<uint32_t, std::less<>{}>, kSopc},
      {"s_cmp_lt_i32", Class::salu, compare<int32_t, std::less<>{}>, kSopc},
      {"s_cmp_le_u32", Class::salu, compare<uint32_t, std::less_equal<>{}>, kSopc},
      {"s_cmp_le_i32", Class::salu, compare<int32_t, std::less_equal<>{}>, kSopc},
      {"s_cmp_eq_u64", Class::salu, compare<uint64_t, std::equal_to<>{}>, kSopc},
      {"s_cmp_lg_u64", Class::salu, compare<uint64_t, std::not_equal_to<>{}>, kSopc},
};

constexpr Opcode kImmediates[] = {
      {"s_cmpk_eq_u32", Class::salu, compare_immediate<uint32_t, std::equal_to<>{}>, kSopk},
      {"s_cmpk_eq_i32", Class::salu, compare_immediate<int32_t, std::equal_to<>{}>, kSopk},
      {"s_cmpk_lg_u32", Class::salu, compare_immediate<uint32_t, std::not_equal_to<>{}>, kSopk},
      {"s_cmpk_lg_i32", Class::salu, compare_immediate<int32_t, std::not_equal_to<>{}>, kSopk},
      {"s_cmpk_gt_u32", Class::salu, compare_immediate<uint32_t, std::greater<>{}>, kSopk},
      {"s_cmpk_gt_i32", Class::salu, compare_immediate<int32_t, std::greater<>{}>, kSopk},
      {"s_cmpk_ge_u32", Class::salu, compare_immediate<uint32_t, std::greater_equal<>{}>, kSopk},
      {"s_cmpk_ge_i32", Class::salu, compare_immediate<int32_t, std::greater_equal<>{}>, kSopk},
      {"s_cmpk_lt_u32", Class::salu, compare_immediate<uint32_t, std::less<>{}>, kSopk},
      {"s_cmpk_lt_i32", Class::salu, compare_immediate<int32_t, std::less<>{}>, kSopk},
      {"s_cmpk_le_u32", Class::salu, compare_immediate<uint32_t, std::less_equal<>{}>, kSopk},
      {"s_cmpk_le_i32", Class::salu, compare_immediate<int32_t, std::less_equal<>{}>, kSopk},
      {"s_movk_i32", Class::salu, move_immediate, kSopk},
      {"s_cmovk_i32", Class::salu, conditional_move_immediate, kSopk},
      {"s_addk_i32", Class::salu, add_immediate, kSopk},
      {"s_mulk_i32", Class::salu, mul_immediate, kSopk},
};
// clang-format on

}  // namespace

std::span<const Opcode> scalar_opcodes() {
  static const std::vector<Opcode> table = [] {
    std::vector<Opcode> all;
    const std::span<const Opcode> parts[] = {kTwoOperands, kOneOperand, kCompares, kImmediates,
                                             flow_opcodes()};
    for (const auto part : parts) all.insert(all.end(), part.begin(), part.end());
    return all;
  }();
  return table;
}

}  // namespace hipdecode::sim
