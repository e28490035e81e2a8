// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../../abi/dtype.h"
#include "convert.h"
#include "memory.h"

// Products of one wave (PTX ISA 8.0, section 9.7.14.5). In a lane, g = lane / 4 and q = lane % 4;
// an 8x8 matrix of 16-bit words has words (g, 2q) and (g, 2q + 1) there.
namespace hipdecode::tile::nvptx {

/// sum[16 x 8] += a[16 x 16] b[16 x 8]: a lane has elements (g, 2q), (g, 2q + 1), (g + 8, 2q) and
/// (g + 8, 2q + 1) of the sum.
template <abi::DType kType>
TILE_FN void multiply(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kType == abi::DType::bf16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// An 8x8 matrix the other way round.
TILE_FN uint32_t turned(uint32_t words) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(words));
  return result;
}

/// The two operands that four words of fp8 are: words 0 and 1 are rows g and g + 8 of the first.
/// Depths 4q and 4q + 1 are where an operand has 2q and 2q + 1, 4q + 2 and 4q + 3 where it has
/// 2q + 8 and 2q + 9.
TILE_FN void widen_operands(const uint32_t (&words)[4], uint32_t (&first)[4],
                            uint32_t (&second)[4]) {
  widen(words[0], first[0], first[2]);
  widen(words[1], first[1], first[3]);
  widen(words[2], second[0], second[2]);
  widen(words[3], second[1], second[3]);
}

}  // namespace hipdecode::tile::nvptx
