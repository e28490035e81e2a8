// SPDX-License-Identifier: MIT
#pragma once

// The planner: lays the queries of a batch out as tiles of rows, cuts the keys of each tile into
// works and deals the works to persistent workers ("clusters"), all from lengths on the device.
//
//   requests --Tiles--> chunks of tiles --Balanced | IntraBatch--> works --Output--> buffers
//
// Balanced puts all tiles on one line of blocks and cuts the line into equal payloads. IntraBatch
// gives every tile its own number of cuts. Buffers too small for the schedule make it coarser, then
// shorter.

#include "parts/plan_balanced.h"
#include "parts/plan_intra_batch.h"
#include "parts/plan_output.h"

namespace hipdecode::kernels {

/// Fills the six metadata tensors of one decode step; one block does it all.
/// @pre batch, head and page counts are the caller's; lengths on the device may be anything
struct MlaPlan {
  using Params = abi::MlaPlanParams;
  using Shared = plan::Chunk;
  static constexpr int kWaves = plan::kWaves;

  TILE_FN static void run(const Params& p, tile::Block block, Shared& chunk) {
    if (block.index() != 0) return;
    const plan::Config config(p);
    plan::Tiles tiles(p, config, block, chunk);
    plan::Output out(p, config, block);
    bool more = tiles.next();
    const plan::Totals all = tiles.totals();
    plan::Balanced balanced(p, config, all);
    plan::IntraBatch even(p, config, all);
    const bool intra_batch = p.intra_batch_mode != 0;
    for (; more; more = tiles.next())
      intra_batch ? even.fill(block, tiles, chunk, out) : balanced.fill(block, tiles, chunk, out);
    const int32_t works = tiles.first() + out.cuts();
    intra_batch ? even.close(block, works) : balanced.close(block, works);
    out.close(tiles.first());
  }
};

}  // namespace hipdecode::kernels
