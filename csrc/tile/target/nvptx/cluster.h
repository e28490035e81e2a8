// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "memory.h"

// Blocks of a cluster read each other's shared memory (PTX ISA 8.0, sections 9.7.12.4
// and 9.7.8.20).
namespace hipdecode::tile::nvptx {

/// Tells the cluster's blocks that this thread has come: what it wrote before is there for those
/// that have waited.
TILE_FN void announce_to_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
/// The same of a thread that has nothing to show.
TILE_FN void come_to_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
/// Waits until all threads of the cluster that still run have announced themselves.
TILE_FN void wait_for_cluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// Where in block `rank` of the cluster lies what lies at `address` here.
TILE_FN uint32_t address_in(uint32_t address, int rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

/// The caller's block in its cluster.
TILE_FN int rank_in_cluster() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// Reads of a cluster's shared memory.
TILE_FN float read_near(uint32_t address) {
  float value;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  return value;
}
TILE_FN float4 read_four_near(uint32_t address) {
  float4 four;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(four.x), "=f"(four.y), "=f"(four.z), "=f"(four.w)
               : "r"(address)
               : "memory");
  return four;
}

}  // namespace hipdecode::tile::nvptx
