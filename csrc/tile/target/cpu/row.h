// SPDX-License-Identifier: MIT
#pragma once

#include "vector.h"

namespace hipdecode::tile {

/// destination[i] = source[i] * scale, as bf16 or fp16 or fp32
TILE_FN void write_row(void* destination, const float* source, float scale, int count,
                       abi::DType type) {
  if (type == abi::DType::fp32) {
    for (int i = 0; i < count; ++i) static_cast<float*>(destination)[i] = source[i] * scale;
    return;
  }
  auto* out = static_cast<uint16_t*>(destination);
  const bool bf16 = type == abi::DType::bf16;
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vec value = load(source + i) * scale;
    bf16 ? narrow<abi::DType::bf16>(out + i, value) : narrow<abi::DType::fp16>(out + i, value);
  }
  for (; i < count; ++i)
    out[i] = bf16 ? float_to_bf16(source[i] * scale) : float_to_fp16(source[i] * scale);
}

/// One row of at most kMost fp32 elements, shared by the lanes of a wave.
template <int kMost>
class Row {
 public:
  void clear() { std::memset(sum_, 0, sizeof(sum_)); }

  /// Adds weight * partial; a weight of zero adds nothing, whatever the partial holds.
  void add(const float* partial, float weight, int count) {
    if (weight == 0) return;
    int i = 0;
    for (; i + kLanes <= count; i += kLanes)
      tile::store(sum_ + i, load(sum_ + i) + load(partial + i) * weight);
    for (; i < count; ++i) sum_[i] += weight * partial[i];
  }

  /// destination[i] = element i * scale, as bf16, fp16 or fp32.
  void store(void* destination, float scale, int count, abi::DType type) const {
    write_row(destination, sum_, scale, count, type);
  }

 private:
  alignas(kCacheLine) float sum_[kMost];
};

}  // namespace hipdecode::tile
