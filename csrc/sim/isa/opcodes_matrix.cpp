// SPDX-License-Identifier: MIT
// MFMA. All 64 lanes take part, whatever EXEC says.
#include <algorithm>
#include <bit>
#include <type_traits>

#include "../state/addresses.h"
#include "../state/arch.h"
#include "matrix.h"
#include "opcodes.h"

namespace hipdecode::sim {
namespace {

constexpr std::string_view kSection = "12.10 VOP3P-MAI";

template <class T>
constexpr bool kIsInteger = std::is_integral_v<T>;

template <class T>
void unpack_operand(Context& context, const Operand& operand, Element element, int elements,
                    Elements<T>& result) {
  const Lanes* registers = &register_of(context.wave, operand, 0);
  if constexpr (kIsInteger<T>) {
    unpack_bytes(registers, elements, result);
  } else {
    unpack(element, registers, elements, context.arch.fnuz, result);
  }
}

/// blgp of forms other than f8f6f4: which lanes of B are used in place of each lane's own.
template <class T>
void broadcast_groups(int blgp, int elements, Elements<T>& values) {
  if (blgp == 0) return;
  for (int e = 0; e < elements; ++e) {
    auto& row = values.at[static_cast<size_t>(e)];
    const auto old = row;
    for (int lane = 0; lane < kLanes; ++lane) {
      const int from = blgp <= 2   ? (blgp - 1) * 32 + lane % 32   // one half for both
                       : blgp == 3 ? (lane + 16) % kLanes          // rotated
                                   : (blgp - 4) * 16 + lane % 16;  // one quarter for all
      row[static_cast<size_t>(lane)] = old[static_cast<size_t>(from)];
    }
  }
}

constexpr int accumulators(int size, int blocks) { return size * size * blocks / kLanes; }

/// The addend, which may be a constant: then every register has the same.
void read_addend(Context& context, const Instruction& instruction, int registers, Lanes* sum) {
  const Where where = instruction.source[2].where;
  const bool constant = where != Where::vector && where != Where::accumulator;
  for (int i = 0; i < registers; ++i) {
    Lanes scratch;
    sum[i] = read(context, instruction, 2, scratch, constant ? 0 : i);
  }
}

void write_result(Context& context, const Instruction& instruction, int registers,
                  const Lanes* sum) {
  const Operand& destination = instruction.destination[0];
  Lanes* to = &register_of(context.wave, destination, 0);
  std::copy_n(sum, registers, to);
  for (int i = 0; i < registers; ++i) {
    mark_written(context.wave, destination, i, ~uint64_t{0});
  }
}

/// kSize x kSize x (64 / kSize / kBlocks * kElements), kElements in each lane.
template <int kSize, int kBlocks, int kElements, Element kA, Element kB = kA>
void mfma(Context& context, const Instruction& instruction) {
  using T = std::conditional_t<kA == Element::i8, uint32_t, float>;
  constexpr int kRegisters = accumulators(kSize, kBlocks);
  const Modifiers& modifiers = instruction.modifiers;
  Elements<T> a, b;
  Lanes sum[kRegisters];
  unpack_operand(context, instruction.source[0], kA, kElements, a);
  unpack_operand(context, instruction.source[1], kB, kElements, b);
  broadcast_groups(modifiers.blgp, kElements, b);
  read_addend(context, instruction, kRegisters, sum);
  if constexpr (kBlocks == 1) {
    multiply<kSize>(a, b, kElements, sum);
  } else {
    multiply_blocks<kSize, kBlocks>(a, b, kElements, modifiers.cbsz, modifiers.abid, sum);
  }
  write_result(context, instruction, kRegisters, sum);
}

Element small_format(int code) {
  if (code > 4) {
    throw Fault("matrix: expected a format of 0 to 4 in cbsz and blgp, got " +
                std::to_string(code));
  }
  return static_cast<Element>(static_cast<int>(Element::fp8) + code);
}

/// The scale of a block of 32 elements, which are one lane's: byte op_sel_hi * 2 + op_sel.
void scale_operand(Context& context, const Instruction& instruction, int which,
                   Elements<float>& values) {
  Lanes scratch;
  const Lanes& codes = read(context, instruction, 3 + which, scratch);
  const Modifiers& modifiers = instruction.modifiers;
  const int byte = (modifiers.op_sel_hi >> which & 1) * 2 + (modifiers.op_sel >> which & 1);
  apply_scales(codes, byte, kMaxElements, values);
}

/// 16 x 16 x 128 and 32 x 32 x 64: formats by cbsz (A) and blgp (B), OCP ones on every target.
template <int kSize, bool kScaled>
void mfma_f8f6f4(Context& context, const Instruction& instruction) {
  constexpr int kRegisters = accumulators(kSize, 1);
  const Modifiers& modifiers = instruction.modifiers;
  Elements<float> a, b;
  Lanes sum[kRegisters];
  unpack_operand(context, instruction.source[0], small_format(modifiers.cbsz), kMaxElements, a);
  unpack_operand(context, instruction.source[1], small_format(modifiers.blgp), kMaxElements, b);
  if constexpr (kScaled) {
    scale_operand(context, instruction, 0, a);
    scale_operand(context, instruction, 1, b);
  }
  read_addend(context, instruction, kRegisters, sum);
  multiply<kSize>(a, b, kMaxElements, sum);
  write_result(context, instruction, kRegisters, sum);
}

using enum Element;

// Passes: 4 cycles each, as LLVM's scheduling model has them. f8f6f4: with 8-bit elements.
constexpr Opcode kTable[] = {
    {"v_mfma_f32_16x16x4_f32", Class::mfma, mfma<16, 1, 1, f32>, kSection, 8},
    {"v_mfma_f32_32x32x2_f32", Class::mfma, mfma<32, 1, 1, f32>, kSection, 16},
    {"v_mfma_f32_16x16x1_4b_f32", Class::mfma, mfma<16, 4, 1, f32>, kSection, 8},
    {"v_mfma_f32_32x32x1_2b_f32", Class::mfma, mfma<32, 2, 1, f32>, kSection, 16},
    {"v_mfma_f32_4x4x1_16b_f32", Class::mfma, mfma<4, 16, 1, f32>, kSection, 2},
    {"v_mfma_f32_16x16x8_xf32", Class::mfma, mfma<16, 1, 2, xf32>, kSection, 4},
    {"v_mfma_f32_32x32x4_xf32", Class::mfma, mfma<32, 1, 2, xf32>, kSection, 8},
    {"v_mfma_f32_16x16x16_f16", Class::mfma, mfma<16, 1, 4, f16>, kSection, 4},
    {"v_mfma_f32_32x32x8_f16", Class::mfma, mfma<32, 1, 4, f16>, kSection, 8},
    {"v_mfma_f32_16x16x32_f16", Class::mfma, mfma<16, 1, 8, f16>, kSection, 4},
    {"v_mfma_f32_32x32x16_f16", Class::mfma, mfma<32, 1, 8, f16>, kSection, 8},
    {"v_mfma_f32_16x16x4_4b_f16", Class::mfma, mfma<16, 4, 4, f16>, kSection, 8},
    {"v_mfma_f32_32x32x4_2b_f16", Class::mfma, mfma<32, 2, 4, f16>, kSection, 16},
    {"v_mfma_f32_4x4x4_16b_f16", Class::mfma, mfma<4, 16, 4, f16>, kSection, 2},
    {"v_mfma_f32_16x16x16_bf16", Class::mfma, mfma<16, 1, 4, bf16>, kSection, 4},
    {"v_mfma_f32_32x32x8_bf16", Class::mfma, mfma<32, 1, 4, bf16>, kSection, 8},
    {"v_mfma_f32_16x16x32_bf16", Class::mfma, mfma<16, 1, 8, bf16>, kSection, 4},
    {"v_mfma_f32_32x32x16_bf16", Class::mfma, mfma<32, 1, 8, bf16>, kSection, 8},
    {"v_mfma_f32_16x16x4_4b_bf16", Class::mfma, mfma<16, 4, 4, bf16>, kSection, 8},
    {"v_mfma_f32_32x32x4_2b_bf16", Class::mfma, mfma<32, 2, 4, bf16>, kSection, 16},
    {"v_mfma_f32_4x4x4_16b_bf16", Class::mfma, mfma<4, 16, 4, bf16>, kSection, 2},
    {"v_mfma_f32_16x16x32_fp8_fp8", Class::mfma, mfma<16, 1, 8, fp8, fp8>, kSection, 4},
    {"v_mfma_f32_16x16x32_fp8_bf8", Class::mfma, mfma<16, 1, 8, fp8, bf8>, kSection, 4},
    {"v_mfma_f32_16x16x32_bf8_fp8", Class::mfma, mfma<16, 1, 8, bf8, fp8>, kSection, 4},
    {"v_mfma_f32_16x16x32_bf8_bf8", Class::mfma, mfma<16, 1, 8, bf8, bf8>, kSection, 4},
    {"v_mfma_f32_32x32x16_fp8_fp8", Class::mfma, mfma<32, 1, 8, fp8, fp8>, kSection, 8},
    {"v_mfma_f32_32x32x16_fp8_bf8", Class::mfma, mfma<32, 1, 8, fp8, bf8>, kSection, 8},
    {"v_mfma_f32_32x32x16_bf8_fp8", Class::mfma, mfma<32, 1, 8, bf8, fp8>, kSection, 8},
    {"v_mfma_f32_32x32x16_bf8_bf8", Class::mfma, mfma<32, 1, 8, bf8, bf8>, kSection, 8},
    {"v_mfma_i32_16x16x32_i8", Class::mfma, mfma<16, 1, 8, i8>, kSection, 4},
    {"v_mfma_i32_32x32x16_i8", Class::mfma, mfma<32, 1, 8, i8>, kSection, 8},
    {"v_mfma_i32_16x16x64_i8", Class::mfma, mfma<16, 1, 16, i8>, kSection, 4},
    {"v_mfma_i32_32x32x32_i8", Class::mfma, mfma<32, 1, 16, i8>, kSection, 8},
    {"v_mfma_i32_16x16x4_4b_i8", Class::mfma, mfma<16, 4, 4, i8>, kSection, 8},
    {"v_mfma_i32_32x32x4_2b_i8", Class::mfma, mfma<32, 2, 4, i8>, kSection, 16},
    {"v_mfma_i32_4x4x4_16b_i8", Class::mfma, mfma<4, 16, 4, i8>, kSection, 2},
    {"v_mfma_f32_16x16x128_f8f6f4", Class::mfma, mfma_f8f6f4<16, false>, kSection, 8},
    {"v_mfma_f32_32x32x64_f8f6f4", Class::mfma, mfma_f8f6f4<32, false>, kSection, 16},
    {"v_mfma_scale_f32_16x16x128_f8f6f4", Class::mfma, mfma_f8f6f4<16, true>, kSection, 8},
    {"v_mfma_scale_f32_32x32x64_f8f6f4", Class::mfma, mfma_f8f6f4<32, true>, kSection, 16},
};

}  // namespace

std::span<const Opcode> matrix_opcodes() { return kTable; }

}  // namespace hipdecode::sim
