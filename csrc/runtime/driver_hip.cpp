// SPDX-License-Identifier: MIT
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <string>

#include "code_object_info.h"
#include "driver.h"
#include "error.h"

// The few entries of HIP that a launch needs, declared as ROCm's hip_runtime_api.h has them: the
// library is opened at run time, so that one binary serves machines with and without it.
namespace hipdecode::runtime {
namespace {

using HipError = int;                         // hipError_t, 0: success
constexpr int kMultiprocessorCount = 63;      // hipDeviceAttribute_t
constexpr int kMaxSharedMemoryPerBlock = 74;  // hipDeviceAttribute_t
constexpr int kSharedMemPerBlockOptin = 75;   // hipDeviceAttribute_t
constexpr uintptr_t kBufferPointer = 1;       // HIP_LAUNCH_PARAM_BUFFER_POINTER
constexpr uintptr_t kBufferSize = 2;          // HIP_LAUNCH_PARAM_BUFFER_SIZE
constexpr uintptr_t kBufferEnd = 3;           // HIP_LAUNCH_PARAM_END
constexpr std::array kLibraries = {"libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6"};

/// The library's entries, looked up once.
struct Hip {
  const char* (*hipGetErrorString)(HipError);
  HipError (*hipGetDevice)(int*);
  HipError (*hipSetDevice)(int);
  HipError (*hipDeviceGetAttribute)(int* value, int attribute, int device);
  HipError (*hipModuleLoadData)(void** module, const void* image);
  HipError (*hipModuleGetFunction)(void** function, void* module, const char* name);
  HipError (*hipModuleLaunchKernel)(void* function, unsigned grid_x, unsigned grid_y,
                                    unsigned grid_z, unsigned block_x, unsigned block_y,
                                    unsigned block_z, unsigned dynamic_shared_bytes, void* stream,
                                    void** parameters, void** extra);
  HipError (*hipStreamIsCapturing)(void* stream, int* status);

  void check(HipError error, const char* call, const std::string& subject) const {
    HIPDECODE_CHECK(error == 0, subject, ": expected ", call, " to succeed, got ",
                    hipGetErrorString(error), " (", error,
                    "); see the device and the artefact that `hipdecode doctor` names");
  }
};

/// The library that torch has opened, so that its streams are known to it; else the system's.
void* open_library() {
  for (const int flags : {RTLD_NOW | RTLD_NOLOAD, RTLD_NOW}) {
    for (const char* name : kLibraries) {
      if (void* library = dlopen(name, flags)) return library;
    }
  }
  const char* reason = dlerror();
  throw Error(join("HIP: expected ", kLibraries.front(), ", got ", reason ? reason : "none",
                   "; install ROCm, or a PyTorch that was built for it"));
}

template <class Entry>
void look_up(void* library, const char* name, Entry& entry) {
  entry = reinterpret_cast<Entry>(dlsym(library, name));
  HIPDECODE_CHECK(entry != nullptr, "HIP: expected the entry ", name,
                  " in libamdhip64.so, got none; install ROCm 6 or newer");
}

Hip open_hip() {
  void* library = open_library();
  Hip hip{};
  look_up(library, "hipGetErrorString", hip.hipGetErrorString);
  look_up(library, "hipGetDevice", hip.hipGetDevice);
  look_up(library, "hipSetDevice", hip.hipSetDevice);
  look_up(library, "hipDeviceGetAttribute", hip.hipDeviceGetAttribute);
  look_up(library, "hipModuleLoadData", hip.hipModuleLoadData);
  look_up(library, "hipModuleGetFunction", hip.hipModuleGetFunction);
  look_up(library, "hipModuleLaunchKernel", hip.hipModuleLaunchKernel);
  look_up(library, "hipStreamIsCapturing", hip.hipStreamIsCapturing);
  return hip;
}

/// @throws Error where there is no library; asked again at the next call
const Hip& hip() {
  static const Hip instance = open_hip();
  return instance;
}

/// Makes a device current and the caller's own current again. Costs one call where it already is.
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t index) : index_(index) {
    hip().check(hip().hipGetDevice(&before_), "hipGetDevice", "HIP");
    if (before_ != index)
      hip().check(hip().hipSetDevice(index), "hipSetDevice", join("device ", index));
  }
  ~DeviceGuard() {
    if (before_ != index_) hip().hipSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int32_t index_;
  int before_ = 0;
};

int attribute(int which, int32_t index) {
  int value = 0;
  const HipError error = hip().hipDeviceGetAttribute(&value, which, index);
  // every reduce asks for the compute units: the text is made when it is needed
  if (error != 0) hip().check(error, "hipDeviceGetAttribute", join("device ", index));
  return value;
}

class HipKernel final : public Kernel {
 public:
  HipKernel(std::string name, void* function, const CodeObjectInfo& object, int32_t index)
      : name_(std::move(name)), function_(function), info_(object.kernel), index_(index) {
    // The code object fixes its group memory; what a kernel wants beyond that is dynamic.
    dynamic_bytes_ = static_cast<unsigned>(
        std::max<int64_t>(info_.shared_bytes - object.group_segment_bytes, 0));
  }

  void launch(const void* params, int64_t params_bytes, const Launch& launch) const override {
    constexpr int64_t kMostThreads = std::numeric_limits<uint32_t>::max();  // of a grid
    HIPDECODE_CHECK(params_bytes == info_.params_bytes, name_, ": expected ", info_.params_bytes,
                    " bytes of parameters, got ", params_bytes, "; build the kernel again");
    HIPDECODE_CHECK(launch.blocks >= 1 && launch.blocks <= kMostThreads / info_.threads, name_,
                    ": expected 1 to ", kMostThreads / info_.threads, " blocks of ", info_.threads,
                    " threads, got ", launch.blocks, "; decode a smaller batch");
    auto bytes = static_cast<size_t>(params_bytes);
    std::array<void*, 5> extra = {reinterpret_cast<void*>(kBufferPointer),
                                  const_cast<void*>(params), reinterpret_cast<void*>(kBufferSize),
                                  &bytes, reinterpret_cast<void*>(kBufferEnd)};
    const DeviceGuard guard(index_);
    hip().check(hip().hipModuleLaunchKernel(function_, static_cast<unsigned>(launch.blocks), 1, 1,
                                            static_cast<unsigned>(info_.threads), 1, 1,
                                            dynamic_bytes_, launch.stream, nullptr, extra.data()),
                "hipModuleLaunchKernel", name_);
  }

  const abi::KernelInfo& info() const override { return info_; }

 private:
  std::string name_;
  void* function_;
  abi::KernelInfo info_;
  int32_t index_;
  unsigned dynamic_bytes_ = 0;
};

class HipDriver final : public Driver {
 public:
  std::unique_ptr<Kernel> load(const std::string& path, const std::string& symbol,
                               int32_t index) override {
    const std::string image = read_file(path);
    const CodeObjectInfo object = read_code_object_info(image, path, symbol);
    const int64_t wanted = std::max(object.kernel.shared_bytes, object.group_segment_bytes);
    const int64_t lds = std::max(attribute(kMaxSharedMemoryPerBlock, index),
                                 attribute(kSharedMemPerBlockOptin, index));
    HIPDECODE_CHECK(wanted <= lds, "artefact ", path, ": expected at most ", lds,
                    " bytes of LDS, got ", wanted, "; build it for the arch of device ", index);
    const DeviceGuard guard(index);
    void *module = nullptr, *function = nullptr;
    hip().check(hip().hipModuleLoadData(&module, image.data()), "hipModuleLoadData",
                "artefact " + path);
    hip().check(hip().hipModuleGetFunction(&function, module, symbol.c_str()),
                "hipModuleGetFunction", "artefact " + path);
    return std::make_unique<HipKernel>(symbol, function, object, index);
  }

  int64_t compute_units(int32_t index) override { return attribute(kMultiprocessorCount, index); }

  bool is_capturing(void* stream) override {
    int status = 0;  // hipStreamCaptureStatus, 0: none
    hip().check(hip().hipStreamIsCapturing(stream, &status), "hipStreamIsCapturing", "HIP");
    return status != 0;
  }
};

}  // namespace

Driver& hip_driver() {
  static HipDriver driver;
  return driver;
}

}  // namespace hipdecode::runtime
