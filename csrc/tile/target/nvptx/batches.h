// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "memory.h"

// Copies to shared memory that a thread waits for by batches (PTX ISA 8.0, section 9.7.8.22).
namespace hipdecode::tile::nvptx {

/// Starts a copy of 4 bytes.
TILE_FN void copy_word(uint32_t destination, const void* source) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(destination), "l"(source)
               : "memory");
}
/// What the thread has asked for since the last time is a batch.
TILE_FN void close_batch() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Until but the last kOpen batches are there, for this thread.
template <int kOpen>
TILE_FN void wait_for_batches() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
}

}  // namespace hipdecode::tile::nvptx
