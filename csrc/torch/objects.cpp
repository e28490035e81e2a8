// SPDX-License-Identifier: MIT
#include "objects.h"

namespace hipdecode::torch_ops {
namespace {

TensorObjects& known() {
  static TensorObjects instance;
  return instance;
}

/// The type is only compared, never used: an object keeps its own type alive.
PyObject* type_of(PyObject* object) {
  PyObject* type = python().type(object);
  python().release(type);
  return type;
}

bool is(PyObject* object, PyObject* type) { return type_of(object) == type; }

ScalarType scalar_type_of(const DlTensor& t) {
  enum : uint8_t { kInt = 0, kUnsigned = 1, kFloat = 2, kBfloat = 4, kE4m3fn = 10, kE4m3fnuz = 11 };
  if (t.type_lanes != 1) return ScalarType::Undefined;
  switch (t.type_code << 8 | t.type_bits) {
    case kInt << 8 | 32:
      return ScalarType::Int;
    case kUnsigned << 8 | 8:
      return ScalarType::Byte;
    case kUnsigned << 8 | 64:
      return ScalarType::UInt64;
    case kFloat << 8 | 32:
      return ScalarType::Float;
    case kFloat << 8 | 16:
      return ScalarType::Half;
    case kBfloat << 8 | 16:
      return ScalarType::BFloat16;
    case kE4m3fn << 8 | 8:
      return ScalarType::Float8_e4m3fn;
    case kE4m3fnuz << 8 | 8:
      return ScalarType::Float8_e4m3fnuz;
    default:
      return ScalarType::Undefined;
  }
}

DeviceType device_type_of(int32_t type) {
  constexpr int32_t kCpu = 1, kCuda = 2, kRocm = 10;
  if (type == kCpu) return DeviceType::cpu;
  return type == kCuda || type == kRocm ? DeviceType::cuda : DeviceType::other;
}

}  // namespace

void unusual() {
  if (python().error() != nullptr) python().clear_error();
  throw Unusual{};
}

void set_tensor_objects(const TensorObjects& objects) { known() = objects; }

Tensor tensor_of(PyObject* object) {
  PyObject* type = type_of(object);
  if (type != known().tensor_type && type != known().parameter_type) throw Unusual{};
  DlTensor t{};
  if (known().exchange->view_of_object(object, &t) != 0) unusual();
  const ScalarType scalar = scalar_type_of(t);
  const DeviceType device = device_type_of(t.device_type);
  if (scalar == ScalarType::Undefined || device == DeviceType::other) throw Unusual{};
  const Tensor tensor(static_cast<char*>(t.data) + t.byte_offset, t.sizes, t.strides, t.dim, scalar,
                      t.type_bits / 8, device, t.device_index);
  // torch's own wrappers of tensors say that they are plain ones, and have no memory
  if (t.data == nullptr && tensor.numel() > 0) throw Unusual{};
  return tensor;
}

OptionalTensor optional_tensor_of(PyObject* object) {
  if (object == python().none) return std::nullopt;
  return tensor_of(object);
}

int64_t int_of(PyObject* object) {
  if (!is(object, python().int_type)) throw Unusual{};
  const long long value = python().to_int(object);
  if (value == -1 && python().error() != nullptr) unusual();
  return value;
}

bool bool_of(PyObject* object) {
  if (object != python().yes && object != python().no) throw Unusual{};
  return object == python().yes;
}

double float_of(PyObject* object, double absent) {
  if (object == python().none) return absent;
  if (!is(object, python().float_type)) throw Unusual{};
  return python().to_float(object);
}

int64_t int_of(PyObject* object, int64_t absent) {
  return object == python().none ? absent : int_of(object);
}

std::string_view text_of(PyObject* object) {
  if (object == python().none) return {};
  if (!is(object, python().str_type)) throw Unusual{};
  intptr_t size = 0;
  const char* text = python().text(object, &size);
  if (text == nullptr) unusual();
  return {text, static_cast<size_t>(size)};
}

}  // namespace hipdecode::torch_ops
