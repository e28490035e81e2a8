// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>

#include "../state/wave.h"

namespace hipdecode::sim {

/// What the elements of an MFMA operand are. The last five are formats of f8f6f4 operands, in the
/// order of their code in cbsz and blgp.
enum class Element : uint8_t { f32, xf32, f16, bf16, i8, fp8, bf8, fp6, bf6, fp4 };

/// Elements of one lane at most: 32 of f8f6f4.
inline constexpr int kMaxElements = 32;

/// An MFMA operand as numbers: element e of all lanes. Lane l holds row (A) or column (B)
/// l % size, and k = l / size * elements + e: rows of 16 or 32 lanes lie as the arithmetic wants
/// them, so nothing is ever transposed.
template <class T>
struct alignas(64) Elements {
  std::array<std::array<T, kLanes>, kMaxElements> at;
};

/// Unpacks `elements` of each lane from consecutive registers.
/// @param fnuz  8-bit formats are those of gfx942
void unpack(Element element, const Lanes* registers, int elements, bool fnuz,
            Elements<float>& result);
void unpack_bytes(const Lanes* registers, int elements, Elements<uint32_t>& result);

/// Multiplies every lane's elements by 2^(code - 127); code 255 is NaN.
void apply_scales(const Lanes& codes, int byte, int elements, Elements<float>& values);

/// result += A x B. The sum of one element starts from the addend and takes its products in the
/// order of ascending k, in fp32 (the order and the roundings inside of the hardware are not
/// published). Products of 16-bit and smaller elements are exact.
/// @param result  the accumulator's registers: 4 (16 x 16) or 16 (32 x 32) per block
template <int kSize, class T>
void multiply(const Elements<T>& a, const Elements<T>& b, int elements, Lanes* result);

/// The same for `kBlocks` independent products of `elements` steps: lane l belongs to block
/// l / size. A's block is shared by 2^cbsz blocks if cbsz is not 0: abid says which one.
template <int kSize, int kBlocks, class T>
void multiply_blocks(const Elements<T>& a, const Elements<T>& b, int elements, int cbsz, int abid,
                     Lanes* result);

}  // namespace hipdecode::sim
