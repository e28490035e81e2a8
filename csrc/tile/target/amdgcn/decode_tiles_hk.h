// SPDX-License-Identifier: MIT
#pragma once

#include "../../schedule.h"
#include "hk_tiles.h"

namespace hipdecode::tile {

template <class Shape>
struct DecodeTiles<Shape, Schedule::hk> : amdgcn::HkTiles<Shape> {
  using amdgcn::HkTiles<Shape>::HkTiles;
};

/// Keys that go through registers on their way to LDS: gfx942's, and those that are widened.
template <class Shape>
  requires(!amdgcn::HkPlan<Shape>::kDirect)
struct DecodeTiles<Shape, Schedule::persistent> : amdgcn::HkTiles<Shape> {
  using amdgcn::HkTiles<Shape>::HkTiles;
};

}  // namespace hipdecode::tile
