// SPDX-License-Identifier: MIT
// The smallest artefact that a GPU driver takes: one wave, a row of group memory, no libraries.
#include "../../csrc/abi/abi_version.h"
#include "../../csrc/abi/kernel_info.h"

#ifndef TINY_ABI_VERSION
#define TINY_ABI_VERSION ::hipdecode::abi::kAbiVersion
#endif
#ifndef TINY_SHARED_BYTES
#define TINY_SHARED_BYTES 512
#endif

struct Params {
  const float* in;
  float* out;
  float factor;
  int count;
};

extern "C" __attribute__((device, used)) const hipdecode::abi::KernelInfo hipdecode_kernel_info = {
    TINY_ABI_VERSION, sizeof(Params), TINY_SHARED_BYTES, 64, 0};

extern "C" __attribute__((global, amdgpu_flat_work_group_size(64, 64))) void tiny(Params p) {
  static __attribute__((shared)) float row[128];
  const int lane = static_cast<int>(__builtin_amdgcn_workitem_id_x());
  row[lane] = lane < p.count ? p.in[lane] * p.factor : 0.0f;
  __builtin_amdgcn_s_barrier();
  if (lane < p.count) p.out[lane] = row[p.count - 1 - lane];
}
