// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "problem.h"
#include "tile/tile.h"

namespace hipdecode::sanitize {

constexpr int kThreads = 4;

/// Runs the blocks of a kernel on threads, each with group memory of its own.
template <class Kernel>
void launch(const typename Kernel::Params& params, int64_t blocks) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&] {
      const Block<typename Kernel::Shared> shared(1);
      for (int64_t i; (i = next.fetch_add(1)) < blocks;)
        Kernel::run(params, tile::Block(i, blocks), shared[0]);
    });
  for (auto& thread : threads) thread.join();
}

}  // namespace hipdecode::sanitize
