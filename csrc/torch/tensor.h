// SPDX-License-Identifier: MIT
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>

namespace hipdecode::torch_ops {

using torch::headeronly::ScalarType;

/// Where a tensor lives, in the operators' words.
enum class DeviceType : int32_t { cpu, cuda, other };

/// What an operator sees of a tensor, read once. Whoever made it keeps the tensor alive, and with
/// it the sizes and strides that this points to.
class Tensor {
 public:
  /// @throws runtime::Error where torch refuses to tell
  explicit Tensor(AtenTensorHandle handle);

  /// @param sizes,strides `dim` values each
  Tensor(void* data, const int64_t* sizes, const int64_t* strides, int64_t dim, ScalarType type,
         int32_t element_bytes, DeviceType device, int32_t index)
      : data_(data),
        sizes_(sizes),
        strides_(strides),
        dim_(dim),
        device_(device),
        index_(index),
        element_bytes_(element_bytes),
        type_(type) {
    count();
  }

  int64_t dim() const { return dim_; }
  int64_t size(int64_t i) const { return sizes_[i]; }
  int64_t stride(int64_t i) const { return strides_[i]; }
  int64_t numel() const { return numel_; }
  bool is_contiguous() const { return contiguous_; }
  ScalarType scalar_type() const { return type_; }
  int64_t element_size() const { return element_bytes_; }
  bool is_cpu() const { return device_ == DeviceType::cpu; }
  bool is_cuda() const { return device_ == DeviceType::cuda; }
  int32_t get_device_index() const { return index_; }
  bool same_device(const Tensor& t) const { return device_ == t.device_ && index_ == t.index_; }
  void* data() const { return data_; }

 private:
  void count() {
    int64_t packed = 1;
    contiguous_ = true;
    for (int64_t i = dim_ - 1; i >= 0; --i) {
      contiguous_ &= sizes_[i] == 1 || strides_[i] == packed;
      packed *= sizes_[i];
    }
    contiguous_ |= packed == 0;
    numel_ = packed;
  }

  void* data_ = nullptr;
  const int64_t *sizes_ = nullptr, *strides_ = nullptr;
  int64_t dim_ = 0, numel_ = 0;
  DeviceType device_ = DeviceType::other;
  int32_t index_ = 0, element_bytes_ = 0;
  ScalarType type_ = ScalarType::Undefined;
  bool contiguous_ = false;
};

using OptionalTensor = std::optional<Tensor>;

}  // namespace hipdecode::torch_ops
