// SPDX-License-Identifier: MIT
#pragma once

// Picks the one target that this translation unit is compiled for. Kernels include this page and
// nothing under target/. README.md lists what a target provides.
#if defined(__AMDGCN__)
#include "target/amdgcn/amdgcn.h"
#elif defined(__CUDACC__)
#include "target/nvptx/nvptx.h"
#else
#include "target/cpu/cpu.h"
#endif
