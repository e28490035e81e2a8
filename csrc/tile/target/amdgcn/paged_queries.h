// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "lds.h"
#include "paged_plan.h"

namespace hipdecode::tile::amdgcn {

/// Query rows as matrix operands, the same for all waves: of one row tile in registers, of more in
/// LDS, which waves then fill together. Operand u of a row tile holds of row l % 16 the columns
/// that unit u % kUnits of the keys' chunks u / kUnits * 4 + l / 16 has.
template <class Shape>
class PagedQueries {
  using P = PagedPlan<Shape>;
  static constexpr int kOperands = P::kKeyChunks * P::kUnits;  // of a row tile
  static constexpr bool kShared = P::kRowTiles > 1;
  static constexpr int kShare = kOperands * P::kRowTiles / (kShared ? P::kWaves : 1);
  static_assert(kShare > 0);

 public:
  static constexpr int kSharedBytes = kShared ? P::kRowTiles * kOperands * 1024 : 0;

  TILE_FN PagedQueries(uint32_t shared, int wave) : shared_(shared + lane_id() * 16), wave_(wave) {}

  /// Queries start to come in; row(i) is where row i begins.
  template <class Row>
  TILE_FN void load(const Row& row) {
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const int n = kShared ? wave_ * kShare + i : i;
      const auto chunk = n % kOperands / P::kUnits * 4 + static_cast<int>(lane_id() / 16);
      const auto* begin =
          static_cast<const char*>(row(n / kOperands * 16 + static_cast<int>(lane_id() % 16)));
      words_[i] = global_read<U32x4>(begin + (chunk * P::kUnits + n % P::kUnits) * 16);
    }
  }

  /// They are there for all waves. @pre every wave of the block is here
  TILE_FN void arrive() {
    if constexpr (kShared) {
      barrier();  // LDS may still serve the rows before
#pragma unroll
      for (int i = 0; i < kShare; ++i)
        lds_write(shared_ + static_cast<uint32_t>(wave_ * kShare + i) * 1024, words_[i]);
      barrier();
    } else {
#pragma unroll
      for (U32x4& word : words_) word = recomputed(word);  // waited for once, not in the loop
    }
  }

  TILE_FN U32x4 operand(int row_tile, int u) const {
    if constexpr (kShared)
      return lds_read<U32x4>(shared_ + static_cast<uint32_t>(row_tile * kOperands + u) * 1024);
    else
      return words_[u];
  }

 private:
  uint32_t shared_;
  int wave_;
  U32x4 words_[kShare];
};

}  // namespace hipdecode::tile::amdgcn
