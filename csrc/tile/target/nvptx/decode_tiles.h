// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>

#include "../../schedule.h"
#include "split_both.h"
#include "split_columns.h"
#include "split_keys.h"
#include "split_roles.h"

namespace hipdecode::tile {
namespace nvptx {

/// While the whole output of a tile's rows fits the registers of one warpgroup, each of two has
/// keys of its own and they merge at the end; else each has half of the output's columns. Keys of
/// 16 bits then go to the matrix unit from where they lie, fp8 through registers and a third
/// warpgroup scores them.
template <class Shape>
struct TilesOfShape {
  using Type = std::conditional_t<
      Shape::kRows * Shape::kHeadDimV <= 32 * 512, SplitKeys<Shape>,
      std::conditional_t<kIsFp8<Shape::kKvDType>, SplitRoles<Shape>, SplitBoth<Shape>>>;
};
/// Packed keys are 16 bits wide once they are there.
template <class Shape>
  requires kIsPacked<Shape>
struct TilesOfShape<Shape> {
  using Type = SplitColumns<Shape>;
};

}  // namespace nvptx

template <class Shape, Schedule kSchedule>
struct DecodeTiles : nvptx::TilesOfShape<Shape>::Type {
  using Base = typename nvptx::TilesOfShape<Shape>::Type;
  using Base::Base;
};

}  // namespace hipdecode::tile
