// SPDX-License-Identifier: MIT
#pragma once

#include "../../schedule.h"
#include "entry.h"
#include "row.h"
#include "scalar.h"
#include "sync.h"

// Decode tiles are made of one machine's own instructions.
#ifdef __gfx950__
#include "decode_tiles_persistent.h"
#endif
