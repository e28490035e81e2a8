// SPDX-License-Identifier: MIT
#pragma once

// Picks the one target that this translation unit is compiled for. Kernels include this page and
// nothing under target/. README.md lists what a target provides.
#include "target/cpu/cpu.h"
