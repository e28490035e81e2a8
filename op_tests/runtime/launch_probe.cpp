// SPDX-License-Identifier: MIT
// Launches one artefact through the kernel table, as an operator would, and prints what happens.
//
// launch_probe DRIVER PATH SYMBOL DEVICE STREAM BLOCKS PARAMS_BYTES TIMES
//   The parameters are the bytes 0, 1, 2, ...; DRIVER is a number of DeviceKind.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "../../csrc/runtime/error.h"
#include "../../csrc/runtime/kernel_table.h"

namespace rt = hipdecode::runtime;

namespace {

std::string path, symbol;

int load(int32_t kind, int32_t index, const char* name, char* message, int64_t message_bytes) {
  std::printf("loader kind=%d index=%d name=%s\n", kind, index, name);
  try {
    rt::load_kernel({static_cast<rt::DeviceKind>(kind), index}, name, path, symbol);
    return 0;
  } catch (const std::exception& error) {
    std::snprintf(message, static_cast<size_t>(message_bytes), "%s", error.what());
    return 1;
  }
}

void run(int, char** words) {
  const auto number = [&](int i) { return std::strtoll(words[i], nullptr, 10); };
  path = words[2];
  symbol = words[3];
  const rt::Place place{{static_cast<rt::DeviceKind>(number(1)), static_cast<int32_t>(number(4))},
                        reinterpret_cast<void*>(static_cast<uintptr_t>(number(5)))};
  std::vector<unsigned char> params(static_cast<size_t>(number(7)));
  for (size_t i = 0; i < params.size(); ++i) params[i] = static_cast<unsigned char>(i);
  rt::set_loader(load);
  rt::KernelMemo memo;
  for (long long i = 0; i < number(8); ++i) {
    const rt::Kernel& kernel = memo.find(place, 1, [] { return "probe/1"; });
    kernel.launch(params.data(), static_cast<int64_t>(params.size()),
                  {number(6), place.stream, {}});
  }
  std::printf(
      "compute_units=%lld\n",
      static_cast<long long>(rt::driver(place.device.kind).compute_units(place.device.index)));
}

}  // namespace

int main(int count, char** words) {
  try {
    run(count, words);
    return 0;
  } catch (const rt::NotWarmed& error) {
    std::printf("NotWarmed: %s\n", error.what());
  } catch (const std::exception& error) {
    std::printf("Error: %s\n", error.what());
  }
  return 1;
}
