// SPDX-License-Identifier: MIT
#pragma once

// The tiles of a batch in order, a chunk of them at a time in group memory, and what the planners
// find out about each: its works and its partials.

#include <cstdint>

#include "plan_requests.h"

namespace hipdecode::kernels::plan {

inline constexpr int32_t kChunk = 512;  // tiles
inline constexpr int kWaves = 8;
inline constexpr int64_t kMaxCost = int64_t{1} << 50;  // a thread's sums of garbage stop here

/// Query rows of one request that make up a work, and the keys that they see.
struct Tile {
  int64_t tokens;              // of the request
  int32_t batch;               // request of the caller
  int32_t row_begin, row_end;  // query rows
  int32_t rows;                // of a partial
  int32_t kv_begin;            // pages
  int32_t pages;               // that some row sees
  int32_t extra;               // added to kv_offset
  int32_t last_cut;            // blocks: a cut behind them is not worth its merge
  int32_t last_begin;          // pages before the last piece, where the tile is cut
};

/// What some tiles take up.
struct Pieces {
  int32_t cuts;      // between the pieces of a tile
  int32_t partials;  // pieces of tiles that are cut
  int32_t rows;      // of these partials

  TILE_FN Pieces operator+(const Pieces& other) const {
    return {cuts + other.cuts, partials + other.partials, rows + other.rows};
  }
};

/// Where a cluster of the balanced planner stops.
struct Stop {
  int64_t place;  // on the line
  int32_t tile;   // of the chunk, that the cluster reaches
  int32_t piece;  // of the tile: there are so many cuts before
};

/// How many of some rising values are not above `value`.
template <class F>
TILE_FN int32_t count_up_to(int32_t count, int32_t value, F values) {
  int32_t low = 0, high = count;
  TILE_ROLLED
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    const bool above = values(middle) > value;
    low = above ? low : middle + 1;
    high = above ? middle : high;
  }
  return low;
}

/// A chunk of tiles. Where each begins is also where the one before ends: element k + 1 of tile k.
struct Chunk {
  Tile tile[kChunk];
  int64_t line[kChunk + 1];        // of blocks: where each tile begins
  int32_t cuts[kChunk];            // of each tile
  int32_t first_work[kChunk + 1];  // of each tile, in the schedule
  Pieces before[kChunk];           // each tile, in the schedule
  Stop stop[kChunk + 2];           // balanced: of clusters, behind the last one that is known
  int32_t stops;                   // without that one
  int32_t next_request;            // the first one that has a tile behind the chunk,
  int32_t next_tile;               // and which of its tiles that is
  // of the waves, for sums
  Totals lengths[kWaves];
  Pieces pieces[kWaves];
  int32_t counts[kWaves];
};

/// Walks the tiles of the batch in order, chunk by chunk; requests without query rows have none.
/// All threads of the block take part.
class Tiles {
 public:
  TILE_FN Tiles(const MlaPlanParams& p, const Config& config, tile::Block block, Chunk& chunk)
      : p_(p), config_(config), block_(block), chunk_(chunk) {
    if (tile::first_thread(block)) chunk.next_request = chunk.next_tile = 0;
  }

  /// Makes the next chunk; false: there is none.
  TILE_FN bool next() {
    first_ += count_;
    count_ = 0;
    while (count_ == 0 && first_ < config_.works && request_ < config_.requests)
      count_ = take_requests();
    return count_ > 0;
  }

  /// Of the whole batch, also of tiles that get no work; to be called after the first next().
  TILE_FN Totals totals() const {
    if (request_ == config_.requests) return {line_, count_};
    const auto share = [&](int32_t thread) {
      Totals sum{};
      TILE_ROLLED
      for (int64_t i = thread; i < config_.requests; i += tile::threads(block_)) {
        const Request r = request_of(p(), config_, static_cast<int32_t>(i));
        sum.blocks = min_of(sum.blocks + int64_t{r.tiles} * cost_of(r), kMaxCost);
        sum.tiles = min_of(sum.tiles + r.tiles, kMaxCost);
      }
      return sum;
    };
    return tile::scan_over(block_, chunk_.lengths, tile::threads(block_), share,
                           [](int32_t, const Totals&) {});
  }

  TILE_FN int32_t first() const { return first_; }  // tile of the batch that the chunk begins with
  TILE_FN int32_t count() const { return count_; }  // of the chunk

 private:
  /// Puts the next requests' tiles into the empty chunk; how many.
  TILE_FN int32_t take_requests() {
    const int32_t requests = min_of(config_.requests - request_, kChunk);
    const int32_t room = min_of(config_.works - first_, kChunk);
    Request r;
    const Totals all = tile::scan_over(
        block_, chunk_.lengths, requests,
        [&](int32_t i) {
          r = request_of(p(), config_, request_ + i);
          const int64_t tiles = min_of(r.tiles - skipped(i), room + 1);  // a sum of them fits
          return Totals{tiles * cost_of(r), tiles};
        },
        [&](int32_t i, const Totals& before) {
          const int32_t tiles = r.tiles - skipped(i), first = static_cast<int32_t>(before.tiles);
          if (i == 0) chunk_.line[0] = line_;
          TILE_ROLLED
          for (int32_t t = 0; t < min_of(tiles, room - first); ++t) {
            put(first + t, r, skipped(i) + t);
            chunk_.line[first + t + 1] = line_ + before.blocks + (t + int64_t{1}) * cost_of(r);
          }
          if (first <= room && room - first < tiles) {
            chunk_.next_request = request_ + i;
            chunk_.next_tile = skipped(i) + room - first;
          }
        });
    const int32_t total = static_cast<int32_t>(all.tiles);
    const bool more = total > room;
    request_ = more ? chunk_.next_request : request_ + requests;
    tile_ = more ? chunk_.next_tile : 0;
    const int32_t count = min_of(total, room);
    line_ = chunk_.line[count];
    return count;
  }

  /// What a tile costs on the line; trimming is too small to count.
  TILE_FN int64_t cost_of(const Request& r) const { return int64_t{r.blocks} + config_.overhead; }

  /// Tiles of the i-th request to take that earlier chunks had.
  TILE_FN int32_t skipped(int32_t i) const { return i == 0 ? tile_ : 0; }

  TILE_FN void put(int32_t k, const Request& r, int32_t t) {
    // the tokens of later tiles go where a page is one
    const int32_t pages = config_.trims ? max_of(r.pages - (r.tiles - 1 - t), 0) : r.pages;
    const uint32_t row = t * r.tile_rows;  // of the request
    // A cut must leave a key (the tail may be trimmed, or the last page empty), and where a page
    // is a token as many as there are query rows.
    const int32_t least = p().max_seqlen_qo >= 1 ? config_.max_qlen : r.qlen;
    const int32_t cut = config_.page_size == 1 ? pages - least : r.used - 1;
    chunk_.tile[k] = {.tokens = r.tokens,
                      .batch = r.batch,
                      .row_begin = sum_to_i32(r.row, row),
                      .row_end = sum_to_i32(r.row, min_of<uint32_t>(row + r.tile_rows, r.qlen)),
                      .rows = r.tile_rows,
                      .kv_begin = r.kv_begin,
                      .pages = pages,
                      .extra = r.extra,
                      .last_cut = quotient(max_of(cut, 0), config_.granularity),
                      .last_begin = 0};
    chunk_.cuts[k] = 0;
  }

  TILE_FN const MlaPlanParams& p() const { return tile::reread(p_); }

  const MlaPlanParams& p_;
  const Config& config_;
  tile::Block block_;
  Chunk& chunk_;
  int32_t request_ = 0;  // the first one that has a tile behind the chunk,
  int32_t tile_ = 0;     // and which of its tiles that is
  int32_t first_ = 0, count_ = 0;
  int64_t line_ = 0;  // where the chunk ends
};

}  // namespace hipdecode::kernels::plan
