// SPDX-License-Identifier: MIT
#pragma once

// Planner v1_2: all tiles lie on one line of blocks, each costing its blocks plus `overhead`. Every
// cluster takes a payload of the line from where the one before stopped, so that clusters get equal
// work and a tile may be split across neighbours.

#include <cstdint>

#include "plan_output.h"

namespace hipdecode::kernels::plan {

/// Where a cluster stops depends on where the one before stopped: one wave goes from stop to stop.
/// What follows from the stops is found for all of them at once.
class Balanced {
 public:
  /// Every cluster but the last takes at least ceil(total / budget) of the line (a cut costs one
  /// overhead more, which the payload includes), so the line ends with cluster `budget` at the
  /// latest.
  TILE_FN Balanced(const MlaPlanParams& p, const Config& config, const Totals& all)
      : p_(p), config_(config), short_(all.blocks < (1 << 30)) {
    int64_t budget = config.clusters;
    if (p.max_split_per_batch >= 0)
      budget = min_of(budget, int64_t{config.requests} * p.max_split_per_batch);
    budget = max_of<int64_t>(budget, 1);
    // a GPU divides 64 bits in a hundred instructions
    payload_ = short_ ? ceil_div(all.blocks, to_i32(budget)) : (all.blocks - 1) / budget + 1;
    payload_ += config.overhead;
    // Room for the works and the partials of so many cuts: every cut adds a partial, and one more
    // where it is the first of its tile.
    const int32_t tiles = to_i32(all.tiles);
    const int32_t merged = config.partials - min_of(tiles, config.partials / 2);
    cuts_end_ = min_of(min_of(config.works - tiles, merged), config.clusters - 1);
  }

  /// Cuts a chunk's tiles and writes the works. All threads of the block take part.
  TILE_FN void fill(tile::Block block, const Tiles& tiles, Chunk& chunk, Output& out) {
    for (bool more = true; more;) {
      if (tile::first_thread(block)) chunk.stop[0].place = begin_;
      const bool cuts = cluster_ < cuts_end_;
      const int32_t most = min_of((cuts ? cuts_end_ : config_.clusters - 1) - cluster_, kChunk);
      if (block.wave() == 0)
        short_ ? walk<int32_t>(tiles, chunk, most, cuts) : walk<int64_t>(tiles, chunk, most, cuts);
      tile::barrier();
      const int32_t stops = chunk.stops;
      more = stops == most && cluster_ + stops + 1 < config_.clusters;
      out.count_pieces(tiles, chunk);
      out.write(chunk, tiles.first(), more ? 0 : tiles.count(), stops, [&](int32_t i) {
        return end_cluster(cluster_ + i, chunk.stop[i + 1], chunk.stop[i].place, chunk);
      });
      cluster_ += stops;
      begin_ = chunk.stop[stops].place;
      tile::barrier();
    }
  }

  /// The clusters behind the end of the line have nothing to do.
  TILE_FN void close(tile::Block block, int32_t works) {
    int32_t* const ends = p().work_indptr + cluster_ + 1;
    tile::for_block(block, config_.clusters - cluster_, [&](int32_t k) { ends[k] = works; });
  }

 private:
  /// Goes from stop to stop, at most so many of them, until a cluster takes the chunk's last tile.
  /// A cluster reaches a payload far. It stops where the tile that it reaches begins, or an
  /// overhead before that: there the tile is cut, or ended if that is too late for a cut.
  template <class Place>
  TILE_FN void walk(const Tiles& tiles, Chunk& chunk, int32_t most, bool cuts) {
    const int64_t origin = chunk.line[0];
    const auto line = [&](int32_t k) {
      return static_cast<Place>(chunk.line[min_of(k, tiles.count())] - origin);
    };
    const auto payload = static_cast<Place>(payload_);
    const auto step = static_cast<Place>(payload_ - config_.overhead);
    const Place end = line(tiles.count());
    auto place = static_cast<Place>(begin_ - origin);
    const int32_t cuttable = cuts ? config_.reducible - tiles.first() : 0;
    int32_t stops = 0;
    // a window of tiles, one a lane
    TILE_ROLLED
    for (int32_t window = 0; stops < most && place + payload < end; window += tile::lanes()) {
      const int32_t mine = window + tile::lane(), nearest = min_of(mine, tiles.count() - 1);
      const Place begin = line(mine), tile_end = line(mine + 1);
      const Place window_end = tile::uniform(line(window + tile::lanes()));
      const Place last_cut = begin + (mine < cuttable ? chunk.tile[nearest].last_cut : 0);
      Place last_begin = begin;
      int32_t piece = chunk.cuts[nearest];
      TILE_ROLLED
      while (true) {
        const Place reach = place + payload, cut = place + step;
        // what the tile does that is reached, the last one that begins before
        const Place stop = max_of(begin, cut <= last_cut ? cut : tile_end);
        const Place next = tile::broadcast(stop, tile::wave_last(begin <= reach));
        if (reach >= window_end || stops == most) break;  // known while the stop is on its way
        place = next;
        ++stops;
        const bool reached = begin <= reach && reach < tile_end;
        chunk.stop[reached ? stops : kChunk + 1] = {origin + stop, mine, piece};
        const bool cut_here = reached && begin < stop && stop < tile_end;
        last_begin = cut_here ? stop : last_begin;
        piece += cut_here ? 1 : 0;
      }
      if (last_begin > begin) {
        chunk.cuts[mine] = piece;
        chunk.tile[mine].last_begin = pages_of(last_begin - begin);
      }
    }
    if (tile::first_lane()) chunk.stops = stops;
  }

  /// Writes where a cluster ends. Returns the work that it cuts off; `before` is the stop before.
  TILE_FN Piece end_cluster(int32_t cluster, const Stop& stop, int64_t before,
                            const Chunk& chunk) const {
    const int64_t begin = chunk.line[stop.tile];
    const bool ends = stop.place == chunk.line[stop.tile + 1], cuts = !ends && stop.place > begin;
    const int32_t works = chunk.first_work[stop.tile] + stop.piece + (cuts ? 1 : 0);
    p().work_indptr[cluster + 1] = ends ? chunk.first_work[stop.tile + 1] : works;
    return {stop.tile, stop.piece, stop.piece > 0 ? pages_of(before - begin) : 0,
            cuts ? pages_of(stop.place - begin) : -1};
  }

  TILE_FN int32_t pages_of(int64_t blocks) const { return to_i32(blocks * config_.granularity); }

  TILE_FN const MlaPlanParams& p() const { return tile::reread(p_); }

  const MlaPlanParams& p_;
  const Config& config_;
  bool short_;           // 32 bits hold the line
  int32_t cuts_end_;     // clusters from here on cut no tile
  int64_t payload_;      // blocks and overhead of a cluster
  int64_t begin_ = 0;    // where the cluster at hand begins, on the line
  int32_t cluster_ = 0;  // at hand
};

}  // namespace hipdecode::kernels::plan
