// SPDX-License-Identifier: MIT
#pragma once

#include "../abi/paged_attention_params.h"
#include "../tile/concepts.h"
#include "parts/attend.h"
#include "parts/bounds.h"
#include "parts/merge_splits.h"
#include "parts/split_range.h"
#include "parts/strand_merge.h"
#include "parts/unowned_rows.h"

namespace hipdecode::kernels {

/// Whether a target's tiles want to do what needs no keys while the first are on their way: keys
/// are asked for before the queries are waited for and rows' places found, and their table is
/// brought near before it is known where in it.
template <class Tiles>
constexpr bool kKeysFirst = requires(const int32_t* list) { Tiles::foresee(list, 0); };

/// Compile-time shape of a paged attention kernel: packed row p of a kv head is head p % gqa of its
/// group, of query token p / gqa; a tile has up to kRows of them.
template <int kHeadDim_, abi::DType kQDType_, abi::DType kKvDType_, tile::PagedScales kScales_,
          tile::PagedLayout kLayout_, int kRows_>
struct PagedShape {
  static constexpr int kHeadDim = kHeadDim_, kRows = kRows_;
  static constexpr abi::DType kQDType = kQDType_, kKvDType = kKvDType_;
  static constexpr tile::PagedScales kScales = kScales_;
  static constexpr tile::PagedLayout kLayout = kLayout_;
  static_assert(kScales == tile::PagedScales::tensor || tile::kIsFp8<kKvDType>,
                "a scale a token belongs to fp8 keys");
};

/// Paged attention with grouped queries: one block per (request, kv head, tile of packed rows,
/// split of the keys), one launch. Query token t of a request of q_len tokens sees the keys before
/// context_len - q_len + t + 1. Keys are cut as those of mla_decode_hk and the splits merged as
/// there.
template <class Shape>
struct PagedAttention {
  using Params = abi::PagedAttentionParams;
  using Cache = tile::PagedCache<Shape>;
  using Tiles = tile::PagedTiles<Shape>;
  using Shared = typename Tiles::Shared;
  static constexpr int kWaves = Tiles::kWaves, kRows = Tiles::kRows, kTokens = Tiles::kTokens;
  static constexpr int32_t kMinSplitTokens = 64;
  static constexpr int32_t kMostTokens = 1 << 30;
  static constexpr float kLeastScale =
      1e-30f;  // hidden scores are -inf, and zero times that is NaN
  static constexpr bool kMeets = tile::kBlocksMeet;  // for KernelInfo
  static_assert(tile::PagedTilesOf<Tiles, tile::Block, Cache>,
                "the target lacks an operation of paged attention, see concepts.h");

  /// A tile of packed rows, and which of its keys are this block's.
  struct Work {
    int32_t tile_index = 0, request = 0, kv_head = 0;
    int32_t split = 0, used = 0;  // of the splits those that have keys, one at least
    int64_t first_row = 0;        // of q
    int32_t q_len = 0, context = 0;
    int32_t begin = 0, packed = 0, stride = 0;  // packed rows of the first pass, all, of one pass
    int32_t first_key = 0, end_key = 0;

    TILE_FN bool exists() const { return split < used && begin < packed; }
  };

  static TILE_FN Work work_of(const Params& p, tile::Block block) {
    Work work;
    work.tile_index = quotient(block.index(), p.num_splits);
    work.split = block.index() - work.tile_index * p.num_splits;
    const int32_t head_index = quotient(work.tile_index, p.row_tiles);
    work.request = quotient(head_index, p.nhead_kv);
    if (work.request >= p.batch) return work;
    if constexpr (kKeysFirst<Tiles>)
      Tiles::foresee(p.block_tables + work.request * p.table_stride, p.max_blocks);
    work.kv_head = head_index - work.request * p.nhead_kv;
    const int64_t first =
        p.qo_indptr == nullptr ? int64_t{work.request} * p.max_seqlen_q : p.qo_indptr[work.request];
    const int64_t end =
        p.qo_indptr == nullptr ? first + p.max_seqlen_q : p.qo_indptr[work.request + 1];
    work.first_row = clamp(first, 0, p.rows_q);
    work.q_len = clamp32(end - work.first_row, 0, most_rows(p, work.first_row));
    work.begin = (work.tile_index - head_index * p.row_tiles) * kRows;
    work.packed = work.q_len * p.gqa;
    work.stride = p.row_tiles * kRows;
    // a pool without blocks holds no token: targets read block 0 where a table names none
    const int64_t most = p.num_blocks == 0 ? 0 : int64_t{p.max_blocks} * p.block_size;
    work.context = clamp32(p.context_lens[work.request], 0, clamp32(most, 0, kMostTokens));
    const SplitRange keys = split_range(work.context, p.num_splits, work.split, kMinSplitTokens);
    work.used = keys.used;
    work.first_key = keys.begin;
    work.end_key = keys.end;
    return work;
  }

  /// Query tokens that a request can have from a row on: packed rows fit 32 bits.
  static TILE_FN int32_t most_rows(const Params& p, int64_t row) {
    return clamp32(p.rows_q - row, 0, kMostTokens / p.gqa);
  }

  /// Where packed row r, counted from `begin`, is: token and head.
  struct RowAt {
    int64_t row;
    int32_t head;

    TILE_FN RowAt(const Params& p, const Work& work, int32_t begin, int r) {
      const auto packed = static_cast<uint32_t>(begin + r), gqa = static_cast<uint32_t>(p.gqa);
      const uint32_t token = packed / gqa;
      row = work.first_row + token;
      head = work.kv_head * p.gqa + static_cast<int32_t>(packed - token * gqa);
    }
  };

  struct QueryRow {
    const Params& p;
    const Work& work;
    int32_t begin;

    TILE_FN const void* operator()(int r) const {
      const RowAt at(p, work, begin, r);
      return static_cast<const uint16_t*>(p.q) + at.row * p.q_stride_row +
             at.head * p.q_stride_head;
    }
  };

  /// Tokens [n, n + 16) of a tile that starts at key `first`; n is a multiple of 16. Behind the
  /// block's last group there is none.
  struct GroupAt {
    const int32_t* table;
    const Params& p;
    uint32_t first, last;  // groups

    TILE_FN tile::PagedGroup operator()(int n) const {
      const uint32_t wanted = first + static_cast<uint32_t>(n) / tile::kGroupTokens;
      const uint32_t group = wanted < last ? wanted : last;
      const auto all = static_cast<uint32_t>(p.num_blocks);  // read in any case, so once for a loop
      const uint32_t blocks = wanted > last ? 0 : all;
      if constexpr (Cache::kBlock16)
        return {static_cast<uint32_t>(tile::listed(table, group)), blocks, 0};
      else {
        const auto column =
            static_cast<uint32_t>(uint64_t{group} * p.group_multiplier >> p.group_shift);
        const uint32_t token = group * tile::kGroupTokens;
        return {static_cast<uint32_t>(tile::listed(table, column)), blocks,
                token - column * static_cast<uint32_t>(p.block_size)};
      }
    }
  };

  /// How many keys of a range packed row r may see: non-decreasing in r.
  struct Visible {
    int32_t seen;  // of token 0 of the request
    int32_t count;
    uint32_t begin, gqa;

    TILE_FN int operator()(int r) const {
      const auto token = static_cast<int32_t>((begin + static_cast<uint32_t>(r)) / gqa);
      const int32_t end = seen + token;
      return end < 0 ? 0 : end > count ? count : end;
    }
  };

  static TILE_FN Visible visible_in(const Params& p, const Work& work, int32_t begin, int32_t from,
                                    int32_t count) {
    return {work.context - work.q_len + 1 - from, count, static_cast<uint32_t>(begin),
            static_cast<uint32_t>(p.gqa)};
  }

  static TILE_FN float scale_of(const float* scale) {
    const bool used = Shape::kScales == tile::PagedScales::tensor &&
                      tile::kIsFp8<Shape::kKvDType> && scale != nullptr;
    return used ? *scale : 1.0f;
  }

  static TILE_FN Cache cache_of(const Params& p, int32_t kv_head) {
    return {half_of(p.k, kv_head), half_of(p.v, kv_head)};
  }

  static TILE_FN typename Cache::Half half_of(const abi::PagedTensor& t, int32_t kv_head) {
    const auto* blocks = static_cast<const typename Cache::Element*>(t.blocks);
    const float* scales = Shape::kScales == tile::PagedScales::token
                              ? t.scale + kv_head * t.scale_stride_head
                              : nullptr;
    return {blocks + kv_head * t.stride_head,
            scales,
            t.stride_block,
            t.scale_stride_block,
            t.stride_chunk,
            t.stride_column};
  }

  static TILE_FN MergedRow row_of(const Params& p, const RowAt& at) {
    const int64_t element = at.row * p.o_stride_row + at.head * p.o_stride_head;
    float* lse = p.lse == nullptr ? nullptr : p.lse + at.row * p.nhead + at.head;
    return {static_cast<char*>(p.o) + element * abi::element_bytes(p.o_dtype), lse, p.o_dtype};
  }

  /// Of split 0; the next one is nhead rows on.
  static TILE_FN int64_t partial_at(const Params& p, const RowAt& at) {
    return at.row * p.num_splits * p.nhead + at.head;
  }

  /// Where row r of a pass goes: to the output, or to a partial result.
  struct Place {
    const Params& p;
    const Work& work;
    int32_t begin;

    TILE_FN tile::RowTarget operator()(int r) const {
      const RowAt at(p, work, begin, r);
      if (work.used == 1) {
        const MergedRow row = row_of(p, at);
        return {row.o, row.lse, row.type};
      }
      const int64_t row = partial_at(p, at) + int64_t{work.split} * p.nhead;
      return {p.partial_o + row * Shape::kHeadDim, p.partial_lse + row, abi::DType::fp32};
    }
  };

  /// Attends packed rows [begin, begin + rows) to the keys of this block.
  static TILE_FN void attend(const Params& p, const Work& work, int32_t begin, int32_t rows,
                             Tiles& tiles) {
    const float factor = p.sm_scale * tile::kLog2E * scale_of(p.k.scale);
    const float scale = tile::uniform(tile::own(factor == 0 ? kLeastScale : factor));
    if constexpr (!kKeysFirst<Tiles>) tiles.load_queries(QueryRow{p, work, begin}, rows);
    const Visible visible =
        visible_in(p, work, begin, work.first_key, work.end_key - work.first_key);
    const int32_t seen = visible(rows - 1);
    const int32_t end = work.first_key + seen;  // no row looks further
    if (!kKeysFirst<Tiles> && seen <= 0) return;
    const int32_t* table = p.block_tables + work.request * p.table_stride;
    const auto last = static_cast<uint32_t>(end - 1) / tile::kGroupTokens;
    const auto gather = [&](int32_t from) {
      const int32_t count = end - from < kTokens ? end - from : kTokens;
      const auto first = static_cast<uint32_t>(from) / tile::kGroupTokens;
      return tiles.gather(GroupAt{table, p, first, last}, count > 0 ? count : 0);
    };
    const auto visible_from = [&](int32_t from, int32_t count) {
      return Visible{visible.seen - (from - work.first_key), count, visible.begin, visible.gqa};
    };
    if constexpr (kKeysFirst<Tiles>) {
      typename Tiles::Tokens tokens;
      if (seen > 0) tokens = gather(work.first_key);
      tiles.load_queries(QueryRow{p, work, begin}, rows);
      if (seen > 0) tiles.ask(tokens);
      tiles.find_places(rows, Place{p, work, begin});
      if (seen <= 0) return;
      tiles.settle_queries();
      attend_keys(tiles, work.first_key, end, scale, gather, visible_from, tokens);
    } else {
      attend_keys(tiles, work.first_key, end, scale, gather, visible_from);
    }
  }

  static TILE_FN void run(const Params& p, tile::Block block, Shared& shared) {
    // stage 0: which request, head, rows and keys
    const Work work = work_of(p, block);
    if (work.exists()) {
      // stage 1: attend; a tile has one pass unless a request is longer than max_seqlen_q
      Tiles tiles(shared, block, cache_of(p, work.kv_head));
      for (int32_t begin = work.begin; begin < work.packed; begin += work.stride) {
        const int32_t rows = work.packed - begin < kRows ? work.packed - begin : kRows;
        attend(tile::reread(p), work, begin, rows, tiles);
        if constexpr (kKeysFirst<Tiles>)
          tiles.store(rows, value_scale(p));
        else
          tiles.store(rows, Place{tile::reread(p), work, begin}, value_scale(tile::reread(p)));
      }
      // stage 2: the splits become one
      if (work.used > 1) merge(tile::reread(p), block, work);
    }
    if (p.qo_indptr != nullptr) clear_unowned_rows<Shape::kHeadDim>(tile::reread(p), block);
  }

  static TILE_FN float value_scale(const Params& p) {
    return scale_of(p.v.scale) / (p.out_scale == nullptr ? 1.0f : *p.out_scale);
  }

  static TILE_FN void merge(const Params& p, tile::Block block, const Work& work) {
    const int32_t whole =
        quotient(work.packed - work.begin - 1, work.stride);  // passes but the last
    const int32_t rest = work.packed - work.begin - whole * work.stride;
    const int32_t rows = whole * kRows + (rest < kRows ? rest : kRows);
    const auto row_at = [&](int32_t r) -> SplitRow {
      const RowAt at(p, work, work.begin + r / kRows * work.stride, r % kRows);
      const int64_t partial = partial_at(p, at);
      return {row_of(p, at), p.partial_o + partial * Shape::kHeadDim, p.partial_lse + partial,
              static_cast<uint32_t>(p.nhead)};
    };
    int32_t* arrivals = p.arrivals + work.tile_index;
    if constexpr (tile::kBlocksMeet)
      merge_strands<Shape::kHeadDim, kRows>(block, arrivals, work.split, work.used, p.together != 0,
                                            rows, row_at);
    else
      merge_splits<Shape::kHeadDim>(block, arrivals, work.used, rows, row_at);
  }
};

}  // namespace hipdecode::kernels
