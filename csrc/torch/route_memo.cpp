// SPDX-License-Identifier: MIT
#include "route_memo.h"

#include <cstring>
#include <mutex>
#include <string_view>
#include <unordered_map>

namespace hipdecode::torch_ops {
namespace {

constexpr size_t kMostRoutes = 8192;  // contexts grow step by step, and each is a key

struct Hash {
  size_t operator()(const RouteKey& key) const {
    return std::hash<std::string_view>{}({reinterpret_cast<const char*>(&key), sizeof(key)});
  }
};
struct Equal {
  bool operator()(const RouteKey& a, const RouteKey& b) const {
    return std::memcmp(&a, &b, sizeof(a)) == 0;
  }
};

struct Memo {
  std::mutex mutex;
  std::unordered_map<RouteKey, RouteEntry, Hash, Equal> routes;
  uint64_t generation = 0;

  /// Kernels that were forgotten must be loaded again, so their routes are forgotten, too.
  void refresh() {
    const uint64_t now = runtime::kernel_generation();
    if (now != generation) routes.clear();
    generation = now;
  }
};

Memo& memo() {
  static Memo instance;
  return instance;
}

}  // namespace

std::optional<RouteEntry> find_route(const RouteKey& key) {
  const std::lock_guard lock(memo().mutex);
  memo().refresh();
  const auto found = memo().routes.find(key);
  return found == memo().routes.end() ? std::nullopt : std::optional(found->second);
}

void keep_route(const RouteKey& key, const RouteEntry& entry) {
  const std::lock_guard lock(memo().mutex);
  memo().refresh();
  if (memo().routes.size() >= kMostRoutes) memo().routes.clear();
  memo().routes.insert_or_assign(key, entry);
}

}  // namespace hipdecode::torch_ops
