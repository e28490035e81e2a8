// SPDX-License-Identifier: MIT
#pragma once

#include "../../schedule.h"
#include "decode_tiles_hk.h"
#include "entry.h"
#include "paged_tiles.h"
#include "row.h"
#include "scalar.h"
#include "strip.h"
#include "sync.h"
// the 32x32 form is made of gfx950's own instructions
#ifdef __gfx950__
#include "decode_tiles_persistent.h"
#endif
