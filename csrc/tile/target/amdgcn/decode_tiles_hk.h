// SPDX-License-Identifier: MIT
#pragma once

#include "../../schedule.h"
#include "hk_tiles.h"

namespace hipdecode::tile {

template <class Shape>
struct DecodeTiles<Shape, Schedule::hk> : amdgcn::HkTiles<Shape, Schedule::hk> {
  using amdgcn::HkTiles<Shape, Schedule::hk>::HkTiles;
};

/// Keys that go through registers on their way to LDS: gfx942's, and those that are widened. And a
/// tile of 16 rows, which would leave half of a 32x32 product idle.
template <class Shape>
  requires(!amdgcn::HkPlan<Shape>::kDirect || Shape::kRows == 16)
struct DecodeTiles<Shape, Schedule::persistent> : amdgcn::HkTiles<Shape, Schedule::persistent> {
  using amdgcn::HkTiles<Shape, Schedule::persistent>::HkTiles;
};

}  // namespace hipdecode::tile
