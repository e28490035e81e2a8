// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

// The few entries of CPython's stable ABI and of DLPack that the short way of a call needs,
// declared as Python.h and dlpack.h have them. They are looked up in the process, so that the
// binding also loads where there is no Python and builds where its headers are not installed.
namespace hipdecode::torch_ops {

using PyObject = void;

/// A function of positional arguments, METH_FASTCALL.
using PyFunction = PyObject* (*)(PyObject* self, PyObject* const* arguments, intptr_t count);

struct PyMethodDef {
  const char* name;
  PyFunction function;
  int flags;
  const char* doc;
};
inline constexpr int kFastCall = 0x80;

struct DlTensor {  // DLTensor of DLPack 1
  void* data;
  int32_t device_type, device_index;
  int32_t dim;
  uint8_t type_code, type_bits;
  uint16_t type_lanes;
  int64_t *sizes, *strides;
  uint64_t byte_offset;
};
static_assert(sizeof(DlTensor) == 48);

struct DlExchange {  // DLPackExchangeAPI of DLPack 1
  uint32_t major, minor;
  void* previous;
  void *allocate, *from_object, *to_object;
  int (*view_of_object)(PyObject* object, DlTensor* out);  // 0, or -1 with a Python error set
  void* current_stream;
};
static_assert(sizeof(DlExchange) == 56);

struct Python {
  PyObject* (*new_function)(PyMethodDef*, PyObject* self, PyObject* module);  // PyCFunction_NewEx
  PyObject* (*new_tuple)(intptr_t size);                                      // PyTuple_New
  int (*set_item)(PyObject* tuple, intptr_t at, PyObject* item);              // PyTuple_SetItem
  PyObject* (*item)(PyObject* tuple, intptr_t at);  // PyTuple_GetItem, a borrowed reference
  intptr_t (*tuple_size)(PyObject*);                // PyTuple_Size, -1 and an error for others
  PyObject* (*new_bytes)(const char* from, intptr_t size);  // PyBytes_FromStringAndSize
  char* (*bytes_data)(PyObject*);                           // PyBytes_AsString
  intptr_t (*bytes_size)(PyObject*);                        // PyBytes_Size
  const char* (*text)(PyObject*, intptr_t* size);           // PyUnicode_AsUTF8AndSize
  PyObject* (*new_int)(long);                               // PyLong_FromLong
  long long (*to_int)(PyObject*);                           // PyLong_AsLongLong
  double (*to_float)(PyObject*);                            // PyFloat_AsDouble
  PyObject* (*type)(PyObject*);                             // PyObject_Type, a new reference
  void (*release)(PyObject*);                               // Py_DecRef
  void (*retain)(PyObject*);                                // Py_IncRef
  PyObject* (*error)();                                     // PyErr_Occurred
  void (*clear_error)();                                    // PyErr_Clear
  void* (*unlock)();                                        // PyEval_SaveThread
  void (*lock)(void* state);                                // PyEval_RestoreThread
  PyObject *none, *yes, *no, *int_type, *float_type, *bytes_type, *str_type;
};

/// @throws runtime::Error where the process has no Python
const Python& python();

/// Lets other threads of Python run while this one waits.
class PythonUnlocked {
 public:
  PythonUnlocked() : state_(python().unlock()) {}
  ~PythonUnlocked() { python().lock(state_); }
  PythonUnlocked(const PythonUnlocked&) = delete;
  PythonUnlocked& operator=(const PythonUnlocked&) = delete;

 private:
  void* state_;
};

}  // namespace hipdecode::torch_ops
