// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>

#include "../../schedule.h"
#include "split_columns.h"
#include "split_keys.h"

namespace hipdecode::tile {

/// Two warpgroups compute and four waves bring keys in. While the whole output of a tile's rows
/// fits the registers of one warpgroup, each of the two has keys of its own and they merge at the
/// end; else they share the keys and each has half of the output's columns.
template <class Shape, Schedule kSchedule>
struct DecodeTiles : std::conditional_t<Shape::kRows * Shape::kHeadDimV <= 32 * 512,
                                        nvptx::SplitKeys<Shape>, nvptx::SplitColumns<Shape>> {
  using Base = std::conditional_t<Shape::kRows * Shape::kHeadDimV <= 32 * 512,
                                  nvptx::SplitKeys<Shape>, nvptx::SplitColumns<Shape>>;
  using Base::Base;
};

}  // namespace hipdecode::tile
