// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../check/counts.h"
#include "lds.h"

namespace hipdecode::sim {

/// How the LDS serves 64 lanes: a few phases, in each of which every bank gives one dword. Lanes
/// of one phase that want different dwords of one bank take turns: conflict cycles.
///
/// gfx950, reads: 64 banks; 32 and 64 bit (transposing ones too) in phases of 64 and 32 lanes,
/// 128 bit in 4 phases of 16 lanes (0-3, 12-15, 20-27 | 4-11, 16-19, 28-31 | the same + 32).
/// gfx950, writes and 96 bit, and all of gfx942: 32 banks; 32, 64, 128 bit in 2, 4, 8 phases;
/// wide reads take lanes 0-3, 20-23 | 4-7, 16-19 | 8-11, 28-31 | 12-15, 24-27 | the same + 32.
/// On gfx950 the phases of 64, 96 and 128-bit reads and of 64-bit writes are those that HipKittens
/// (arXiv:2511.08083) found by experiment; the others are taken to follow the same rules, and
/// 8 and 16-bit accesses to behave as 32-bit ones.
void count_banks(Counts& counts, const Lds& lds, bool write, uint64_t lanes,
                 const uint32_t* address, uint32_t bytes);

}  // namespace hipdecode::sim
