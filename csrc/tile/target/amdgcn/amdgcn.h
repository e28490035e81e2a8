// SPDX-License-Identifier: MIT
#pragma once

#include "../../schedule.h"
#include "entry.h"
#include "row.h"
#include "scalar.h"
#include "sync.h"
