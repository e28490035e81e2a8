// SPDX-License-Identifier: MIT
#pragma once

namespace hipdecode::tile {

/// Which kernel the tiles serve. A target may hold its data differently for each: `hk` is for the
/// least work before the first result, `persistent` for the most throughput.
enum class Schedule { hk, persistent };

/// What DecodeTiles does; a target specialises it for its shapes and schedules.
template <class Shape, Schedule kSchedule>
struct DecodeTiles;

}  // namespace hipdecode::tile
