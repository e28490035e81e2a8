// SPDX-License-Identifier: MIT
// Takes the place of libamdhip64.so: prints every call, and fails where HIP_STAND_IN_FAILS says so.
// The signatures are those of ROCm's hip_runtime_api.h.
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

int current_device = 0;
char module_token, function_token;

bool fails(const char* call) {
  const char* which = std::getenv("HIP_STAND_IN_FAILS");
  return which != nullptr && std::strcmp(which, call) == 0;
}

int answer(const char* call) { return fails(call) ? 209 : 0; }

}  // namespace

extern "C" {

const char* hipGetErrorString(int error) {
  return error == 209 ? "no kernel image is available for execution on the device" : "unknown";
}

int hipGetDevice(int* device) {
  *device = current_device;
  return answer("hipGetDevice");
}

int hipSetDevice(int device) {
  std::printf("hipSetDevice device=%d\n", device);
  current_device = device;
  return answer("hipSetDevice");
}

int hipDeviceGetAttribute(int* value, int attribute, int device) {
  // 63: hipDeviceAttributeMultiprocessorCount, 74 and 75: shared memory of a block
  *value = attribute == 63 ? 256 + device : attribute == 74 ? 65536 : attribute == 75 ? 163840 : -1;
  return answer("hipDeviceGetAttribute");
}

int hipModuleLoadData(void** module, const void* image) {
  std::printf("hipModuleLoadData device=%d magic=%.3s\n", current_device,
              static_cast<const char*>(image) + 1);
  *module = &module_token;
  return answer("hipModuleLoadData");
}

int hipModuleGetFunction(void** function, void* module, const char* name) {
  std::printf("hipModuleGetFunction name=%s known=%d\n", name, module == &module_token);
  *function = &function_token;
  return answer("hipModuleGetFunction");
}

int hipModuleLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                          unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                          void* stream, void** parameters, void** extra) {
  const bool layout = extra[0] == reinterpret_cast<void*>(1) &&
                      extra[2] == reinterpret_cast<void*>(2) &&
                      extra[4] == reinterpret_cast<void*>(3) && parameters == nullptr;
  const size_t bytes = *static_cast<const size_t*>(extra[3]);
  std::printf(
      "hipModuleLaunchKernel device=%d known=%d grid=%u,%u,%u block=%u,%u,%u shared=%u "
      "stream=%" PRIuPTR " layout=%d kernarg=",
      current_device, function == &function_token, grid_x, grid_y, grid_z, block_x, block_y,
      block_z, shared, reinterpret_cast<uintptr_t>(stream), layout);
  for (size_t i = 0; i < bytes; ++i)
    std::printf("%02x", static_cast<const unsigned char*>(extra[1])[i]);
  std::printf("\n");
  return answer("hipModuleLaunchKernel");
}

int hipStreamIsCapturing(void* stream, int* status) {
  std::printf("hipStreamIsCapturing stream=%" PRIuPTR "\n", reinterpret_cast<uintptr_t>(stream));
  *status = std::getenv("HIP_STAND_IN_CAPTURES") != nullptr;
  return answer("hipStreamIsCapturing");
}
}
