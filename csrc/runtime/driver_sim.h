// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>

namespace hipdecode::runtime {

/// How the simulator's driver runs kernels.
struct Simulator {
  std::string library;  // built from csrc/sim
  std::string arch;     // "gfx942" or "gfx950"
  uint64_t seed = 0;    // of the order in which waves run
  uint32_t checks = 0;  // bits of csrc/sim/c_api.h
  int64_t compute_units = 1;
};

/// Replaces how sim_driver() runs kernels from now on; those that are loaded stay.
void set_simulator(Simulator simulator);

}  // namespace hipdecode::runtime
