// SPDX-License-Identifier: MIT
#pragma once

#include "../abi/mla_decode_reduce_params.h"
#include "parts/lse_merge.h"
#include "parts/split_range.h"

namespace hipdecode::kernels {

/// Merges the splits of requests with one query row each by LSE: where a partial lies and how many
/// there are follows from the row and its length alone. Splits without keys are never read; a
/// request without keys comes out as zero.
/// @tparam kSplits partials of a row at most
/// @tparam kAhead of them on their way at a time
/// @tparam kVec neighbouring columns that a lane reads as one
template <int kSplits, int kAhead, int kVec>
struct MlaDecodeReduce {
  using Params = abi::MlaDecodeReduceParams;
  using Strip = tile::Strip<kVec>;
  static constexpr int kWaves = 4;
  static constexpr bool kWaits = true;  // for KernelInfo
  struct Shared {};
  static_assert(kAhead <= kSplits);

  /// Columns of one head of one request.
  struct Unit {
    int32_t request, head, column;

    TILE_FN Unit(const Params& p, uint32_t parts, uint32_t unit) {
      const int32_t vector = quotient(static_cast<int32_t>(unit), static_cast<int32_t>(parts));
      request = quotient(vector, p.nhead);
      head = vector - request * p.nhead;
      column = static_cast<int32_t>(unit - vector * parts) * Strip::kColumns;
    }
  };

  static TILE_FN void run(const Params& p, tile::Block block, Shared&) {
    // stage 0: which columns a wave takes follows from its number alone
    const uint32_t parts = (p.head_dim_v + Strip::kColumns - 1) / Strip::kColumns;
    const uint32_t units = static_cast<uint32_t>(p.batch) * p.nhead * parts;
    const uint32_t step = static_cast<uint32_t>(block.count()) * block.waves();
    uint32_t number = block.index() * block.waves() + block.wave();
    Unit unit(p, parts, number);
    tile::await_earlier_launches();
    if (number >= units) return;
    TILE_ROLLED
    for (;;) {
      merge(tile::reread(p), unit.request, unit.head, unit.column);
      if ((number += step) >= units) return;
      unit = Unit(tile::reread(p), parts, number);
    }
  }

  /// stage 1: one wave merges the columns from `column` on.
  static TILE_FN void merge(const Params& p, int32_t request, int32_t head, int32_t column) {
    const int32_t begin = p.kv_indptr[request], end = p.kv_indptr[request + 1];
    int32_t row = request;
    if (p.qo_indptr != nullptr) {
      row = p.qo_indptr[request];
      if (p.qo_indptr[request + 1] <= row || row < 0 || row >= p.rows) return;
    }
    const int32_t left = p.head_dim_v - column;
    // bytes from one split's partial to the next: an address is then one instruction
    const int64_t first = int64_t{row} * kSplits * p.nhead + head;
    const uint32_t lse_step = static_cast<uint32_t>(p.nhead) * sizeof(float);
    const uint32_t o_step = lse_step * static_cast<uint32_t>(p.head_dim_v);
    const auto* partial_o =
        reinterpret_cast<const char*>(p.partial_o + first * p.head_dim_v + column);
    const auto* partial_lse = reinterpret_cast<const char*>(p.partial_lse + first);
    auto* o = static_cast<uint16_t*>(p.o) + row * p.o_stride_row + head * p.o_stride_head;
    const bool tells = column == 0 && p.lse != nullptr;
    const int32_t used = dealt_splits(int64_t{end} - begin, kSplits);
    merge_partials<Strip, kAhead, tile::Few<kSplits>>(
        {o + column, tells ? p.lse + int64_t{row} * p.nhead + head : nullptr, p.o_dtype}, used,
        left < Strip::kColumns ? left : Strip::kColumns, [&](int32_t k) -> Partial {
          const auto at = static_cast<uint32_t>(k);
          return {reinterpret_cast<const float*>(partial_o + uint64_t{at} * o_step),
                  reinterpret_cast<const float*>(partial_lse + uint64_t{at} * lse_step)};
        });
  }
};

}  // namespace hipdecode::kernels
