// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../dtypes.h"
#include "convert.h"
#include "memory.h"
#include "output.h"
#include "sync.h"

// Finished output of a warpgroup on its way to memory through shared memory: a thread has a few
// neighbours of each of its rows only, and as many stores as that takes are slower than turning
// the rows there first.
namespace hipdecode::tile::nvptx {

/// Stretches of rows in shared memory: what a wave writes at once.
struct Stretches {
  static constexpr int kBytes = kLanes * sizeof(uint4);

  /// Where a chunk of 16 bytes lies. Those in the same place of 8 neighbouring rows are in
  /// different banks, and so are two neighbours of four neighbouring rows or of every other row.
  static TILE_FN int place(int row, int chunk) {
    const int high = row >> 2 & 1, turned = ((row & 3) ^ high) << 1 | high;
    return row * kBytes + (chunk ^ turned) * 16;
  }

  /// A wave writes a stretch of each of kCount rows from `first` on.
  /// @param begin of the stretch in a row, bytes
  template <int kCount, int kRows>
  static TILE_FN void write(const RowEnds<kRows>& ends, int first, const unsigned char* room,
                            int begin) {
    static_assert(kLanes % kCount == 0);
    const int to = begin + lane() * 16;
    if (__all_sync(~0u, ends.o[first + lane() % kCount] % sizeof(uint4) == 0)) [[likely]] {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const uint64_t row = ends.o[first + i];
        if (row != 0) write_chunk(row + to, chunk_of(room, i));
      }
    } else {
      TILE_ROLLED
      for (int i = 0; i < kCount; ++i) {
        const uint64_t row = ends.o[first + i];
        if (row != 0) scatter(row + to, chunk_of(room, i));
      }
    }
  }

 private:
  static TILE_FN uint4 chunk_of(const unsigned char* room, int row) {
    return *reinterpret_cast<const uint4*>(room + place(row, lane()));
  }

  /// To an address that is a multiple of 2.
  static TILE_FN void scatter(uint64_t to, const uint4& words) {
    const uint32_t of[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      auto* halves = reinterpret_cast<uint16_t*>(to) + 2 * i;
      halves[0] = static_cast<uint16_t>(of[i]);
      halves[1] = static_cast<uint16_t>(of[i] >> 16);
    }
  }
};

/// Output of which a wave has 16 rows, kColumns of each; lane 4g + t has columns 8j + 2t and + 1 of
/// rows g (words 4j, 4j + 1) and g + 8 (the next two).
template <int kColumns, int kRows>
struct WaveOutput {
  static constexpr int kOwnRows = 16, kBytes = kOwnRows * Stretches::kBytes;
  static_assert(kColumns * 2 % Stretches::kBytes == 0);

  /// @param room of the wave, kBytes of shared memory, a multiple of a stretch
  /// @param column of the output, the warpgroup's first
  static TILE_FN void store(const float (&output)[kColumns / 2], const RowEnds<kRows>& ends,
                            unsigned char* room, int column, int wave) {
    if (ends.type == abi::DType::fp32)
      turn_and_write<true>(output, ends, room, column, kOwnRows * wave);
    else
      turn_and_write<false>(output, ends, room, column, kOwnRows * wave);
  }

 private:
  template <bool kWide>
  static TILE_FN void turn_and_write(const float (&output)[kColumns / 2],
                                     const RowEnds<kRows>& ends, unsigned char* room, int column,
                                     int row) {
    constexpr int kSize = kWide ? 4 : 2, kTurns = kColumns * kSize / Stretches::kBytes;
    const float scales[2] = {ends.scale[0][row + lane() / 4], ends.scale[0][row + lane() / 4 + 8]};
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const float* own = &output[turn * (kColumns / 2 / kTurns)];
      if (turn > 0) __syncwarp();
      if constexpr (kWide)
        lay_down_wide(own, scales, room);
      else
        lay_down(own, scales, room, ends.type);
      __syncwarp();
      Stretches::write<kOwnRows>(ends, row, room, column * kSize + turn * Stretches::kBytes);
    }
  }

  static TILE_FN void lay_down(const float* output, const float (&scales)[2], unsigned char* room,
                               abi::DType type) {
    const uint32_t to = shared_address(room) + Stretches::place(lane() % 16, lane() / 16);
#pragma unroll
    for (int i = 0; i < Stretches::kBytes / 32; ++i) {
      uint32_t words[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float* from = &output[8 * i + 2 * n];
        words[n] = pack_as(from[0] * scales[n % 2], from[1] * scales[n % 2], type);
      }
      store_matrices(to ^ i * 32, words);
    }
  }

  static TILE_FN void lay_down_wide(const float* output, const float (&scales)[2],
                                    unsigned char* room) {
    const int g = lane() / 4, t = lane() % 4;
    const int to = Stretches::place(g, t / 2) + t % 2 * 8;
#pragma unroll
    for (int i = 0; i < Stretches::kBytes / 16; ++i) {
      const float* from = &output[2 * i];
      const int row = i % 2 * 8, at = (to ^ i / 2 * 32) + row * Stretches::kBytes;
      *reinterpret_cast<float2*>(room + at) =
          float2{from[0] * scales[i % 2], from[1] * scales[i % 2]};
    }
  }
};

}  // namespace hipdecode::tile::nvptx
