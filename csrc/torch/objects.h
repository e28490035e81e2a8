// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <exception>
#include <optional>
#include <string_view>

#include "short_way.h"
#include "tensor.h"

// Python's objects as values. None of these calls into Python code, so none can wait for a device.
namespace hipdecode::torch_ops {

/// An object is not what the short way takes; the long way shall look at it.
struct Unusual {};

/// Forgets an error that Python has set.
/// @throws Unusual
[[noreturn]] void unusual();

/// @throws Unusual unless it is a torch.Tensor, not of a subclass, with memory of its own
Tensor tensor_of(PyObject* object);
OptionalTensor optional_tensor_of(PyObject* object);  // None: absent

/// @throws Unusual unless it is an int, and no bool or tensor
int64_t int_of(PyObject* object);
bool bool_of(PyObject* object);
/// A float; `absent` for None.
double float_of(PyObject* object, double absent);
/// An int; `absent` for None.
int64_t int_of(PyObject* object, int64_t absent);
/// A str; empty for None.
std::string_view text_of(PyObject* object);

/// The items of a tuple, which the caller keeps alive.
/// @throws Unusual where it has another size
template <size_t kSize>
std::array<PyObject*, kSize> items_of(PyObject* tuple) {
  const Python& py = python();
  std::array<PyObject*, kSize> items;
  if (py.tuple_size(tuple) != static_cast<intptr_t>(kSize)) unusual();
  for (size_t i = 0; i < kSize; ++i) items[i] = py.item(tuple, static_cast<intptr_t>(i));
  return items;
}

/// The content of bytes that were made from a T.
/// @returns null for None
template <class T>
const T* packed_of(PyObject* object) {
  const Python& py = python();
  if (object == py.none) return nullptr;
  if (py.bytes_size(object) != static_cast<intptr_t>(sizeof(T))) unusual();
  return reinterpret_cast<const T*>(py.bytes_data(object));
}

/// What `body` returns, or null where it meets something that it does not take. No error is left
/// set in Python: the long way will find the fault again and say what it is.
template <class Body>
PyObject* unless_unusual(Body body) {
  try {
    return body();
  } catch (const Unusual&) {
  } catch (const std::exception&) {
  }
  return nullptr;
}

inline PyObject* or_none(PyObject* result) {
  if (result == nullptr) python().retain(result = python().none);
  return result;
}

template <class T>
PyObject* pack(const T& value) {
  return python().new_bytes(reinterpret_cast<const char*>(&value), sizeof(T));
}

}  // namespace hipdecode::torch_ops
