// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../paged_cache.h"
#include "global.h"
#include "hk_matrix.h"
#include "widen.h"

namespace hipdecode::tile::amdgcn {

/// How a block of paged attention is cut: every wave has all query rows and a part of each tile's
/// tokens. A chunk of the cache is 16 bytes and a matrix operand at once, so keys and values go
/// from memory to registers, 16 bytes a lane, and nothing passes through LDS.
///
/// A lane's chunk of values is kChunk tokens of a column: the depth of output^T = values^T x
/// weights^T is four chunks, of the lanes l / 16. Each product scores^T = keys x queries^T gives a
/// lane four tokens, in registers; with row m of product i being token i * 4 + m % 4 of chunk m /
/// 4, these are tokens of the lane's own chunk, and the weights are an operand where they are.
template <class Shape>
struct PagedPlan {
  using Cache = PagedCache<Shape>;
  static constexpr bool kFp8 = kIsFp8<Shape::kKvDType>;
  static constexpr bool kTokenScales = Shape::kScales == PagedScales::token;
  static constexpr int kElementBytes = sizeof(typename Cache::Element);
  static constexpr int kChunk = Cache::kChunk;  // elements

  static constexpr int kRowTiles = Shape::kRows / 16;
  static constexpr int kTokenWaves = 4, kWaves = kTokenWaves;
  static constexpr int kProducts = kChunk / 4;  // of 16 tokens each, for the scores of a part
  static constexpr int kPart = 4 * kChunk, kTokens = kPart * kTokenWaves;
  static constexpr int kGroups = kPart / kGroupTokens;
  static constexpr int kKeyChunks = Shape::kHeadDim / kPart;  // of a token in one lane
  static constexpr int kColumnTiles = Shape::kHeadDim / 16;
  static constexpr int kUnits = kFp8 ? 2 : 1;  // matrix operands of a chunk
  static_assert(Shape::kHeadDim % 64 == 0 && Shape::kRows % 16 == 0);

  // LDS serves the merge of the token waves alone; several blocks share it.
  static constexpr int kKeyBytes = 0;
  static constexpr bool kWritesFp8 = true;
  static constexpr int kMergeRound = kGfx950 ? kColumnTiles : kTokenWaves;

  /// First of the 4 adjacent value columns of a lane in a tile of the output.
  static constexpr int kColumnStep = 1;
  static TILE_FN int column(int tile, int lane) { return tile * 16 + lane / 16 * 4; }
};

}  // namespace hipdecode::tile::amdgcn
