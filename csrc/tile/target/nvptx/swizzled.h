// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../dtypes.h"
#include "memory.h"
#include "wgmma.h"

// Operands that the matrix unit reads from shared memory whichever way round: blocks of 64 rows by
// 64 columns of 16 bits, a row in 128 bytes, of which 16-byte chunk c is in place c ^ (row % 8).
// Eight rows of a chunk column and eight chunks of a row both fall into different banks.
namespace hipdecode::tile::nvptx {

inline constexpr int kBlockBytes = 64 * 128;

/// Where chunk `chunk` of a row lies, chunks of 8 columns counted over neighbouring blocks.
TILE_FN int swizzled(int row, int chunk) {
  return chunk / 8 * kBlockBytes + row * 128 + (chunk ^ row) % 8 * 16;
}

/// Keys of 64 tokens in blocks; values are the first columns. The last block is for columns that
/// are no values, or for weights only.
template <int kHeadDim, int kHeadDimV, abi::DType kType>
struct SwizzledKeys {
  static constexpr bool kFp8 = false, kSwizzled = true;
  static constexpr abi::DType kOperand = kType;  // what is computed with
  static constexpr int kTokens = 64, kRowBytes = kHeadDim * 2;
  static constexpr int kBlocks = kHeadDim / 64, kValueBlocks = kHeadDimV / 64;
  static constexpr int kBytes = (kValueBlocks + 1) * kBlockBytes;
  static_assert(!kIsFp8<kType> && kHeadDim % 64 == 0 && kHeadDimV % 128 == 0);
  static_assert(kBlocks == kValueBlocks || kBlocks == kValueBlocks + 1);
};

/// Neighbouring blocks as an operand; `stride` is from block to block where a product needs several
/// of them side by side. Sixteen of depth are 32 bytes further where the depth runs along the
/// columns, 16 rows where it runs along the rows.
TILE_FN uint64_t block_operand(uint32_t address, int stride = 0) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = 8 * 128;
  // shuffled here, so that offsets are added in uniform registers
  const uint32_t place = __shfl_sync(~0u, (address & 0x3ffff) >> 4, 0);
  return kSwizzle128 | kEightRows >> 4 << 32 | static_cast<uint64_t>(stride >> 4) << 16 | place;
}

}  // namespace hipdecode::tile::nvptx
