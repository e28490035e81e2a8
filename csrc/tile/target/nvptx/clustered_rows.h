// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../concepts.h"
#include "cluster.h"
#include "convert.h"

namespace hipdecode::tile::nvptx {

/// Rows of which each block of a cluster has a part, over its own keys, in its shared memory: not
/// normalised, beside their maxima in base 2 and their sums. All waves of all blocks write some.
template <int kHeadDimV, int kRows, int kWaves>
struct ClusteredRows {
  // eight rows by four lanes fall into different banks
  static constexpr int kPitch = kHeadDimV + 8, kBytes = kRows * kPitch * sizeof(float);

  /// A block's part in rows that `blocks` neighbours of a cluster have seen keys of.
  struct Share {
    int rank, blocks;
    int first_row;  // of all rows: it says in which order the blocks' parts are added up
  };

  void* parts;        // kRows rows of kPitch floats
  const float* tops;  // of rows
  const float* sums;

  static TILE_FN float* place(void* parts, int row) {
    return static_cast<float*>(parts) + row * kPitch;
  }

  template <class Target>
  TILE_FN void write(int wave, int rows, const Target& target, const Share& share) const {
    if (share.blocks == 1) {
      __syncthreads();
      return write_share(wave, rows, target, share);
    }
    announce_to_cluster();
    wait_for_cluster();
    write_share(wave, rows, target, share);
    // a block stays until nobody reads its rows any more
    come_to_cluster();
    wait_for_cluster();
  }

 private:
  // a row passes by chunks of 128 columns; so many reads of them are on their way
  static constexpr int kChunks = kHeadDimV / (4 * kLanes), kReads = 4 * kChunks;
  static constexpr int kChunkBytes = 4 * kLanes * static_cast<int>(sizeof(float));
  static_assert(kChunks == 4);

  /// What a lane knows: what one block's part of one row weighs, and where the row goes.
  struct Own {
    float weight;
    uint64_t o = 0;
    abi::DType type{};
  };

  /// @param spread lanes of a row, a power of two
  /// @param first_rank of the share's blocks in the cluster
  template <class Target>
  TILE_FN Own look_up(int row, int rows, const Target& target, const Share& share, int spread,
                      int first_rank, bool tells) const {
    const int part = lane() % spread;
    float top = -kInfinity, sum = 0;
    if (row < rows && part < share.blocks) {
      top = read_near(address_in(shared_address(&tops[row]), first_rank + part));
      sum = read_near(address_in(shared_address(&sums[row]), first_rank + part));
    }
    float best = top;
    TILE_ROLLED
    for (int distance = 1; distance < spread; distance *= 2)
      best = fmaxf(best, __shfl_xor_sync(~0u, best, distance));
    Own own{top == -kInfinity ? 0 : exp2(top - best)};
    sum *= own.weight;
    TILE_ROLLED
    for (int distance = 1; distance < spread; distance *= 2)
      sum += __shfl_xor_sync(~0u, sum, distance);
    if (row < rows) {
      const RowTarget to = target(row);
      own.o = reinterpret_cast<uint64_t>(to.o), own.type = to.type;
      const float log2_sum = log2(sum);
      if (to.lse != nullptr && part == 0 && tells) *to.lse = row_lse(best, sum, log2_sum);
      own.weight *= row_scale(sum, 1);
      if (to.sink != -kInfinity && sum != 0)
        own.weight *= share_beside(to.sink, best + log2_sum, [](float x) { return exp2(x); });
    }
    own.type = static_cast<abi::DType>(__shfl_sync(~0u, static_cast<int>(own.type), 0));
    return own;
  }

  /// Writes this wave's share of the rows.
  template <class Target>
  TILE_FN void write_share(int wave, int rows, const Target& target, const Share& share) const {
    // few rows for many waves: a wave takes some of a row's columns
    const int blocks = share.blocks, waves = blocks * kWaves;
    const int bits = waves <= kRows ? 2 : waves <= 2 * kRows ? 1 : 0, chunks = 1 << bits;
    const int each = kChunks >> bits, unit = wave * blocks + share.rank, side = unit & (each - 1);
    const int first = unit * chunks / kChunks, step = waves * chunks / kChunks;
    const int column = (side * chunks * kLanes + lane()) * 4;
    const int first_rank = rank_in_cluster() - share.rank;
    const int spread = blocks <= 1 ? 1 : 1 << (32 - __clz(blocks - 1));
    const Own own =
        look_up(first + lane() / spread * step, rows, target, share, spread, first_rank, side == 0);
    TILE_ROLLED
    for (int at = first, from = 0; at < rows; at += step, from += spread) {
      // each begins with another block: else all would read the same one's at a time
      const int begin = (share.first_row + at + side) % blocks;
      const uint32_t row = shared_address(place(parts, at) + column);
      float4 merged[kChunks] = {};
      TILE_ROLLED
      for (int done = 0; done < blocks; done += kReads >> bits) {
        float4 read[kReads];
#pragma unroll
        for (int i = 0; i < kReads; ++i) {
          const int turn = done + (i >> bits);
          const uint32_t there = address_in(row, first_rank + turned(begin, turn, blocks));
          if (turn < blocks) read[i] = read_four_near(there + (i & (chunks - 1)) * kChunkBytes);
        }
#pragma unroll
        for (int i = 0; i < kReads; ++i) {
          const int turn = done + (i >> bits);
          const float by = __shfl_sync(~0u, own.weight, from + turned(begin, turn, blocks));
          if (turn < blocks) add(merged[i % kChunks], read[i], by);
        }
      }
      // sums of few chunks have gone to several places
      if (each > 1) add(merged[0], merged[2], 1), add(merged[1], merged[3], 1);
      if (each > 2) add(merged[0], merged[1], 1);
      const uint64_t o = of_lane(own.o, from);
      if (o != 0) write_row(o, column, merged, chunks, own.type);
    }
  }

  /// The block whose part comes after `turn` others, from block `begin` on.
  static TILE_FN int turned(int begin, int turn, int blocks) {
    return begin + turn < blocks ? begin + turn : begin + turn - blocks;
  }

  static TILE_FN void add(float4& sum, const float4& part, float by) {
    sum.x += part.x * by, sum.y += part.y * by, sum.z += part.z * by, sum.w += part.w * by;
  }

  static TILE_FN void write_row(uint64_t to, int column, const float4 (&row)[kChunks], int chunks,
                                abi::DType type) {
    to += column * 2;
    const bool aligned = to % sizeof(uint2) == 0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c >= chunks) continue;
      const uint2 words = {pack_as(row[c].x, row[c].y, type), pack_as(row[c].z, row[c].w, type)};
      if (aligned) {
        reinterpret_cast<uint2*>(to)[c * kLanes] = words;
        continue;
      }
      auto* halves = reinterpret_cast<uint16_t*>(to) + c * kLanes * 4;
      halves[0] = static_cast<uint16_t>(words.x), halves[1] = static_cast<uint16_t>(words.x >> 16);
      halves[2] = static_cast<uint16_t>(words.y), halves[3] = static_cast<uint16_t>(words.y >> 16);
    }
  }

  static TILE_FN uint64_t of_lane(uint64_t value, int from) {
    const auto low = static_cast<uint32_t>(value), high = static_cast<uint32_t>(value >> 32);
    return uint64_t{__shfl_sync(~0u, high, from)} << 32 | __shfl_sync(~0u, low, from);
  }
};

}  // namespace hipdecode::tile::nvptx
