// SPDX-License-Identifier: MIT
#include "memory.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>

namespace hipdecode::sim {
namespace {

std::string hex(uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace

Memory::Memory(std::span<const Extent> allowed) : mapped_(allowed.empty()) {
  for (const Extent& extent : allowed) {
    ranges_.push_back({extent.address, extent.address + extent.bytes});
  }
  if (mapped_) read_maps();
  sort();
}

void Memory::allow(Extent extent) {
  if (mapped_) return;
  ranges_.push_back({extent.address, extent.address + extent.bytes});
  sort();
}

void Memory::sort() {
  std::sort(ranges_.begin(), ranges_.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  std::vector<Range> merged;
  for (const Range& range : ranges_) {
    if (!merged.empty() && range.begin <= merged.back().end) {
      merged.back().end = std::max(merged.back().end, range.end);
    } else {
      merged.push_back(range);
    }
  }
  ranges_ = std::move(merged);
}

void Memory::read_maps() {
  ranges_.clear();
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    unsigned long long begin = 0, end = 0;
    char readable = 0, writable = 0;
    if (std::sscanf(line.c_str(), "%llx-%llx %c%c", &begin, &end, &readable, &writable) == 4 &&
        readable == 'r' && writable == 'w') {
      ranges_.push_back({begin, end});
    }
  }
}

bool Memory::remember(uint64_t address, uint64_t bytes) {
  auto after = std::upper_bound(ranges_.begin(), ranges_.end(), address,
                                [](uint64_t a, const Range& range) { return a < range.begin; });
  if (after == ranges_.begin()) return false;
  const Range& range = *--after;
  if (address >= range.end || bytes > range.end - address) return false;
  begin_ = range.begin;
  size_ = range.end - range.begin;
  return true;
}

void Memory::find(uint64_t address, uint64_t bytes, std::string_view verb) {
  if (remember(address, bytes)) return;
  if (mapped_) {  // it may have been mapped since
    read_maps();
    sort();
    if (remember(address, bytes)) return;
  }
  std::ostringstream text;
  text << "bounds: " << verb << " " << bytes << " bytes at " << hex(address) << ", which "
       << (mapped_ ? "is not mapped for reading and writing" : "no tensor of the call owns");
  uint64_t best = ~uint64_t{0};
  const Range* nearest = nullptr;
  for (const Range& range : ranges_) {
    uint64_t gap = address < range.begin ? range.begin - address : address - range.end;
    if (gap < best) best = gap, nearest = &range;
  }
  if (nearest != nullptr && !mapped_) {
    text << "; the nearest allowed range is [" << hex(nearest->begin) << ", " << hex(nearest->end)
         << ")";
  }
  throw Fault(text.str());
}

void Memory::check_lanes(const uint64_t* address, uint64_t lanes, uint64_t bytes,
                         std::string_view verb) {
  bool inside = size_ >= bytes;
  if (inside) {
    uint64_t limit = size_ - bytes;
    uint64_t outside = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      outside |= static_cast<uint64_t>(address[lane] - begin_ > limit) << lane;
    }
    inside = (outside & lanes) == 0;
  }
  if (inside) return;
  for (uint64_t left = lanes; left != 0; left &= left - 1) {
    int lane = std::countr_zero(left);
    try {
      check(address[lane], bytes, verb);
    } catch (const Fault& fault) {
      throw Fault(std::string(fault.what()) + " (lane " + std::to_string(lane) + ")");
    }
  }
}

}  // namespace hipdecode::sim
