// SPDX-License-Identifier: MIT
#pragma once

// The planner: lays the queries of a batch out as tiles of rows, cuts the keys of each tile into
// works and deals the works to persistent workers ("clusters"), all from lengths on the device.
//
//   requests --Cursor--> tiles --plan_balanced | plan_intra_batch--> works --Schedule--> buffers
//
// plan_balanced puts all tiles on one line of blocks and cuts the line into equal payloads, so a
// cluster gets equal work and a tile may be split across neighbours. plan_intra_batch gives every
// tile its own number of cuts. Buffers too small for the schedule make it coarser, then shorter.

#include <cstdint>

#include "../abi/mla_plan_params.h"
#include "../tile/tile.h"

namespace hipdecode::kernels {
namespace plan {

using abi::MlaPlanParams;
using abi::WorkItem;

inline constexpr int64_t kTileRows = 128;        // (query token x head) rows of a tile at most
inline constexpr int64_t kOverheadPages = 16;    // fixed cost of a work is 16 / page_size blocks
inline constexpr int64_t kMinSplitTokens = 196;  // intra-batch: a tile gets a cut per 196 tokens
inline constexpr int64_t kMaxTailTokens = 4;     // intra-batch: a shorter last piece is merged
inline constexpr int64_t kMaxInt32 = 0x7fffffff;
inline constexpr int64_t kMaxCost = int64_t{1} << 61;  // sums of garbage lengths stop here

TILE_FN int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
TILE_FN int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
TILE_FN int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// Of numbers that 32 bits hold, 0 <= a and 0 < b: a GPU divides 64 bits in a hundred instructions.
TILE_FN int64_t div32(int64_t a, int64_t b) {
  return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
}
TILE_FN int64_t ceil_div32(int64_t a, int64_t b) {
  const int64_t whole = div32(a, b);
  return whole + (whole * b != a ? 1 : 0);
}
TILE_FN int32_t to_i32(int64_t value) { return static_cast<int32_t>(min64(value, kMaxInt32)); }

/// The host's integers, made safe to divide by.
struct Config {
  int64_t clusters;     // persistent workers
  int64_t batch;        // requests of the caller
  int64_t requests;     // requests to plan: one per query token when sparse
  int64_t token_qlen;   // sparse: query tokens per request
  int64_t page_size;    // tokens
  int64_t granularity;  // pages per block
  int64_t overhead;     // blocks
  int64_t max_qlen;     // query rows per request
  int64_t rows_cap;     // query rows per tile

  // own(): there is one thread, and its state is more than a wave's shared registers hold
  TILE_FN explicit Config(const MlaPlanParams& p)
      : clusters(tile::own(max64(p.work_indptr_size - 1, 0))),
        batch(tile::own(max64(p.batch, 0))),
        requests(batch),
        token_qlen(tile::own(int64_t{1})),
        page_size(tile::own(max64(p.page_size, 1))),
        granularity(tile::own(max64(p.kv_granularity, 1))),
        overhead(max64(ceil_div32(kOverheadPages, page_size), 1)),
        max_qlen(tile::own(p.max_seqlen_qo >= 1 ? p.max_seqlen_qo : kMaxInt32)),
        rows_cap(tile::own(max64(div32(kTileRows, max64(p.nhead, 1)), 1))) {
    if (p.topk < 0 || batch == 0) return;
    int64_t qlen = p.uni_seqlen_qo;
    if (qlen < 1) qlen = static_cast<int64_t>(p.qo_indptr[1]) - p.qo_indptr[0];
    token_qlen = max64(min64(qlen, max_qlen), 0);
    // Each token needs a work, so garbage lengths past the last record need not be looked at.
    requests = min64(batch * token_qlen, max64(p.work_info_size, 0));
  }
};

/// What the caller says about one request, as it lies in memory.
struct Lengths {
  int32_t kv_begin, kv_end, last_page, row_begin, row_end;
};

TILE_FN int64_t batch_of(const MlaPlanParams& p, const Config& config, int64_t index) {
  return p.topk < 0 ? index : div32(index, config.token_qlen);
}

TILE_FN Lengths lengths_at(const MlaPlanParams& p, const Config& config, int64_t index) {
  const int64_t batch = batch_of(p, config, index);
  const bool ragged = p.topk < 0 && p.uni_seqlen_qo < 1;
  return {.kv_begin = p.kv_indptr[batch],
          .kv_end = p.kv_indptr[batch + 1],
          .last_page = p.kv_last_page_lens != nullptr ? p.kv_last_page_lens[batch] : 0,
          .row_begin = ragged ? p.qo_indptr[batch] : 0,
          .row_end = ragged ? p.qo_indptr[batch + 1] : 0};
}

/// One request as the schedule sees it: a query token of its own when sparse.
struct Request {
  int64_t batch;      // index into the caller's batch
  int64_t row, qlen;  // query rows [row, row + qlen)
  int64_t kv_begin;   // pages
  int64_t pages;      // in kv_indices
  int64_t blocks;     // in these pages
  int64_t tokens;     // in these pages
  int64_t extra;      // added to kv_offset: undoes the causal trim of a sparse token
  int64_t tiles;      // of query rows
  int64_t tile_rows;  // rows per tile, the last may have fewer
};

TILE_FN Request request_of(const MlaPlanParams& p, const Config& config, int64_t index,
                           const Lengths& lengths) {
  Request r{};
  r.batch = batch_of(p, config, index);
  r.kv_begin = max64(lengths.kv_begin, 0);
  r.pages = max64(lengths.kv_end - r.kv_begin, 0);
  r.tokens = r.pages * config.page_size;
  // With one token per page the last page is full; callers pass other things there.
  if (r.pages > 0 && config.page_size > 1 && p.kv_last_page_lens != nullptr)
    r.tokens -= config.page_size - min64(max64(lengths.last_page, 0), config.page_size);
  // every branch ends with qlen: a compiler joins their ends, and different members would then be
  // picked by address
  if (p.topk >= 0) {
    r.kv_begin = index * p.topk;
    r.pages = min64(r.pages, ceil_div32(p.topk, config.page_size));
    r.tokens = min64(r.tokens, p.topk);
    r.extra = config.token_qlen - 1 - (index - r.batch * config.token_qlen);
    r.row = index;
    r.qlen = 1;
  } else if (p.uni_seqlen_qo >= 1) {
    r.row = r.batch * p.uni_seqlen_qo;
    r.qlen = min64(p.uni_seqlen_qo, config.max_qlen);
  } else {
    r.row = max64(lengths.row_begin, 0);
    r.qlen = min64(max64(lengths.row_end - r.row, 0), config.max_qlen);
  }
  r.blocks = ceil_div32(r.pages, config.granularity);
  r.tiles = ceil_div32(r.qlen, config.rows_cap);
  r.tile_rows = r.tiles > 0 ? ceil_div32(r.qlen, r.tiles) : 0;
  return r;
}

/// Walks the tiles of the batch in order; requests without query rows have none.
class Cursor {
 public:
  TILE_FN Cursor(const MlaPlanParams& p, const Config& config) : p_(p), config_(config) {
    if (valid()) next_ = lengths_at(p_, config_, 0);
    settle();
  }

  TILE_FN bool valid() const { return index_ < config_.requests; }
  TILE_FN void advance() {
    if (++tile_ < request_.tiles) return;
    tile_ = 0;
    ++index_;
    settle();
  }

  TILE_FN const Request& request() const { return request_; }
  TILE_FN int64_t row_begin() const { return request_.row + tile_ * request_.tile_rows; }
  TILE_FN int64_t row_end() const {
    return min64(row_begin() + request_.tile_rows, request_.row + request_.qlen);
  }
  /// What the tile costs on the line of blocks; trimming is too small to count.
  TILE_FN int64_t blocks() const { return request_.blocks; }
  /// Pages that some row of the tile can see: the tokens of later tiles go where a page is one.
  TILE_FN int64_t pages() const {
    const bool trim = p_.causal != 0 && config_.page_size == 1 && p_.topk < 0;
    return trim ? max64(request_.pages - (request_.tiles - 1 - tile_), 0) : request_.pages;
  }
  /// Tokens of the request after its first `pages` pages.
  TILE_FN int64_t tokens_after(int64_t pages) const {
    return max64(request_.tokens - pages * config_.page_size, 0);
  }

 private:
  TILE_FN void settle() {
    for (; valid(); ++index_) {
      const Lengths now = next_;  // the next ones are on their way while these are worked on
      next_ = lengths_at(p_, config_, min64(index_ + 1, config_.requests - 1));
      request_ = request_of(p_, config_, index_, now);
      if (request_.tiles > 0) return;
    }
  }

  const MlaPlanParams& p_;
  const Config& config_;
  Lengths next_{};
  Request request_{};
  int64_t index_ = 0, tile_ = 0;
};

/// Writes the schedule and knows what still fits. A tile's works are pieces (partials to be merged)
/// or one whole; `finish` ends the tile.
class Schedule {
 public:
  TILE_FN Schedule(const MlaPlanParams& p, int64_t tiles) : p_(p), tiles_left_(tiles) {
    if (p.work_indptr_size > 0) p.work_indptr[0] = 0;
    if (p.reduce_indptr_size > 0) p.reduce_indptr[0] = 0;
  }

  TILE_FN int64_t works() const { return works_; }
  TILE_FN bool full() const { return works_ >= p_.work_info_size; }
  /// Pieces that the current tile may still be given; below 2 it must stay whole (or end now).
  TILE_FN int64_t pieces_left() const {
    if (!reducible()) return 0;
    return min64(p_.work_info_size - works_ - (tiles_left_ - 1),
                 p_.reduce_partial_map_size - partials_);
  }

  /// Pages [page_begin, page_end) of the current tile: a piece of it, or the whole.
  TILE_FN void emit(const Cursor& at, int64_t page_begin, int64_t page_end, bool piece) {
    const Request& r = at.request();
    p_.work_info[works_] = {.batch = to_i32(r.batch),
                            .partial_qo_loc = piece ? to_i32(rows_) : -1,
                            .qo_start = to_i32(at.row_begin()),
                            .qo_end = to_i32(at.row_end()),
                            .kv_start = to_i32(r.kv_begin + page_begin),
                            .kv_end = to_i32(r.kv_begin + page_end),
                            .kv_offset = to_i32(at.tokens_after(page_end) + r.extra),
                            .reserved = 0};
    if (piece) p_.reduce_partial_map[partials_] = to_i32(rows_);
    // selected, not branched on: counters behind a branch end up in memory
    works_ += 1;
    partials_ += piece ? 1 : 0;
    rows_ += piece ? r.tile_rows : 0;
  }
  /// Records a whole tile as one partial that the reduce skips, as intra-batch callers expect.
  TILE_FN void mark_whole() {
    if (reducible() && partials_ < p_.reduce_partial_map_size) {
      p_.reduce_partial_map[partials_++] = -1;
    }
  }
  TILE_FN void finish(const Cursor& at) {
    if (tile_ < p_.reduce_final_map_size) {
      p_.reduce_final_map[2 * tile_] = to_i32(at.row_begin());
      p_.reduce_final_map[2 * tile_ + 1] = to_i32(at.row_end());
    }
    if (++tile_ < p_.reduce_indptr_size) p_.reduce_indptr[tile_] = to_i32(partials_);
    --tiles_left_;
  }
  TILE_FN void close_cluster(int64_t cluster) { p_.work_indptr[cluster + 1] = to_i32(works_); }
  /// Empty ranges for the tiles that this batch does not have: launches have a fixed size.
  TILE_FN void close() {
    for (int64_t t = tile_ + 1; t < p_.reduce_indptr_size; ++t) {
      p_.reduce_indptr[t] = to_i32(partials_);
    }
  }

 private:
  /// The reduce can be told of the current tile.
  TILE_FN bool reducible() const {
    return tile_ + 1 < p_.reduce_indptr_size && tile_ < p_.reduce_final_map_size;
  }

  const MlaPlanParams& p_;
  int64_t tiles_left_;  // not finished, the current one included
  int64_t tile_ = 0, works_ = 0, partials_ = 0, rows_ = 0;
};

/// Length of the line of blocks and number of tiles on it. All lanes of a wave take part.
struct Totals {
  int64_t blocks, tiles;

  TILE_FN Totals(const MlaPlanParams& p, const Config& config) {
    const auto requests = static_cast<int32_t>(min64(config.requests, kMaxInt32));
    const auto request = [&](int32_t i) {
      return request_of(p, config, i, lengths_at(p, config, i));
    };
    blocks = tile::sum_over(
        requests,
        [&](int32_t i) {
          const Request r = request(i);
          return min64((r.blocks + config.overhead) * r.tiles, kMaxCost);
        },
        kMaxCost);
    tiles = tile::sum_over(requests, [&](int32_t i) { return request(i).tiles; }, kMaxCost);
  }
};

/// A cut here is not worth its merge, or leaves no key at all (trimmed, or an empty last page).
TILE_FN bool leaves_too_little(const MlaPlanParams& p, const Config& config, const Cursor& at,
                               int64_t page_end) {
  if (config.page_size > 1) return at.tokens_after(page_end) < 1;
  return at.pages() - page_end < (p.max_seqlen_qo >= 1 ? config.max_qlen : at.request().qlen);
}

/// Planner v1_2. A work costs its blocks plus `overhead`. Every cluster but the last takes at least
/// ceil(total / budget) of the line (a cut costs one overhead more, which the payload includes), so
/// the line ends with cluster `budget` at the latest.
TILE_FN void plan_balanced(const MlaPlanParams& p, const Config& config, const Totals& totals) {
  int64_t budget = config.clusters;
  if (p.max_split_per_batch >= 0) {
    budget = min64(budget, config.requests * p.max_split_per_batch);
  }
  const int64_t payload = ceil_div(totals.blocks, max64(budget, 1)) + config.overhead;
  Schedule out(p, totals.tiles);
  Cursor at(p, config);
  int64_t done = 0;  // blocks of the current tile that its pieces cover
  for (int64_t cluster = 0; cluster < config.clusters; ++cluster) {
    int64_t room = payload;
    while (at.valid() && !out.full()) {
      const int64_t rest = at.blocks() - done;
      bool ends = room >= rest + config.overhead || cluster + 1 == config.clusters;
      if (!ends && room <= config.overhead) break;
      const int64_t take = min64(room - config.overhead, rest);
      const int64_t page_begin = done * config.granularity;
      const int64_t page_end = page_begin + take * config.granularity;
      ends = ends || leaves_too_little(p, config, at, page_end) || out.pieces_left() < 2;
      out.emit(at, page_begin, ends ? at.pages() : page_end, done > 0 || !ends);
      done = ends ? 0 : done + take;
      if (!ends) break;
      out.finish(at);
      at.advance();
      room -= rest + config.overhead;
    }
    out.close_cluster(cluster);
  }
  out.close();
}

/// Cuts of one tile in planner v1_0, before its short tail is merged: at least one. `share` is the
/// clusters per tile.
TILE_FN int64_t intra_batch_splits(const MlaPlanParams& p, int64_t tokens, int64_t share) {
  int64_t splits = min64(tokens / kMinSplitTokens, share);
  splits = min64(splits, p.num_kv_splits);
  if (p.max_split_per_batch >= 0) splits = min64(splits, p.max_split_per_batch);
  return max64(splits, 1);
}

/// Planner v1_0: cuts each tile evenly by itself and deals the works to the clusters by number.
TILE_FN void plan_intra_batch(const MlaPlanParams& p, const Config& config, const Totals& totals) {
  const int64_t share = ceil_div(config.clusters, max64(totals.tiles, 1));
  Schedule out(p, totals.tiles);
  for (Cursor at(p, config); at.valid() && !out.full(); at.advance()) {
    const int64_t pages = at.pages();
    const int64_t tokens = min64(pages * config.page_size, at.request().tokens);
    const int64_t blocks = max64(ceil_div32(pages, config.granularity), 1);
    int64_t splits = intra_batch_splits(p, tokens, share);
    splits = max64(min64(splits, out.pieces_left()), 1);
    const int64_t piece = ceil_div32(blocks, splits) * config.granularity;
    splits = max64(ceil_div32(pages, piece), 1);
    if (splits > 1 && tokens - (splits - 1) * piece * config.page_size <= kMaxTailTokens) --splits;
    if (splits == 1) {
      out.emit(at, 0, at.pages(), false);
      out.mark_whole();
    } else {
      for (int64_t s = 0; s < splits; ++s) {
        out.emit(at, s * piece, s + 1 == splits ? pages : (s + 1) * piece, true);
      }
    }
    out.finish(at);
  }
  const int64_t each = out.works() / max64(config.clusters, 1);
  const int64_t extra = out.works() - each * config.clusters;
  for (int64_t next = 1; next <= config.clusters; ++next)
    p.work_indptr[next] = to_i32(next * each + min64(next, extra));
  out.close();
}

}  // namespace plan

/// Fills the six metadata tensors of one decode step: one thread does it in order, after a wave has
/// added up what there is.
/// @pre batch, head and page counts are the caller's; lengths on the device may be anything
struct MlaPlan {
  using Params = abi::MlaPlanParams;
  struct Shared {};
  static constexpr int kWaves = 1;

  TILE_FN static void run(const Params& p, tile::Block block, Shared&) {
    if (block.index() != 0) return;
    const plan::Config config(p);
    const plan::Totals totals(p, config);
    if (!tile::first_thread(block)) return;
    if (p.work_metadata_size >= 2) {
      p.work_metadata[0] = reinterpret_cast<uint64_t>(p.work_indptr);
      p.work_metadata[1] = reinterpret_cast<uint64_t>(p.work_info);
    }
    if (p.intra_batch_mode != 0)
      plan::plan_intra_batch(p, config, totals);
    else
      plan::plan_balanced(p, config, totals);
  }
};

}  // namespace hipdecode::kernels
