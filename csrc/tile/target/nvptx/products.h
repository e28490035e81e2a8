// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "convert.h"
#include "key_ring.h"
#include "memory.h"
#include "wgmma.h"

// The two products of attention with the keys on the matrix unit's long side, so that 16 query rows
// do not pay for 64: scores^T = keys x queries^T and output^T = values^T x weights^T. Keys go from
// their slot through registers, where fp8 becomes fp16; queries and weights lie in shared memory.
//
// A group of products runs while the words of the next are converted and those after it are read.
namespace hipdecode::tile::nvptx {

/// Where 8 neighbouring depths of row r of an operand of kRows rows begin: core matrices of 8 rows
/// by 16 bytes, rows first; where there is room, so far apart that the chunks of a row, written at
/// once, lie in different banks.
template <int kRows>
constexpr int kChunkBytes = kRows * 16 + (kRows < 64 ? 16 : 0);

/// scores = keys x queries^T over the whole depth: 64 tokens, 16 a wave, by N of the kQueryRows
/// query rows.
template <class Keys, int kHeadDim, int kQueryRows, int kBatch>
struct ScoreProduct {
  static constexpr int kSteps = kHeadDim / 16, kBatches = kSteps / kBatch;
  static constexpr int kDeep = Keys::kFp8 ? 2 : 3;
  static constexpr int kReads = Keys::kFp8 ? kBatch / 2 : kBatch;
  static_assert(kSteps % kBatch == 0 && (!Keys::kFp8 || kBatch % 2 == 0));

  uint32_t fragments[kDeep][4 * kBatch], words[kReads][4], from;

  /// @param slot the tile's keys; of a wave: rows of its 16 tokens
  template <int kWords>
  TILE_FN void run(float (&scores)[kWords], uint32_t slot, uint64_t queries, int wave) {
    run(scores, slot, queries, wave, [](int) {});
  }
  /// @param behind called with the number of every batch that is under way
  template <int kWords, class Behind>
  TILE_FN void run(float (&scores)[kWords], uint32_t slot, uint64_t queries, int wave,
                   const Behind& behind) {
    from = slot + (16 * wave + lane() % 16) * Keys::kPitch + lane() / 16 * 16;
    read(0);
    convert(0);
    read(1);
#pragma unroll
    for (int batch = 0; batch < kBatches; ++batch) {
      begin_products();
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int step = batch * kBatch + i;
        multiply<Keys::kOperand>(scores, &fragments[batch % kDeep][4 * i],
                                 advanced(queries, step * 2 * kChunkBytes<kQueryRows>), step > 0);
      }
      end_products();
      behind(batch);
      if (batch + 1 == kBatches) break;
      if (batch > 0) wait_for_products<1>();
      convert(batch + 1);
      read(batch + 2);
    }
    wait_for_products<0>();
  }

 private:
  TILE_FN void read(int batch) {
    if (batch >= kBatches) return;
#pragma unroll
    for (int i = 0; i < kReads; ++i) {
      const uint32_t address = from + (batch * kReads + i) * 32;
      if constexpr (Keys::kFp8)
        load_matrices(words[i], address);
      else
        load_matrices(reinterpret_cast<uint32_t (&)[4]>(fragments[batch % kDeep][4 * i]), address);
    }
  }

  /// A word has four depths of a token, of which the lower two go to one half of a step and the
  /// upper two to the other: query_slot() says so to the queries.
  TILE_FN void convert(int batch) {
    if constexpr (Keys::kFp8) {
      uint32_t* f = fragments[batch % kDeep];
#pragma unroll
      for (int i = 0; i < kReads; ++i) {
        widen(words[i][0], f[8 * i], f[8 * i + 2]);
        widen(words[i][1], f[8 * i + 1], f[8 * i + 3]);
        widen(words[i][2], f[8 * i + 4], f[8 * i + 6]);
        widen(words[i][3], f[8 * i + 5], f[8 * i + 7]);
      }
    }
  }
};

/// output += values^T x weights^T over 64 tokens: kBlocks blocks of 64 columns, 16 a wave, by N
/// query rows. Of fp8, rows g and g + 8 of a wave's 16 are columns 2g and 2g + 1.
template <class Keys, int kQueryRows, int kBlocks>
struct ValueProduct {
  // groups of products that are under way at once: few steps make a group short for many rows
  static constexpr int kOpen = kQueryRows < 64 ? 1 : 2, kDeep = kOpen + (Keys::kFp8 ? 1 : 2);
  // steps of 16 tokens in a group of products; many rows leave few registers
  static constexpr int kBatch = kQueryRows < 64 ? 4 : 2;
  static constexpr int kReads = Keys::kFp8 ? kBatch / 2 : kBatch;
  static constexpr int kParts = Keys::kTokens / 16 / kBatch, kBatches = kBlocks * kParts;
  // Batches read ahead: reading takes longer than two steps' products do, and words of fp8 wait in
  // registers of their own until they are converted.
  static constexpr int kLead = Keys::kFp8 && kBatch == 2 ? 3 : 2;

  uint32_t fragments[kDeep][4 * kBatch], words[kLead - 1][kReads][4], from;

  /// Reads ahead; the weights need not be there yet.
  TILE_FN void start(uint32_t slot, int column, int wave) {
    const int own = (column + 16 * wave) * Keys::kElement;
    from = Keys::kFp8
               ? slot + lane() * Keys::kPitch + own
               : slot + (lane() % 8 + lane() / 16 * 8) * Keys::kPitch + own + lane() / 8 % 2 * 16;
    read(0);
    if constexpr (kLead > 2) read(1);
    convert(0);
    read(kLead - 1);
  }

  template <int kWords>
  TILE_FN void run(float (&output)[kBlocks][kWords], uint64_t weights) {
#pragma unroll
    for (int batch = 0; batch < kBatches; ++batch) {
      begin_products();
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int step = batch % kParts * kBatch + i;
        multiply<Keys::kOperand>(output[batch / kParts], &fragments[batch % kDeep][4 * i],
                                 advanced(weights, step * 2 * kChunkBytes<kQueryRows>), 1);
      }
      end_products();
      if (batch + 1 == kBatches) break;
      if (batch >= kOpen) wait_for_products<kOpen>();
      convert(batch + 1);
      read(batch + kLead);
    }
  }

 private:
  TILE_FN void read(int batch) {
    if (batch >= kBatches) return;
    const uint32_t block = from + batch / kParts * 64 * Keys::kElement;
#pragma unroll
    for (int i = 0; i < kReads; ++i) {
      constexpr int kTokens = 16 * kBatch / kReads;
      const uint32_t address = block + (batch % kParts * 16 * kBatch + i * kTokens) * Keys::kPitch;
      if constexpr (Keys::kFp8)
        load_matrices_transposed(words[batch % (kLead - 1)][i], address);
      else
        load_matrices_transposed(reinterpret_cast<uint32_t (&)[4]>(fragments[batch % kDeep][4 * i]),
                                 address);
    }
  }

  /// A word has two columns of two tokens; two words become four tokens of one column each.
  TILE_FN void convert(int batch) {
    if constexpr (Keys::kFp8) {
      uint32_t* f = fragments[batch % kDeep];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const uint32_t* w = &words[batch % (kLead - 1)][i / 2][i % 2 * 2];
        const uint32_t a = w[0], b = w[1];
        widen(__byte_perm(a, b, 0x6420), f[4 * i], f[4 * i + 2]);
        widen(__byte_perm(a, b, 0x7531), f[4 * i + 1], f[4 * i + 3]);
      }
    }
  }
};

/// Writes the weights of 16 tokens of this wave and N query rows from `row` on as an operand of
/// kQueryRows rows.
template <class Keys, int kQueryRows, int kWords>
TILE_FN void store_weights(uint32_t to, const float (&weights)[kWords], int row, int wave) {
#pragma unroll
  for (int block = 0; block < kWords / 4; block += 2) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* w = &weights[4 * (block + i % 2) + i / 2 * 2];
      words[i] = pack<Keys::kOperand>(w[0], w[1]);
    }
    const int matrix = lane() / 8;
    store_matrices_transposed(to + (2 * wave + matrix / 2) * kChunkBytes<kQueryRows> +
                                  (row + 8 * (block + matrix % 2) + lane() % 8) * 16,
                              words);
  }
}

}  // namespace hipdecode::tile::nvptx
