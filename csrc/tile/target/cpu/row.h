// SPDX-License-Identifier: MIT
#pragma once

#include "vector.h"

namespace hipdecode::tile {

/// destination[i] = source[i] * scale, as that type
TILE_FN void write_row(void* destination, const float* source, float scale, int count,
                       abi::DType type) {
  if (type == abi::DType::fp32) {
    for (int i = 0; i < count; ++i) static_cast<float*>(destination)[i] = source[i] * scale;
    return;
  }
  if (type == abi::DType::fp8_e4m3fn || type == abi::DType::fp8_e4m3fnuz) {
    auto* out = static_cast<uint8_t*>(destination);
    const bool fn = type == abi::DType::fp8_e4m3fn;
    for (int i = 0; i < count; ++i)
      out[i] =
          fn ? float_to_fp8_e4m3fn(source[i] * scale) : float_to_fp8_e4m3fnuz(source[i] * scale);
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

/// Partials that a wave has on their way where it merges whole rows, and into how many parts a row
/// is divided where many waves merge few rows.
inline constexpr int kMergeAhead = 4, kMergeParts = 1;

/// One row of at most kMost fp32 elements, shared by the lanes of a wave.
template <int kMost>
class Row {
 public:
  void clear() { std::memset(sum_, 0, sizeof(sum_)); }

  /// Rows that are about to be added: here they stay where they are.
  template <int kPartials>
  struct Partials {
    const float* row[kPartials];
  };
  template <int kPartials>
  static Partials<kPartials> load(const float* const (&from)[kPartials], int) {
    Partials<kPartials> partials;
    for (int n = 0; n < kPartials; ++n) partials.row[n] = from[n];
    return partials;
  }

  /// Adds weight * partial of each, in order; a weight of zero adds nothing, whatever the partial
  /// holds.
  template <int kPartials>
  void add(const Partials<kPartials>& partials, const float (&weights)[kPartials], int count) {
    int i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      Vec sum = tile::load(sum_ + i);
      for (int n = 0; n < kPartials; ++n)
        if (weights[n] != 0) sum += tile::load(partials.row[n] + i) * weights[n];
      tile::store(sum_ + i, sum);
    }
    for (; i < count; ++i)
      for (int n = 0; n < kPartials; ++n)
        if (weights[n] != 0) sum_[i] += weights[n] * partials.row[n][i];
  }

  /// destination[i] = element i * scale, as that type.
  void store(void* destination, float scale, int count, abi::DType type) const {
    write_row(destination, sum_, scale, count, type);
  }

 private:
  alignas(kCacheLine) float sum_[kMost];
};

}  // namespace hipdecode::tile
