// SPDX-License-Identifier: MIT
#pragma once

#include "../../dtypes.h"
#include "../../softmax.h"
#include "entry.h"

namespace hipdecode::tile {

/// 2^x and log2(x) of the transcendental unit: 1 ulp, results below 2^-126 are zero.
TILE_FN float exp2(float x) { return __builtin_amdgcn_exp2f(x); }
TILE_FN float log2(float x) { return __builtin_amdgcn_logf(x); }

}  // namespace hipdecode::tile
