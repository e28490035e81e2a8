// SPDX-License-Identifier: MIT
#pragma once

#include "../abi/sparse_mla_params.h"
#include "../tile/concepts.h"
#include "../tile/key_format.h"
#include "../tile/schedule.h"
#include "parts/attend.h"
#include "parts/bounds.h"
#include "parts/merge_splits.h"
#include "parts/split_range.h"

namespace hipdecode::kernels {

/// Compile-time shape of a sparse MLA kernel: keys of one format, of two flavours of fp8 where
/// there are two caches; the rows of a tile are heads of one query token.
template <tile::KeyFormat kFormat_, abi::DType kQDType_, abi::DType kKvDType_,
          abi::DType kExtraDType_, int kRows_>
struct SparseShape {
  static constexpr tile::KeyFormat kFormat = kFormat_;
  using Layout = tile::KeyLayout<kFormat>;
  static constexpr int kHeadDimQk = Layout::kHeadDimQk, kHeadDimV = Layout::kHeadDimV;
  static constexpr int kRows = kRows_;
  static constexpr abi::DType kQDType = kQDType_, kKvDType = kKvDType_, kExtraDType = kExtraDType_;
};

/// Whether tiles add up what blocks of a cluster have of the same rows.
template <class Tiles>
constexpr bool kMergesInCluster = requires { requires Tiles::kMergesInCluster; };

/// Sparse MLA decode: one block per (query token, tile of its heads, split of its keys), one
/// launch. A token's keys are those that its list names in the main cache, then those in the extra
/// cache, counted through. They are cut as those of mla_decode_hk; the last block of a tile to
/// finish merges the splits, in order, and adds the attention sink.
template <class Shape>
struct SparseMlaDecode {
  using Params = abi::SparseMlaParams;
  using Layout = typename Shape::Layout;
  using Tiles = tile::DecodeTiles<Shape, tile::Schedule::hk>;
  using Shared = typename Tiles::Shared;
  static constexpr int kWaves = Tiles::kWaves, kRows = Tiles::kRows, kTokens = Tiles::kTokens;
  static constexpr int32_t kMinSplitKeys = 64;
  static constexpr int32_t kMeets = kMergesInCluster<Tiles> ? abi::kMeetInClusters : 0;
  static constexpr int32_t kMostKeys = 1 << 24;  // of a list: counted exactly by fp32 as well
  static_assert(kMergesInCluster<Tiles> ||
                    tile::DecodeTilesOf<Tiles, tile::Block, tile::PackedKeyRef<Shape::kFormat>>,
                "the target lacks an operation of a decode kernel, see concepts.h");

  /// The list of one token in one cache.
  struct Slots {
    const int32_t* first;
    int32_t count;
  };

  static TILE_FN bool is_slot(const abi::SparseCache& cache, int32_t slot) {
    return slot >= 0 && slot < cache.num_slots;
  }

  static TILE_FN Slots slots_of(const abi::SparseCache& cache, int32_t token) {
    if (cache.blocks == nullptr) return {nullptr, 0};
    if (cache.indptr != nullptr) {
      const int64_t begin = clamp(cache.indptr[token], 0, cache.num_indices);
      const int64_t end = clamp(cache.indptr[token + 1], begin, cache.num_indices);
      return {cache.indices + begin, clamp32(end - begin, 0, kMostKeys)};
    }
    const int32_t* first = cache.indices + int64_t{token} * cache.topk;
    if (cache.lengths != nullptr)
      return {first, clamp32(cache.lengths[token / cache.tokens_per_length], 0, cache.topk)};
    // a row that ends in entries which are no slots is as long as if the caller had said so;
    // broadcast, so that a compiler knows the length to be the same in all lanes
    const float length = tile::max_over(cache.topk, [&](int32_t k) {
      return is_slot(cache, first[k]) ? static_cast<float>(k + 1) : 0.0f;
    });
    return {first, cache.topk == 0 ? 0 : tile::broadcast(static_cast<int32_t>(length), 0)};
  }

  /// Key n of a tile: in the main cache, behind its list in the extra one. What lies past the end
  /// is looked up at the beginning, where there is a slot.
  struct KeyAt {
    const Params& p;
    const Slots &main, &extra;
    int32_t begin, end;

    TILE_FN tile::PackedKeyRef<Shape::kFormat> operator()(int n) const {
      const int32_t at = begin + n < end ? begin + n : 0;
      const bool is_extra = at >= main.count;
      const abi::SparseCache& cache = is_extra ? p.extra : p.main;
      const int32_t* slot = is_extra ? extra.first + (at - main.count) : main.first + at;
      return {.blocks = cache.blocks,
              .stride_block = cache.stride_block,
              .block_bits = cache.block_bits,
              .slots = static_cast<uint32_t>(cache.num_slots),
              .slot = static_cast<uint32_t>(*slot),
              .extra = is_extra};
    }
  };

  /// Head r of a tile.
  struct QueryRow {
    const Params& p;
    int32_t token, head;

    TILE_FN const void* operator()(int r) const {
      return static_cast<const uint16_t*>(p.q) + token * p.q_stride_row +
             (head + r) * p.q_stride_head;
    }
  };

  /// Where head r of a tile goes; `split` < 0: to the output.
  struct Place {
    const Params& p;
    int32_t token, head, split;

    TILE_FN tile::RowTarget operator()(int r) const {
      if (split < 0) {
        const MergedRow row = row_of(p, token, head + r);
        return {row.o, row.lse, row.type, row.sink};
      }
      const int64_t at = partial_at(p, token, split) + head + r;
      return {p.partial_o + at * Shape::kHeadDimV, p.partial_lse + at, abi::DType::fp32};
    }
  };

  static TILE_FN MergedRow row_of(const Params& p, int32_t token, int32_t head) {
    auto* o = static_cast<uint16_t*>(p.o) + token * p.o_stride_row + head * p.o_stride_head;
    float* lse = p.lse == nullptr ? nullptr : p.lse + int64_t{token} * p.nhead + head;
    return {o, lse, p.o_dtype, p.attn_sink == nullptr ? -tile::kInfinity : p.attn_sink[head]};
  }

  static TILE_FN int64_t partial_at(const Params& p, int32_t token, int32_t split) {
    return (int64_t{token} * p.num_splits + split) * p.nhead;
  }

  /// Which token, heads and split a block has.
  struct Work {
    int32_t tile_index, split, token, head, rows;

    TILE_FN Work(const Params& p, int32_t index)
        : tile_index(index / p.num_splits),
          split(index % p.num_splits),
          token(tile_index / p.row_tiles),
          head(tile_index % p.row_tiles * heads(p)),
          rows(p.nhead - head < heads(p) ? p.nhead - head : heads(p)) {}

    /// Of a tile; few, where that lets more blocks add up what a cluster has.
    static TILE_FN int32_t heads(const Params& p) {
      return kMergesInCluster<Tiles> ? p.tile_heads : kRows;
    }
  };

  /// A block's work and where its keys are named: the same for all of its waves.
  struct Plan {
    Work work;
    Slots main, extra;
    SplitRange keys;
  };

  /// @param index of the block
  static TILE_FN Plan prepare(const Params& p, int32_t index) {
    Plan plan{Work(p, index), {}, {}, {0, 0, 0}};
    if (plan.work.token >= p.tokens) return plan;
    plan.main = slots_of(p.main, plan.work.token), plan.extra = slots_of(p.extra, plan.work.token);
    plan.keys = split_range(plan.main.count + plan.extra.count, p.num_splits, plan.work.split,
                            kMinSplitKeys);
    return plan;
  }

  /// Attends the tile's heads to the block's keys.
  static TILE_FN void attend(const Params& p, const Plan& plan, Tiles& tiles) {
    const int32_t end = plan.keys.end;
    if (plan.keys.begin >= end) return;
    attend_keys(
        tiles, plan.keys.begin, end, p.sm_scale * tile::kLog2E,
        [&](int32_t from) {
          const int32_t count = end - from < kTokens ? end - from : kTokens;
          return tiles.gather(KeyAt{p, plan.main, plan.extra, from, end}, count > 0 ? count : 0);
        },
        [](int32_t, int32_t count) { return [count](int) { return count; }; });
  }

  static TILE_FN void run(const Params& p, tile::Block block, Shared& shared)
    requires(!kMergesInCluster<Tiles>)
  {
    // stage 0: which token, heads and keys
    const Plan plan = prepare(p, block.index());
    const Work& work = plan.work;
    const SplitRange& keys = plan.keys;
    if (work.split >= keys.used) return;
    // stage 1: attend
    Tiles tiles(shared, block);
    tiles.load_queries(QueryRow{p, work.token, work.head}, work.rows);
    attend(p, plan, tiles);
    const int32_t split = keys.used == 1 ? -1 : work.split;
    tiles.store(work.rows, Place{tile::reread(p), work.token, work.head, split}, 1.0f);
    // stage 2: the splits become one
    if (keys.used > 1) merge(tile::reread(p), block, work, keys.used);
  }

  /// Where a cluster's blocks add up what they have: the part in which waves may have roles.
  /// @return whether there is something to finish
  static TILE_FN bool start(const Params& p, tile::Block block, Shared& shared, const Plan& plan)
    requires kMergesInCluster<Tiles>
  {
    if (plan.work.split >= plan.keys.used) return false;
    // stage 1: attend
    Tiles tiles(shared, block);
    tiles.load_queries(QueryRow{p, plan.work.token, plan.work.head}, plan.work.rows);
    attend(p, plan, tiles);
    tiles.stage(plan.work.rows);
    return true;
  }

  /// The part in which all waves do the same.
  static TILE_FN void finish(const Params& p, tile::Block block, Shared& shared, const Plan& plan)
    requires kMergesInCluster<Tiles>
  {
    // stage 2: the splits become one
    const Work& work = plan.work;
    Tiles::write(shared, block, work.rows, Place{p, work.token, work.head, -1},
                 {work.split, plan.keys.used, work.head});
  }

  /// @param used splits that have left partial results
  static TILE_FN void merge(const Params& p, tile::Block block, const Work& work, int32_t used) {
    merge_splits<Shape::kHeadDimV>(
        block, p.arrivals + work.tile_index, used, work.rows, [&](int32_t r) -> SplitRow {
          const int64_t at = partial_at(p, work.token, 0) + work.head + r;
          return {row_of(p, work.token, work.head + r), p.partial_o + at * Shape::kHeadDimV,
                  p.partial_lse + at, static_cast<uint32_t>(p.nhead)};
        });
  }
};

}  // namespace hipdecode::kernels
