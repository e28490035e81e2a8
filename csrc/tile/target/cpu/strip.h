// SPDX-License-Identifier: MIT
#pragma once

#include "row.h"

namespace hipdecode::tile {

/// Whether rows whose addresses allow it are merged faster by strips than by Row.
inline constexpr bool kStripsPay = false;

/// Columns of a row that a wave merges together: kEach times as many as 128 lanes have.
template <int kVec, int kEach = 1>
class Strip : public Row<128 * kVec * kEach> {
 public:
  static constexpr int kColumns = 128 * kVec * kEach;
};

}  // namespace hipdecode::tile
