// SPDX-License-Identifier: MIT
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "code_object_info.h"
#include "driver.h"
#include "error.h"

// The few entries of CUDA's driver that a launch needs, declared as cuda.h has them: the library is
// opened at run time, so that one binary serves machines with and without it.
namespace hipdecode::runtime {
namespace {

using CudaResult = int;                        // CUresult, 0: success
using Context = void*;                         // CUcontext
constexpr int kMultiprocessorCount = 16;       // CUdevice_attribute
constexpr int kMaxSharedPerBlockOptin = 97;    // CUdevice_attribute
constexpr int kMaxDynamicSharedSizeBytes = 8;  // CUfunction_attribute
constexpr int kCooperativeLaunch = 95;         // CUdevice_attribute
constexpr int kNonPortableClusterSize = 14;    // CUfunction_attribute
constexpr int kCooperative = 2;                // CUlaunchAttributeID
constexpr int kClusterDimension = 4;           // CUlaunchAttributeID
constexpr int kStartsEarly = 6;                // CUlaunchAttributeID: programmatic serialization
constexpr int64_t kMostBlocks = 0x7fffffff;    // of a grid, along x
constexpr const char* kLibrary = "libcuda.so.1";

struct LaunchAttribute {  // CUlaunchAttribute
  int id;
  int padding = 0;
  union {
    int value;
    unsigned cluster[3];  // blocks
    char bytes[64];
  };
};
static_assert(sizeof(LaunchAttribute) == 72);

struct LaunchConfig {  // CUlaunchConfig
  unsigned grid[3], block[3];
  unsigned shared_bytes;
  void* stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};
static_assert(sizeof(LaunchConfig) == 56);

/// The library's entries, looked up once.
struct Cuda {
  CudaResult (*cuInit)(unsigned flags);
  CudaResult (*cuGetErrorString)(CudaResult, const char** text);
  CudaResult (*cuDeviceGet)(int* device, int ordinal);
  CudaResult (*cuDeviceGetAttribute)(int* value, int attribute, int device);
  CudaResult (*cuDevicePrimaryCtxRetain)(Context* context, int device);
  CudaResult (*cuCtxGetCurrent)(Context* context);
  CudaResult (*cuCtxPushCurrent)(Context context);
  CudaResult (*cuCtxPopCurrent)(Context* context);
  CudaResult (*cuModuleLoadData)(void** module, const void* image);
  CudaResult (*cuModuleGetFunction)(void** function, void* module, const char* name);
  CudaResult (*cuFuncSetAttribute)(void* function, int attribute, int value);
  CudaResult (*cuLaunchKernelEx)(const LaunchConfig* config, void* function, void** parameters,
                                 void** extra);
  CudaResult (*cuOccupancyMaxActiveBlocksPerMultiprocessor)(int* blocks, void* function,
                                                            int threads,
                                                            size_t dynamic_shared_bytes);
  CudaResult (*cuOccupancyMaxPotentialClusterSize)(int* blocks, void* function,
                                                   const LaunchConfig* config);
  CudaResult (*cuStreamIsCapturing)(void* stream, int* status);

  void check(CudaResult result, const char* call, const std::string& subject) const {
    if (result == 0) return;
    const char* text = nullptr;
    cuGetErrorString(result, &text);
    throw Error(join(subject, ": expected ", call, " to succeed, got ", text ? text : "an error",
                     " (", result,
                     "); see the device and the artefact that `hipdecode doctor` names"));
  }
};

template <class Entry>
void look_up(void* library, const char* name, Entry& entry) {
  entry = reinterpret_cast<Entry>(dlsym(library, name));
  HIPDECODE_CHECK(entry != nullptr, "CUDA: expected the entry ", name, " in ", kLibrary,
                  ", got none; install an NVIDIA driver for CUDA 12 or newer");
}

Cuda open_cuda() {
  void* library = dlopen(kLibrary, RTLD_NOW);
  const char* reason = library ? nullptr : dlerror();
  HIPDECODE_CHECK(library != nullptr, "CUDA: expected ", kLibrary, ", got ",
                  reason ? reason : "none", "; install an NVIDIA driver");
  Cuda cuda{};
  look_up(library, "cuInit", cuda.cuInit);
  look_up(library, "cuGetErrorString", cuda.cuGetErrorString);
  look_up(library, "cuDeviceGet", cuda.cuDeviceGet);
  look_up(library, "cuDeviceGetAttribute", cuda.cuDeviceGetAttribute);
  look_up(library, "cuDevicePrimaryCtxRetain", cuda.cuDevicePrimaryCtxRetain);
  look_up(library, "cuCtxGetCurrent", cuda.cuCtxGetCurrent);
  look_up(library, "cuCtxPushCurrent_v2", cuda.cuCtxPushCurrent);
  look_up(library, "cuCtxPopCurrent_v2", cuda.cuCtxPopCurrent);
  look_up(library, "cuModuleLoadData", cuda.cuModuleLoadData);
  look_up(library, "cuModuleGetFunction", cuda.cuModuleGetFunction);
  look_up(library, "cuFuncSetAttribute", cuda.cuFuncSetAttribute);
  look_up(library, "cuLaunchKernelEx", cuda.cuLaunchKernelEx);
  look_up(library, "cuOccupancyMaxActiveBlocksPerMultiprocessor",
          cuda.cuOccupancyMaxActiveBlocksPerMultiprocessor);
  look_up(library, "cuOccupancyMaxPotentialClusterSize", cuda.cuOccupancyMaxPotentialClusterSize);
  look_up(library, "cuStreamIsCapturing", cuda.cuStreamIsCapturing);
  cuda.check(cuda.cuInit(0), "cuInit", "CUDA");
  return cuda;
}

/// @throws Error where there is no library; asked again at the next call
const Cuda& cuda() {
  static const Cuda instance = open_cuda();
  return instance;
}

int device_at(int32_t index) {
  int device = 0;
  cuda().check(cuda().cuDeviceGet(&device, index), "cuDeviceGet", join("device ", index));
  return device;
}

int attribute(int which, int32_t index) {
  int value = 0;
  cuda().check(cuda().cuDeviceGetAttribute(&value, which, device_at(index)), "cuDeviceGetAttribute",
               join("device ", index));
  return value;
}

/// The context that torch uses on a device, retained once.
Context primary_context(int32_t index) {
  static std::mutex mutex;
  static std::unordered_map<int32_t, Context> contexts;
  const std::lock_guard lock(mutex);
  Context& context = contexts[index];
  if (context == nullptr)
    cuda().check(cuda().cuDevicePrimaryCtxRetain(&context, device_at(index)),
                 "cuDevicePrimaryCtxRetain", join("device ", index));
  return context;
}

/// Makes a device's context current and the caller's own current again. Costs one call where it
/// already is.
class ContextGuard {
 public:
  explicit ContextGuard(Context context) {
    Context before = nullptr;
    cuda().check(cuda().cuCtxGetCurrent(&before), "cuCtxGetCurrent", "CUDA");
    if (before == context) return;
    cuda().check(cuda().cuCtxPushCurrent(context), "cuCtxPushCurrent", "CUDA");
    pushed_ = true;
  }
  ~ContextGuard() {
    Context ours = nullptr;
    if (pushed_) cuda().cuCtxPopCurrent(&ours);
  }
  ContextGuard(const ContextGuard&) = delete;
  ContextGuard& operator=(const ContextGuard&) = delete;

 private:
  bool pushed_ = false;
};

class CudaKernel final : public Kernel {
 public:
  CudaKernel(std::string name, void* function, const abi::KernelInfo& info, Context context,
             int64_t most_together, int64_t most_clustered)
      : name_(std::move(name)),
        function_(function),
        info_(info),
        context_(context),
        most_together_(most_together),
        most_clustered_(most_clustered) {}

  void launch(const void* params, int64_t params_bytes, const Launch& launch) const override {
    HIPDECODE_CHECK(params_bytes == info_.params_bytes, name_, ": expected ", info_.params_bytes,
                    " bytes of parameters, got ", params_bytes, "; build the kernel again");
    HIPDECODE_CHECK(launch.blocks >= 1 && launch.blocks <= kMostBlocks, name_, ": expected 1 to ",
                    kMostBlocks, " blocks, got ", launch.blocks, "; decode a smaller batch");
    HIPDECODE_CHECK(!launch.together || launch.blocks <= most_together_, name_,
                    ": expected at most ", most_together_, " blocks to run together, got ",
                    launch.blocks, "; ask for fewer splits");
    HIPDECODE_CHECK(launch.cluster == 1 ||
                        (launch.cluster <= most_clustered_ && launch.blocks % launch.cluster == 0),
                    name_, ": expected whole clusters of at most ", most_clustered_,
                    " blocks, got ", launch.blocks, " in clusters of ", launch.cluster,
                    "; ask for fewer splits");
    std::array<void*, 1> parameters = {const_cast<void*>(params)};
    // a launch has one of them at most: kernels that meet do not wait for earlier launches
    const bool clusters = launch.cluster > 1;
    LaunchAttribute special{.id = launch.together ? kCooperative : kStartsEarly, .value = 1};
    if (clusters)
      special = {.id = kClusterDimension, .cluster = {static_cast<unsigned>(launch.cluster), 1, 1}};
    const LaunchConfig config{
        .grid = {static_cast<unsigned>(launch.blocks), 1, 1},
        .block = {static_cast<unsigned>(info_.threads), 1, 1},
        .shared_bytes = static_cast<unsigned>(info_.shared_bytes),
        .stream = launch.stream,
        .attributes = &special,
        .attribute_count = launch.together || clusters || info_.waits != 0 ? 1u : 0u};
    const ContextGuard guard(context_);
    cuda().check(cuda().cuLaunchKernelEx(&config, function_, parameters.data(), nullptr),
                 "cuLaunchKernelEx", name_);
  }

  const abi::KernelInfo& info() const override { return info_; }
  int64_t most_together() const override { return most_together_; }
  int64_t most_clustered() const override { return most_clustered_; }

 private:
  std::string name_;
  void* function_;
  abi::KernelInfo info_;
  Context context_;
  int64_t most_together_, most_clustered_;
};

class CudaDriver final : public Driver {
 public:
  std::unique_ptr<Kernel> load(const std::string& path, const std::string& symbol,
                               int32_t index) override {
    const std::string image = read_file(path);
    const abi::KernelInfo info = read_code_object_info(image, path, symbol).kernel;
    const int64_t shared = attribute(kMaxSharedPerBlockOptin, index);
    HIPDECODE_CHECK(info.shared_bytes <= shared, "artefact ", path, ": expected at most ", shared,
                    " bytes of shared memory, got ", info.shared_bytes,
                    "; build it for the arch of device ", index);
    const std::string subject = "artefact " + path;
    const Context context = primary_context(index);
    const ContextGuard guard(context);
    void *module = nullptr, *function = nullptr;
    cuda().check(cuda().cuModuleLoadData(&module, image.data()), "cuModuleLoadData", subject);
    cuda().check(cuda().cuModuleGetFunction(&function, module, symbol.c_str()),
                 "cuModuleGetFunction", subject);
    cuda().check(cuda().cuFuncSetAttribute(function, kMaxDynamicSharedSizeBytes,
                                           static_cast<int>(info.shared_bytes)),
                 "cuFuncSetAttribute", subject);
    int resident = 0;  // blocks of a multiprocessor
    if (info.meets == abi::kMeetTogether && attribute(kCooperativeLaunch, index) != 0)
      cuda().check(cuda().cuOccupancyMaxActiveBlocksPerMultiprocessor(
                       &resident, function, info.threads, static_cast<size_t>(info.shared_bytes)),
                   "cuOccupancyMaxActiveBlocksPerMultiprocessor", subject);
    return std::make_unique<CudaKernel>(symbol, function, info, context,
                                        resident * compute_units(index),
                                        most_clustered(function, info, subject));
  }

  /// Blocks of a cluster at most; the device's clusters may be larger than CUDA promises.
  static int64_t most_clustered(void* function, const abi::KernelInfo& info,
                                const std::string& subject) {
    if (info.meets != abi::kMeetInClusters) return 0;
    cuda().check(cuda().cuFuncSetAttribute(function, kNonPortableClusterSize, 1),
                 "cuFuncSetAttribute", subject);
    const LaunchConfig config{.grid = {1, 1, 1},
                              .block = {static_cast<unsigned>(info.threads), 1, 1},
                              .shared_bytes = static_cast<unsigned>(info.shared_bytes),
                              .stream = nullptr,
                              .attributes = nullptr,
                              .attribute_count = 0};
    int blocks = 0;
    cuda().check(cuda().cuOccupancyMaxPotentialClusterSize(&blocks, function, &config),
                 "cuOccupancyMaxPotentialClusterSize", subject);
    return blocks;
  }

  int64_t compute_units(int32_t index) override {
    static std::array<std::atomic<int>, 64> counted{};  // asked at every call; 0: not yet
    if (index < 0 || index >= static_cast<int32_t>(counted.size()))
      return attribute(kMultiprocessorCount, index);
    std::atomic<int>& count = counted[static_cast<size_t>(index)];
    if (count == 0) count = attribute(kMultiprocessorCount, index);
    return count;
  }

  bool is_capturing(void* stream) override {
    int status = 0;  // CUstreamCaptureStatus, 0: none
    cuda().check(cuda().cuStreamIsCapturing(stream, &status), "cuStreamIsCapturing", "CUDA");
    return status != 0;
  }
};

}  // namespace

Driver& cuda_driver() {
  static CudaDriver driver;
  return driver;
}

}  // namespace hipdecode::runtime
