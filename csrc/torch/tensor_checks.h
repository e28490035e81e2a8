// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>

#include "../abi/dtype.h"
#include "../runtime/error.h"
#include "call.h"

namespace hipdecode::torch_ops {

inline std::string shape_text(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

/// What a kernel multiplies scores by. Hidden ones are -inf, and zero times that is NaN, so that
/// zero becomes what is zero for every other score.
inline float score_scale(double sm_scale) {
  HIPDECODE_CHECK(std::isfinite(sm_scale) && sm_scale >= 0,
                  "sm_scale: expected a finite number of 0 or more, got ", sm_scale);
  return std::max(static_cast<float>(sm_scale), 1e-30f);
}

inline void check_same_device(const char* name, const Tensor& t, const Tensor& q) {
  HIPDECODE_CHECK(t.same_device(q), name, ": expected the device of q, got another; move it");
}

inline void check_dim(const char* name, const Tensor& t, int64_t dim) {
  HIPDECODE_CHECK(t.dim() == dim, name, ": expected ", dim, " dimensions, got shape ",
                  shape_text(t));
}

/// A 1-D (or any contiguous) int32 tensor of at least `least` elements.
inline const int32_t* int32_data(const char* name, const Tensor& t, int64_t least) {
  HIPDECODE_CHECK(t.scalar_type() == ScalarType::Int && t.is_contiguous(), name,
                  ": expected a contiguous int32 tensor; convert it");
  HIPDECODE_CHECK(t.numel() >= least, name, ": expected at least ", least, " elements, got ",
                  t.numel());
  return static_cast<const int32_t*>(const_address_of(t));
}

inline int32_t* mutable_int32_data(const char* name, const Tensor& t, int64_t least) {
  int32_data(name, t, least);
  return static_cast<int32_t*>(address_of(t));
}

inline float* float_data(const char* name, const Tensor& t, int64_t least) {
  HIPDECODE_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous(), name,
                  ": expected a contiguous float32 tensor; convert it");
  HIPDECODE_CHECK(t.numel() >= least, name, ": expected at least ", least, " elements, got ",
                  t.numel());
  return static_cast<float*>(address_of(t));
}

/// A dequantisation scale on the device, 0-d or [1]; absent means 1.
inline const float* scale_data(const char* name, const OptionalTensor& t, const Tensor& q) {
  if (!t) return nullptr;
  check_same_device(name, *t, q);
  HIPDECODE_CHECK(t->scalar_type() == ScalarType::Float && t->numel() == 1, name,
                  ": expected one float32 element, got shape ", shape_text(*t));
  return static_cast<const float*>(const_address_of(*t));
}

inline abi::DType dtype_of(const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::BFloat16:
      return abi::DType::bf16;
    case ScalarType::Half:
      return abi::DType::fp16;
    case ScalarType::Float8_e4m3fn:
      return abi::DType::fp8_e4m3fn;
    case ScalarType::Float8_e4m3fnuz:
      return abi::DType::fp8_e4m3fnuz;
    default:
      break;
  }
  throw runtime::Error(runtime::join(
      name, ": expected bfloat16, float16, float8_e4m3fn or float8_e4m3fnuz, got another dtype"));
}

/// Query rows of the tile that a call asks for, as registry.wanted_rows() in Python: the caller's
/// own choice, else (0) the smallest that holds them all. What it gets is in KernelInfo::rows,
/// since a target need not have them all.
inline int64_t wanted_rows(runtime::DeviceKind device, int64_t packed, int64_t asked = 0) {
  constexpr int64_t kLeast = 16, kMost = 128;
  if (device == runtime::DeviceKind::cpu) return kMost;
  if (asked != 0) packed = asked;
  return std::clamp<int64_t>(std::bit_ceil(static_cast<uint64_t>(packed)), kLeast, kMost);
}

inline const char* dtype_name(abi::DType type) {
  constexpr const char* kNames[] = {"bf16", "fp16", "fp8_e4m3fn", "fp8_e4m3fnuz", "fp32"};
  return kNames[static_cast<int>(type)];
}

/// [rows, nhead, head_dim_v] bf16 or fp16, last dimension contiguous.
inline abi::DType check_output(const char* name, const Tensor& o, int64_t nhead) {
  check_dim(name, o, 3);
  const abi::DType type = dtype_of(name, o);
  HIPDECODE_CHECK(type == abi::DType::bf16 || type == abi::DType::fp16, name,
                  ": expected bfloat16 or float16");
  HIPDECODE_CHECK(o.size(1) == nhead && o.stride(2) == 1, name, ": expected [rows, ", nhead,
                  ", head_dim_v] with a contiguous last dimension, got shape ", shape_text(o));
  HIPDECODE_CHECK(
      (nhead == 1 || o.stride(1) >= o.size(2)) && (o.size(0) <= 1 || o.stride(0) >= o.size(2)),
      name, ": expected rows that do not overlap; pass a tensor with its own storage");
  return type;
}

}  // namespace hipdecode::torch_ops
