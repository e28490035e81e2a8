// SPDX-License-Identifier: MIT
#include "call.h"

#include <dlfcn.h>

#include <cstdlib>
#include <vector>

#include "../runtime/error.h"

namespace hipdecode::torch_ops {
namespace {

using runtime::DeviceKind;

/// Of the calling thread's current call.
std::vector<runtime::Extent>& extents() {
  thread_local std::vector<runtime::Extent> instance;
  return instance;
}

using GetStream = int32_t (*)(int32_t index, void** stream);  // 0: success

/// A PyTorch for CPUs lacks the entry, and a binding that was built beside one is not linked to the
/// library that has it: it is looked up among the libraries that are loaded.
GetStream find_current_stream() {
  constexpr auto kEntry = "aoti_torch_get_current_cuda_stream";
  if (void* found = dlsym(RTLD_DEFAULT, kEntry)) return reinterpret_cast<GetStream>(found);
  for (const char* name : {"libtorch_cuda.so", "libtorch_hip.so"}) {
    void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) continue;
    if (void* found = dlsym(library, kEntry)) return reinterpret_cast<GetStream>(found);
  }
  return nullptr;
}

/// torch's own current stream, on ROCm too.
void* current_stream(int32_t index) {
  static const GetStream get = find_current_stream();
  HIPDECODE_CHECK(get != nullptr,
                  "torch: expected aoti_torch_get_current_cuda_stream, got none; install a PyTorch "
                  "for ROCm or CUDA");
  void* stream = nullptr;
  HIPDECODE_CHECK(get(index, &stream) == 0, "device ", index,
                  ": expected torch to have a current stream there, got an error");
  return stream;
}

void note_extent(const Tensor& t, const void* address) {
  if (!t.is_cpu() || runtime::cpu_tensor_device() != DeviceKind::sim || t.numel() == 0) return;
  int64_t last = 0;  // element, counted from the first
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  extents().push_back(
      {reinterpret_cast<uint64_t>(address), static_cast<uint64_t>(last + 1) * t.element_size()});
}

}  // namespace

runtime::Place begin_call(const Tensor& q) {
  extents().clear();
  if (q.is_cpu()) return {{runtime::cpu_tensor_device(), 0}, nullptr};
  HIPDECODE_CHECK(
      q.is_cuda(),
      "q: expected a tensor on a device that hipdecode drives (cpu, cuda), got another; "
      "move it");
  const int32_t index = q.get_device_index();
  return {{runtime::cuda_tensor_device(), index}, current_stream(index)};
}

const void* const_address_of(const Tensor& t) {
  note_extent(t, t.data());
  return t.data();
}

void* address_of(const Tensor& t) {
  note_extent(t, t.data());
  return t.data();
}

std::span<const runtime::Extent> call_extents() { return extents(); }

}  // namespace hipdecode::torch_ops
