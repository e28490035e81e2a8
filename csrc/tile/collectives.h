// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "softmax.h"

// What a wave or a block does together, from what its target's sync.h offers: lane(), lanes(),
// wave_max, wave_all, from_lane, broadcast and barrier(). A block of one lane does it in order.

namespace hipdecode::tile {

/// Calls f(k) for every k below count; the lanes of a wave share the calls.
template <class F>
TILE_FN void for_wave(int32_t count, F f) {
  TILE_ROLLED
  for (int32_t k = lane(); k < count; k += lanes()) f(k);
}

/// The largest of f(0) ... f(count - 1), or -inf; the lanes of a wave share the calls.
template <class F>
TILE_FN float max_over(int32_t count, F f) {
  float most = -kInfinity;
  for_wave(count, [&](int32_t k) {
    const float value = f(k);
    most = value > most ? value : most;
  });
  return wave_max(most);
}

/// What any number of values weigh, kMost at a time: the lanes of a wave share the reading and keep
/// them.
class Spread {
 public:
  static constexpr bool kKnowsAll = false;  // places are known of as many as there are
  static constexpr int32_t kMost = lanes() > 8 ? lanes() : 8;

  /// Calls f(first) for every step-th number below count.
  template <class F>
  TILE_FN void for_turns(int32_t count, int32_t step, F f) {
    TILE_ROLLED
    for (int32_t first = 0; first < count; first += step) f(first);
  }

  /// The largest of read(0) ... read(count - 1), or -inf.
  template <class Read>
  TILE_FN float largest(int32_t count, Read read) const {
    return max_over(count, read);
  }

  /// Weighs the values from `first` on where that is a multiple of kMost; zeros behind the last.
  template <class Read, class Weigh>
  TILE_FN void set(int32_t first, int32_t count, Read read, Weigh weigh) {
    if (first % kMost != 0) return;
    TILE_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int32_t k = i * lanes() + lane();
      values_[i] = k < count - first ? weigh(read(first + k)) : 0;
    }
  }

  /// The weight of value k modulo kMost; k is the same in all lanes.
  TILE_FN float operator[](int32_t k) const { return broadcast(values_[k / lanes()], k % lanes()); }

 private:
  static constexpr int32_t kEach = kMost / lanes();
  float values_[kEach];
};

/// The same of at most kMost values, all of which every lane reads and keeps: nothing is exchanged.
template <int32_t kMost_>
class Few {
 public:
  static constexpr bool kKnowsAll = true;  // places are known of kMost
  static constexpr int32_t kMost = kMost_;

  template <class F>
  TILE_FN void for_turns(int32_t count, int32_t step, F f) {
    TILE_UNROLL
    for (int32_t first = 0; first < kMost; first += step)
      if (first < count) f(first);
  }

  template <class Read>
  TILE_FN float largest(int32_t count, Read read) {
    float most = -kInfinity;
    TILE_UNROLL
    for (int k = 0; k < kMost; ++k) values_[k] = k < count ? own(read(k)) : -kInfinity;
    TILE_UNROLL
    for (int k = 0; k < kMost; ++k) most = values_[k] > most ? values_[k] : most;
    return most;
  }

  /// Weighs what largest() has read.
  template <class Read, class Weigh>
  TILE_FN void set(int32_t first, int32_t, Read, Weigh weigh) {
    if (first != 0) return;
    TILE_UNROLL
    for (int k = 0; k < kMost; ++k) values_[k] = weigh(values_[k]);
  }

  TILE_FN float operator[](int32_t k) const { return values_[k]; }

 private:
  float values_[kMost];
};

/// Whether f(k) holds for every k below count; the lanes of a wave share the calls.
template <class F>
TILE_FN bool all_over(int32_t count, F f) {
  bool all = true;
  for_wave(count, [&](int32_t k) { all = all && f(k); });
  return wave_all(all);
}

/// Threads of a block, and which of them the caller is.
TILE_FN int32_t threads(Block block) { return block.waves() * lanes(); }
TILE_FN int32_t thread(Block block) { return block.wave() * lanes() + lane(); }

/// Calls f(k) for every k below count; the threads of a block share the calls.
template <class F>
TILE_FN void for_block(Block block, int32_t count, F f) {
  TILE_ROLLED
  for (int64_t k = thread(block); k < count; k += threads(block)) f(static_cast<int32_t>(k));
}

/// The sum over the first `count` lanes of a wave up to the caller, itself included.
template <class Value>
TILE_FN Value wave_scan(Value value, int32_t count) {
  for (int32_t distance = 1; distance < count; distance *= 2) {
    const Value other = from_lane(value, lane() - distance);
    if (lane() >= distance) value = other + value;
  }
  return value;
}

/// Calls use(k, f(0) + ... + f(k - 1)) for every k below count and returns the sum of all to all
/// threads. The threads of a block share the calls: the one that called f(k) calls use(k, ...)
/// next. `of_wave` is group memory, a value per wave. All threads see what use() wrote.
template <class Value, class F, class Use>
TILE_FN Value scan_over(Block block, Value* of_wave, int32_t count, F f, Use use) {
  Value before{};
  TILE_ROLLED
  for (int32_t first = 0; first < count; first += threads(block)) {
    const int32_t k = first + thread(block);
    Value mine{};
    if (k < count) mine = f(k);
    const Value lanes_sum = wave_scan(mine, lanes());
    if (lane() == lanes() - 1) of_wave[block.wave()] = lanes_sum;
    barrier();
    Value waves_sum{};
    if (lane() < block.waves()) waves_sum = of_wave[lane()];
    waves_sum = wave_scan(waves_sum, block.waves());
    const Value earlier_waves = broadcast(waves_sum, block.wave() - 1);
    const Value earlier_lanes = from_lane(lanes_sum, lane() - 1);
    Value earlier = before;
    if (block.wave() > 0) earlier = earlier + earlier_waves;
    if (lane() > 0) earlier = earlier + earlier_lanes;
    if (k < count) use(k, earlier);
    before = before + broadcast(waves_sum, block.waves() - 1);
    barrier();
  }
  return before;
}

}  // namespace hipdecode::tile
