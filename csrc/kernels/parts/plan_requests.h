// SPDX-License-Identifier: MIT
#pragma once

// The planner's input: what the host says, and one request as it follows from lengths on the
// device, which may be anything.

#include <cstdint>

#include "../../abi/mla_plan_params.h"
#include "../../tile/tile.h"

namespace hipdecode::kernels::plan {

using abi::MlaPlanParams;

inline constexpr int32_t kOverheadPages = 16;  // fixed cost of a work is 16 / page_size blocks
inline constexpr int32_t kMaxInt32 = 0x7fffffff;
inline constexpr int32_t kMaxPartials = (1 << 24) - 1;  // so that their rows are counted in 32 bits

template <class Integer>
TILE_FN Integer min_of(Integer a, Integer b) {
  return a < b ? a : b;
}
template <class Integer>
TILE_FN Integer max_of(Integer a, Integer b) {
  return a > b ? a : b;
}
TILE_FN int32_t to_i32(int64_t value) {
  return static_cast<int32_t>(min_of<int64_t>(value, kMaxInt32));
}
/// Of numbers that are not negative.
TILE_FN int32_t sum_to_i32(uint32_t a, uint32_t b) {
  return static_cast<int32_t>(min_of<uint32_t>(a + b, kMaxInt32));
}
/// Of 0 <= a and 0 < b: unsigned division is the shorter one.
TILE_FN int32_t quotient(uint32_t a, uint32_t b) { return static_cast<int32_t>(a / b); }
TILE_FN int32_t ceil_div(uint32_t a, uint32_t b) {
  const uint32_t whole = a / b;
  return static_cast<int32_t>(whole + (whole * b != a ? 1 : 0));
}

/// The host's integers, made safe to divide by.
struct Config {
  int32_t clusters;     // persistent workers
  int32_t works;        // of the schedule at most: each needs a cluster
  int32_t partials;     // of the schedule at most
  int32_t reducible;    // tiles that the reduce can be told of; others stay whole
  int32_t requests;     // requests to plan: one per query token when sparse
  int32_t token_qlen;   // sparse: query tokens per request
  int32_t page_size;    // tokens
  int32_t granularity;  // pages per block
  int32_t overhead;     // blocks
  int32_t max_qlen;     // query rows per request
  int32_t rows_cap;     // query rows per tile
  bool trims;           // tokens that a tile does not see are taken out of its pages

  // own(): a wave has fewer registers to share than are wanted here
  TILE_FN explicit Config(const MlaPlanParams& p)
      : clusters(to_i32(max_of<int64_t>(p.work_indptr_size - 1, 0))),
        works(tile::own(clusters > 0 ? to_i32(max_of<int64_t>(p.work_info_size, 0)) : 0)),
        partials(tile::own(to_i32(min_of<int64_t>(p.reduce_partial_map_size, kMaxPartials)))),
        reducible(tile::own(to_i32(min_of(p.reduce_indptr_size - 1, p.reduce_final_map_size)))),
        requests(max_of(p.batch, 0)),
        token_qlen(1),
        page_size(max_of(p.page_size, 1)),
        granularity(max_of(p.kv_granularity, 1)),
        overhead(ceil_div(kOverheadPages, page_size)),
        max_qlen(p.max_seqlen_qo >= 1 ? p.max_seqlen_qo : kMaxInt32),
        rows_cap(max_of(quotient(abi::kWorkRows, max_of(p.nhead, 1)), 1)),
        trims(p.causal != 0 && page_size == 1 && p.topk < 0) {
    if (p.topk < 0 || requests == 0) return;
    int64_t qlen = p.uni_seqlen_qo;
    if (qlen < 1) qlen = int64_t{p.qo_indptr[1]} - p.qo_indptr[0];
    token_qlen = static_cast<int32_t>(max_of<int64_t>(min_of<int64_t>(qlen, max_qlen), 0));
    // Each token needs a work, so garbage lengths past the last record need not be looked at.
    requests = to_i32(min_of<int64_t>(int64_t{requests} * token_qlen, works));
  }
};

/// One request as the schedule sees it: a query token of its own when sparse.
struct Request {
  int32_t batch;      // index into the caller's batch
  int32_t qlen;       // query rows
  int32_t pages;      // in kv_indices
  int32_t blocks;     // in these pages
  int32_t used;       // of these pages, that hold a token
  int32_t extra;      // added to kv_offset: undoes the causal trim of a sparse token
  int32_t tiles;      // of query rows
  int32_t tile_rows;  // rows per tile, the last may have fewer
  int32_t row;        // the first query row
  int32_t kv_begin;   // pages
  int64_t tokens;     // in these pages
};

TILE_FN Request request_of(const MlaPlanParams& p, const Config& config, int32_t index) {
  Request r{};
  r.batch = p.topk < 0 ? index : quotient(index, max_of(config.token_qlen, 1));
  // all that is read is on its way before any of it is looked at
  const bool ragged = p.topk < 0 && p.uni_seqlen_qo < 1;
  const bool partial = config.page_size > 1 && p.kv_last_page_lens != nullptr;
  const int32_t kv_begin = p.kv_indptr[r.batch], kv_end = p.kv_indptr[r.batch + 1];
  const int32_t row_begin = ragged ? p.qo_indptr[r.batch] : 0;
  const int32_t row_end = ragged ? p.qo_indptr[r.batch + 1] : 0;
  const int32_t last_page = partial ? p.kv_last_page_lens[r.batch] : config.page_size;
  r.kv_begin = max_of(kv_begin, 0);
  r.pages = r.used = max_of(kv_end, r.kv_begin) - r.kv_begin;
  r.tokens = int64_t{r.pages} * config.page_size;
  // With one token per page the last page is full; callers pass other things there.
  if (r.pages > 0) {
    const int32_t last = min_of(max_of(last_page, 0), config.page_size);
    r.tokens -= config.page_size - last;
    r.used -= last == 0 ? 1 : 0;
  }
  if (p.topk >= 0) {
    r.kv_begin = to_i32(int64_t{index} * p.topk);
    const int32_t most = ceil_div(p.topk, config.page_size);
    r.pages = min_of(r.pages, most);
    r.used = min_of(r.used, most);
    r.tokens = min_of<int64_t>(r.tokens, p.topk);
    r.extra = config.token_qlen - 1 - (index - r.batch * config.token_qlen);
    r.row = index;
    r.qlen = 1;
  } else if (p.uni_seqlen_qo >= 1) {
    r.row = to_i32(int64_t{r.batch} * p.uni_seqlen_qo);
    r.qlen = min_of(p.uni_seqlen_qo, config.max_qlen);
  } else {
    r.row = max_of(row_begin, 0);
    r.qlen = min_of(max_of(row_end, r.row) - r.row, config.max_qlen);
  }
  r.blocks = ceil_div(r.pages, config.granularity);
  r.tiles = ceil_div(r.qlen, config.rows_cap);
  r.tile_rows = r.tiles > 0 ? ceil_div(r.qlen, r.tiles) : 0;
  return r;
}

/// Length of a line of blocks and number of tiles on it.
struct Totals {
  int64_t blocks, tiles;

  TILE_FN Totals operator+(const Totals& other) const {
    return {blocks + other.blocks, tiles + other.tiles};
  }
};

}  // namespace hipdecode::kernels::plan
