// SPDX-License-Identifier: MIT
#pragma once

#include "decode_tiles.h"
#include "entry.h"
#include "paged_tiles.h"
#include "row.h"
#include "scalar.h"
#include "strip.h"
#include "sync.h"
