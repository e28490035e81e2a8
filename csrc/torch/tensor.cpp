// SPDX-License-Identifier: MIT
#include "tensor.h"

#include <array>
#include <utility>

#include "../runtime/error.h"

namespace hipdecode::torch_ops {
namespace {

void check(AOTITorchError failed) {
  HIPDECODE_CHECK(failed == AOTI_TORCH_SUCCESS,
                  "tensor: expected memory on a device, got a tensor without; pass one with data");
}

/// torch numbers its types at run time; those that no operator takes are Undefined here.
ScalarType scalar_type_of(int32_t dtype) {
  static const std::array<std::pair<int32_t, ScalarType>, 8> known = {{
      {aoti_torch_dtype_int32(), ScalarType::Int},
      {aoti_torch_dtype_bfloat16(), ScalarType::BFloat16},
      {aoti_torch_dtype_float32(), ScalarType::Float},
      {aoti_torch_dtype_float8_e4m3fn(), ScalarType::Float8_e4m3fn},
      {aoti_torch_dtype_float16(), ScalarType::Half},
      {aoti_torch_dtype_float8_e4m3fnuz(), ScalarType::Float8_e4m3fnuz},
      {aoti_torch_dtype_uint64(), ScalarType::UInt64},
      {aoti_torch_dtype_uint8(), ScalarType::Byte},
  }};
  for (const auto& [number, type] : known)
    if (number == dtype) return type;
  return ScalarType::Undefined;
}

DeviceType device_type_of(int32_t type) {
  static const int32_t cpu = aoti_torch_device_type_cpu(), cuda = aoti_torch_device_type_cuda();
  return type == cpu ? DeviceType::cpu : type == cuda ? DeviceType::cuda : DeviceType::other;
}

}  // namespace

Tensor::Tensor(AtenTensorHandle handle) {
  int64_t *sizes = nullptr, *strides = nullptr;
  int32_t dtype = 0, device = 0;
  check(aoti_torch_get_dim(handle, &dim_));
  check(aoti_torch_get_sizes(handle, &sizes));
  check(aoti_torch_get_strides(handle, &strides));
  check(aoti_torch_get_dtype(handle, &dtype));
  check(aoti_torch_get_device_type(handle, &device));
  check(aoti_torch_get_device_index(handle, &index_));
  sizes_ = sizes;
  strides_ = strides;
  device_ = device_type_of(device);
  if (device_ != DeviceType::other) check(aoti_torch_get_data_ptr(handle, &data_));
  type_ = scalar_type_of(dtype);
  element_bytes_ = static_cast<int32_t>(aoti_torch_dtype_element_size(dtype));
  count();
}

}  // namespace hipdecode::torch_ops
