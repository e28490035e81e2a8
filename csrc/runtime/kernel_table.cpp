// SPDX-License-Identifier: MIT
#include "kernel_table.h"

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

#include "error.h"

namespace hipdecode::runtime {
namespace {

/// The one mutable global of the host side.
struct Table {
  std::shared_mutex mutex;
  std::unordered_map<std::string, const Kernel*> kernels;
  std::vector<std::unique_ptr<Kernel>> owned;
  Loader loader = nullptr;
  std::atomic<uint64_t> generation{0};
};

Table& table() {
  static Table instance;
  return instance;
}

std::string key(Device device, const std::string& name) {
  return join(static_cast<int>(device.kind), ":", device.index, ":", name);
}

const Kernel* lookup(Device device, const std::string& name) {
  const std::shared_lock lock(table().mutex);
  const auto found = table().kernels.find(key(device, name));
  return found == table().kernels.end() ? nullptr : found->second;
}

}  // namespace

const Kernel& find_kernel(const Place& place, const std::string& name) {
  const Device device = place.device;
  if (const Kernel* kernel = lookup(device, name)) return *kernel;
  if (driver(device.kind).is_capturing(place.stream))
    throw NotWarmed(join("kernel ", name,
                         ": expected it to be loaded before the graph capture, got its first use "
                         "inside; call hipdecode.warmup() or run the step once before capturing"));
  const Loader loader = table().loader;
  HIPDECODE_CHECK(loader != nullptr, "kernel ", name,
                  ": expected it to be loaded, got no loader; import hipdecode");
  std::array<char, 4096> message{};
  const int failed = loader(static_cast<int32_t>(device.kind), device.index, name.c_str(),
                            message.data(), message.size());
  const Kernel* kernel = failed ? nullptr : lookup(device, name);
  HIPDECODE_CHECK(kernel != nullptr, "kernel ", name, ": ", message.data());
  return *kernel;
}

void load_kernel(Device device, const std::string& name, const std::string& path,
                 const std::string& symbol) {
  if (lookup(device, name) != nullptr) return;
  std::unique_ptr<Kernel> kernel = driver(device.kind).load(path, symbol, device.index);
  const std::unique_lock lock(table().mutex);
  if (table().kernels.emplace(key(device, name), kernel.get()).second)
    table().owned.push_back(std::move(kernel));
}

void clear_kernels() {
  const std::unique_lock lock(table().mutex);
  table().kernels.clear();
  ++table().generation;
}

uint64_t kernel_generation() { return table().generation.load(std::memory_order_acquire); }

void set_loader(Loader loader) { table().loader = loader; }

}  // namespace hipdecode::runtime
