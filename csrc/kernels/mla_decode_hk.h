// SPDX-License-Identifier: MIT
#pragma once

#include "parts/mla_tile.h"
#include "parts/split_range.h"
#include "parts/strand_merge.h"

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
  static constexpr int32_t kMinSplitTokens = 64, kMostRows = 0x7fffffff;
  static constexpr bool kForesees = requires { Tiles::blocks_at_once(); };
  static constexpr bool kSpares = requires { Tiles::kSpareWaves; };
  static constexpr bool kMeets = tile::kBlocksMeet;  // for KernelInfo

  /// What a request's entry of every list says.
  struct Request {
    int32_t first_row, end_row, first_page, end_page, last_page;

    /// Nothing is computed before all of it is on its way.
    TILE_FN Request(const Params& p, int64_t request)
        : first_row(p.qo_indptr[request]),
          end_row(p.qo_indptr[request + 1]),
          first_page(p.kv_indptr[request]),
          end_page(p.kv_indptr[request + 1]),
          last_page(kernels::last_page(p, request)) {
      const auto rows = static_cast<int32_t>(p.rows_q < kMostRows ? p.rows_q : kMostRows);
      first_row = first_row < 0 ? 0 : first_row < rows ? first_row : rows;
      end_row = end_row < first_row ? first_row : end_row < rows ? end_row : rows;
    }

    TILE_FN int32_t context_tokens(const Params& p) const {
      return tokens_of(p, first_page, end_page, last_page);
    }
  };

  /// A tile of query rows, and which of its keys are this block's.
  struct Work {
    int32_t tile_index = 0;
    int32_t split = 0, split_keys = 1, first_row = 0, q_len = 0, tokens = 0;
    int32_t begin = 0, packed = 0, stride = 0;  // packed rows of the first pass, all, of one pass
    KeySpan keys{};

    /// The first split exists even without keys.
    TILE_FN bool exists() const { return (split == 0 || keys.begin < tokens) && begin < packed; }
    TILE_FN bool whole() const { return tokens <= split_keys; }
    /// Splits that have keys, where there are several.
    TILE_FN int32_t used() const { return quotient(tokens + split_keys - 1, split_keys); }
    TILE_FN QuerySpan rows(int32_t begin) const {
      return {first_row, 0, q_len, begin, begin + kRows < packed ? begin + kRows : packed};
    }
  };

  static TILE_FN void run(const Params& p, tile::Block block, Shared& shared) {
    run(p, block, shared, prepare(p, block.index()));
  }

  static TILE_FN void run(const Params& p, tile::Block block, Shared& shared, const Work& work) {
    if (work.exists()) {
      const Destination to =
          work.whole() ? Destination{false, work.first_row, 1}
                       : Destination{true, int64_t{work.first_row} * p.num_splits + work.split,
                                     p.num_splits};
      // stage 1: attend; a tile has one pass unless a request is longer than max_seqlen_q
      Tiles tiles(shared, block);
      for (int32_t begin = work.begin; begin < work.packed; begin += work.stride)
        Tile::run(p, work.rows(begin), work.keys, to, tiles);
      if constexpr (kForesees) foresee(p, block, tiles);
      // stage 2: the splits become one
      if constexpr (!kSpares) merge_where_split(p, block, work);
    }
    if constexpr (kSpares) {
      clear_by_spares(p, block);
      if (work.exists()) merge_where_split(p, block, work);
    } else {
      clear_unowned_rows<Shape::kHeadDimV>(tile::reread(p), block);
    }
  }

  /// Waves that have nothing else to do by now clear the rows that nobody owns.
  static TILE_FN void clear_by_spares(const Params& p, tile::Block block) {
    const int own = Tiles::spare_wave(block);
    if (own >= 0) clear_unowned_rows<Shape::kHeadDimV>(p, block, own, Tiles::kSpareWaves);
  }

  /// While the last keys are still attended: the block that follows on the same multiprocessor
  /// begins with what is in the L2 by then.
  static TILE_FN void foresee(const Params& p, tile::Block block, const Tiles& tiles) {
    if (!tiles.foresees()) return;
    const int32_t index = block.index() + Tiles::blocks_at_once();
    if (index >= block.count()) return;
    const Work next = prepare(p, index);
    if (!next.exists() || next.keys.begin >= next.keys.end) return;
    const QuerySpan rows = next.rows(next.begin);
    tiles.foresee(typename Tile::QueryRow{p, rows}, rows.end - rows.begin,
                  Tile::gather(p, next.keys, next.keys.begin, next.keys.end, tiles));
  }

  /// Stage 0: which request, rows and keys.
  static TILE_FN Work prepare(const Params& p, int32_t block) {
    Work work;
    work.tile_index = quotient(block, p.num_splits);
    const int32_t request_index = quotient(work.tile_index, p.row_tiles);
    if (request_index >= p.batch) return work;
    const Request request(p, request_index);
    work.split = block - work.tile_index * p.num_splits;
    work.first_row = request.first_row;
    work.q_len = request.end_row - request.first_row;
    work.begin = (work.tile_index - request_index * p.row_tiles) * kRows;
    work.packed = packed_rows(p, work.q_len);
    work.stride = p.row_tiles * kRows;
    const int32_t tokens = work.tokens = request.context_tokens(p);
    work.split_keys = split_size(tokens, p.num_splits, kMinSplitTokens);
    const int32_t first = work.split * work.split_keys, end = first + work.split_keys;
    work.keys = {.first_index = request.first_page,
                 .begin = first,
                 .end = end < tokens ? end : tokens,
                 .causal_end = causal_end(p, request_index, tokens)};
    return work;
  }

  /// Merges the tile's splits, if there are several that have keys.
  static TILE_FN void merge_where_split(const Params& p, tile::Block block, const Work& work) {
    if (!work.whole()) merge(tile::reread(p), block, work);
  }

  static TILE_FN void merge(const Params& p, tile::Block block, const Work& work) {
    // in front of all that follows from it: others wait for this block
    if constexpr (tile::kBlocksMeet)
      if (p.together != 0) tile::come(p.arrivals + work.tile_index, block);
    const int32_t whole =
        work.packed - work.begin <= work.stride
            ? 0
            : quotient(work.packed - work.begin - 1, work.stride);  // passes but the last
    const int32_t rest = work.packed - work.begin - whole * work.stride;
    const int32_t rows = whole * kRows + (rest < kRows ? rest : kRows);
    const auto row_at = [&](int32_t r) -> SplitRow {
      const int32_t packed = work.begin + r / kRows * work.stride + r % kRows;
      const int32_t token = packed < p.nhead ? 0 : quotient(packed, p.nhead),
                    head = packed - token * p.nhead;
      const int64_t row = int64_t{work.first_row} + token;
      const int64_t partial = row * p.num_splits * p.nhead + head;
      return {.to = {static_cast<uint16_t*>(p.o) + row * p.o_stride_row + head * p.o_stride_head,
                     p.lse == nullptr ? nullptr : p.lse + row * p.nhead + head, p.o_dtype},
              .partial_o = p.partial_o + partial * Shape::kHeadDimV,
              .partial_lse = p.partial_lse + partial,
              .step = static_cast<uint32_t>(p.nhead)};
    };
    int32_t* arrivals = p.arrivals + work.tile_index;
    if constexpr (tile::kBlocksMeet)
      merge_strands<Shape::kHeadDimV, kRows, true>(block, arrivals, work.split, work.used(),
                                                   p.together != 0, rows, row_at);
    else
      merge_splits<Shape::kHeadDimV>(block, arrivals, work.used(), rows, row_at);
  }
};

}  // namespace hipdecode::kernels
