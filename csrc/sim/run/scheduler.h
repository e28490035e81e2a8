// SPDX-License-Identifier: MIT
#pragma once

#include "../check/counts.h"
#include "launch.h"
#include "options.h"

namespace hipdecode::sim {

/// Runs every workgroup of a launch, on `options.threads` host threads. Within a workgroup waves
/// take turns in an order that follows from the seed and the workgroup alone, so that a result
/// does not depend on the number of threads.
/// Throws Fault, which names kernel, workgroup, wave, address and disassembly.
LaunchCounts run(const Launch& launch, const Options& options);

}  // namespace hipdecode::sim
