// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../state/wave.h"

namespace hipdecode::sim {

// Transposing reads: sixteen lanes hold a matrix of 16 columns in lane order, a row in one or
// several lanes; each lane receives one column.
inline constexpr int kTransposeLanes = 16;

/// Whole elements: the lanes' words one after the other are the matrix.
template <class T>
void transpose(const Lanes* from, int block, Lanes* to) {
  constexpr size_t kRows = 8 / sizeof(T);
  std::array<std::array<T, kTransposeLanes>, kRows> matrix;
  std::array<std::array<T, kRows>, kTransposeLanes> columns;
  std::array<uint64_t, kTransposeLanes> words;
  for (size_t lane = 0; lane < kTransposeLanes; ++lane) {
    const int source = block + static_cast<int>(lane);
    words[lane] = uint64_t{from[1][source]} << 32 | from[0][source];
  }
  std::memcpy(matrix.data(), words.data(), sizeof(matrix));
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t column = 0; column < kTransposeLanes; ++column)
      columns[column][row] = matrix[row][column];
  }
  std::memcpy(words.data(), columns.data(), sizeof(words));
  for (size_t lane = 0; lane < kTransposeLanes; ++lane) {
    to[0][block + static_cast<int>(lane)] = static_cast<uint32_t>(words[lane]);
    to[1][block + static_cast<int>(lane)] = static_cast<uint32_t>(words[lane] >> 32);
  }
}

/// Elements of kBits, 16 of them in a lane: a row each.
template <int kBits, int kDwords>
void transpose_bits(const Lanes* from, int block, Lanes* to) {
  const auto bits = [&](int lane, int bit) {
    const int next = bit / 32 + 1 < kDwords ? bit / 32 + 1 : bit / 32;
    const uint64_t pair = uint64_t{from[next][lane]} << 32 | from[bit / 32][lane];
    return pair >> bit % 32 & ((1u << kBits) - 1);
  };
  for (int column = 0; column < kTransposeLanes; ++column) {
    std::array<uint32_t, kDwords + 1> value{};
    for (int row = 0; row < kTransposeLanes; ++row) {
      const uint64_t placed = bits(block + row, column * kBits) << row * kBits % 32;
      const auto dword = static_cast<size_t>(row * kBits / 32);
      value[dword] |= static_cast<uint32_t>(placed);
      value[dword + 1] |= static_cast<uint32_t>(placed >> 32);
    }
    for (int i = 0; i < kDwords; ++i) to[i][block + column] = value[static_cast<size_t>(i)];
  }
}

}  // namespace hipdecode::sim
