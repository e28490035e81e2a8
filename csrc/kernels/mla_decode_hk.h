// SPDX-License-Identifier: MIT
#pragma once

#include "parts/lse_merge.h"
#include "parts/mla_tile.h"
#include "parts/split_range.h"

namespace hipdecode::kernels {

/// MLA decode without a plan: one block per (request, tile of query rows, split of its keys), one
/// launch. The split points follow from the request's own length and num_splits, so its bits do not
/// depend on its neighbours. Splits are merged in order: where all blocks of a launch run at the
/// same time, by all blocks of the tile, else by the last of them to finish.
template <class Shape>
struct MlaDecodeHk {
  using Params = abi::MlaDecodeParams;
  using Tile = MlaTile<Shape, tile::Schedule::hk>;
  using Tiles = typename Tile::Tiles;
  using Shared = typename Tiles::Shared;
  static constexpr int kWaves = Tiles::kWaves, kRows = Tiles::kRows;
  static constexpr int32_t kMinSplitTokens = 64;
  static constexpr bool kMeets = tile::kBlocksMeet;  // for KernelInfo

  /// What a request's entry of every list says.
  struct Request {
    int64_t first_row, end_row;
    int32_t first_page, end_page, last_page;

    /// Nothing is computed before all of it is on its way.
    TILE_FN Request(const Params& p, int64_t request)
        : first_row(p.qo_indptr[request]),
          end_row(p.qo_indptr[request + 1]),
          first_page(p.kv_indptr[request]),
          end_page(p.kv_indptr[request + 1]),
          last_page(kernels::last_page(p, request)) {
      first_row = clamp(first_row, 0, p.rows_q);
      end_row = clamp(end_row, first_row, p.rows_q);
    }

    TILE_FN int32_t context_tokens(const Params& p) const {
      const int64_t pages = clamp(int64_t{end_page} - first_page, 0, p.num_kv_indices);
      return tokens_of(p, pages, last_page);
    }
  };

  /// A tile of query rows, and which of its keys are this block's.
  struct Work {
    int32_t tile_index = 0;
    int32_t split = 0, used = 0;  // of the splits those that have keys, one at least
    int64_t first_row = 0, q_len = 0;
    int32_t begin = 0, packed = 0, stride = 0;  // packed rows of the first pass, all, of one pass
    KeySpan keys{};

    TILE_FN bool exists() const { return split < used && begin < packed; }
    TILE_FN QuerySpan rows(int32_t begin) const {
      return {first_row, 0, q_len, begin, begin + kRows < packed ? begin + kRows : packed};
    }
  };

  static TILE_FN void run(const Params& p, tile::Block block, Shared& shared) {
    // stage 0: which request, rows and keys
    const Work work = work_of(p, block);
    if (work.exists()) {
      const Destination to =
          work.used == 1
              ? Destination{false, work.first_row, 1}
              : Destination{true, work.first_row * p.num_splits + work.split, p.num_splits};
      // stage 1: attend; a tile has one pass unless a request is longer than max_seqlen_q
      Tiles tiles(shared, block);
      for (int32_t begin = work.begin; begin < work.packed; begin += work.stride)
        Tile::run(p, work.rows(begin), work.keys, to, tiles);
      // stage 2: the splits become one
      if (work.used > 1) merge(tile::reread(p), block, work);
    }
    clear_unowned_rows<Shape::kHeadDimV>(tile::reread(p), block);
  }

  static TILE_FN Work work_of(const Params& p, tile::Block block) {
    Work work;
    work.tile_index = quotient(block.index(), p.num_splits);
    const int32_t request_index = quotient(work.tile_index, p.row_tiles);
    if (request_index >= p.batch) return work;
    const Request request(p, request_index);
    work.split = block.index() - work.tile_index * p.num_splits;
    work.first_row = request.first_row;
    work.q_len = request.end_row - request.first_row;
    work.begin = (work.tile_index - request_index * p.row_tiles) * kRows;
    work.packed = packed_rows(p, work.q_len);
    work.stride = p.row_tiles * kRows;
    const int32_t tokens = request.context_tokens(p);
    const SplitRange part = split_range(tokens, p.num_splits, work.split, kMinSplitTokens);
    work.used = part.used;
    work.keys = {.first_index = request.first_page,
                 .begin = part.begin,
                 .end = part.end,
                 .causal_end = tokens};
    return work;
  }

  static TILE_FN void merge(const Params& p, tile::Block block, const Work& work) {
    int32_t* arrivals = p.arrivals + work.tile_index;
    if constexpr (tile::kBlocksMeet) {
      if (p.together != 0) {
        tile::meet(arrivals, work.used, block);
        return merge_together(p, block, work);
      }
    }
    if (tile::arrive(arrivals, work.used, block) == work.used - 1)
      merge_share<Shape::kHeadDimV, tile::kMergeAhead>(p, block, work, 0, 1);
  }

  /// All blocks of the tile take part: few columns at a time where waves would have nothing to do
  /// else.
  static TILE_FN void merge_together(const Params& p, tile::Block block, const Work& work) {
    constexpr int kWide = Shape::kHeadDimV / tile::kMergeParts, kNarrow = kWide / tile::kMergeParts;
    if (kRows * tile::kMergeParts * 2 <= work.used * block.waves())
      merge_share<kNarrow, tile::kMergeAhead * 4>(p, block, work, work.split, work.used);
    else
      merge_share<kWide, tile::kMergeAhead * 2>(p, block, work, work.split, work.used);
  }

  /// One share of a merge: a wave takes kColumns of a row at a time.
  template <int kColumns, int kAhead>
  static TILE_FN void merge_share(const Params& p, tile::Block block, const Work& work,
                                  int32_t share, int32_t shares) {
    constexpr int kParts = Shape::kHeadDimV / kColumns;
    if (block.wave() >= block.waves()) return;  // it fetches
    TILE_ROLLED
    for (int32_t begin = work.begin; begin < work.packed; begin += work.stride) {
      const int32_t units = (work.rows(begin).end - begin) * kParts;
      TILE_ROLLED
      for (int32_t unit = block.wave() * shares + share; unit < units;
           unit += block.waves() * shares)
        merge_row<kColumns, kAhead>(p, work, begin + unit / kParts, unit % kParts * kColumns);
    }
  }

  template <int kColumns, int kAhead>
  static TILE_FN void merge_row(const Params& p, const Work& work, int32_t r, int32_t column) {
    const int64_t row = work.first_row + r / p.nhead;
    const int32_t head = r % p.nhead;
    auto* o = static_cast<uint16_t*>(p.o) + row * p.o_stride_row + head * p.o_stride_head;
    const bool first = column == 0 && p.lse != nullptr;
    // bytes from one split's partial to the next: an address is then one instruction
    const int64_t base = row * p.num_splits * p.nhead + head;
    const uint32_t lse_step = static_cast<uint32_t>(p.nhead) * sizeof(float);
    const uint32_t o_step = lse_step * Shape::kHeadDimV;
    const auto* partial_o =
        reinterpret_cast<const char*>(p.partial_o + base * Shape::kHeadDimV + column);
    const auto* partial_lse = reinterpret_cast<const char*>(p.partial_lse + base);
    merge_partials<tile::Row<kColumns>, kAhead>(
        {o + column, first ? p.lse + row * p.nhead + head : nullptr, p.o_dtype}, work.used,
        kColumns, [&](int32_t k) -> Partial {
          const auto at = static_cast<uint32_t>(k);
          return {reinterpret_cast<const float*>(partial_o + uint64_t{at} * o_step),
                  reinterpret_cast<const float*>(partial_lse + uint64_t{at} * lse_step)};
        });
  }
};

}  // namespace hipdecode::kernels
