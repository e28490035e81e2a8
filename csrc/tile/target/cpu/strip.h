// SPDX-License-Identifier: MIT
#pragma once

#include "row.h"

namespace hipdecode::tile {

/// Whether rows whose addresses allow it are merged faster by strips than by Row.
inline constexpr bool kStripsPay = false;

/// Columns of a row that a wave merges together: as many as a group of 128 lanes has elsewhere.
template <int kVec>
class Strip : public Row<128 * kVec> {
 public:
  static constexpr int kColumns = 128 * kVec;
};

}  // namespace hipdecode::tile
