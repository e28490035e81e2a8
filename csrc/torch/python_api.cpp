// SPDX-License-Identifier: MIT
#include "python_api.h"

#include <dlfcn.h>

#include "../runtime/error.h"

namespace hipdecode::torch_ops {
namespace {

template <class Entry>
void look_up(const char* name, Entry& entry) {
  entry = reinterpret_cast<Entry>(dlsym(RTLD_DEFAULT, name));
  HIPDECODE_CHECK(entry != nullptr, "Python: expected the entry ", name,
                  ", got none; use CPython 3.11 or newer");
}

Python look_up_all() {
  Python api{};
  look_up("PyCFunction_NewEx", api.new_function);
  look_up("PyTuple_New", api.new_tuple);
  look_up("PyTuple_SetItem", api.set_item);
  look_up("PyTuple_GetItem", api.item);
  look_up("PyTuple_Size", api.tuple_size);
  look_up("PyBytes_FromStringAndSize", api.new_bytes);
  look_up("PyBytes_AsString", api.bytes_data);
  look_up("PyBytes_Size", api.bytes_size);
  look_up("PyUnicode_AsUTF8AndSize", api.text);
  look_up("PyLong_FromLong", api.new_int);
  look_up("PyLong_AsLongLong", api.to_int);
  look_up("PyFloat_AsDouble", api.to_float);
  look_up("PyObject_Type", api.type);
  look_up("Py_DecRef", api.release);
  look_up("Py_IncRef", api.retain);
  look_up("PyErr_Occurred", api.error);
  look_up("PyErr_Clear", api.clear_error);
  look_up("PyEval_SaveThread", api.unlock);
  look_up("PyEval_RestoreThread", api.lock);
  look_up("_Py_NoneStruct", api.none);
  look_up("_Py_TrueStruct", api.yes);
  look_up("_Py_FalseStruct", api.no);
  look_up("PyLong_Type", api.int_type);
  look_up("PyFloat_Type", api.float_type);
  look_up("PyBytes_Type", api.bytes_type);
  look_up("PyUnicode_Type", api.str_type);
  return api;
}

}  // namespace

const Python& python() {
  static const Python instance = look_up_all();
  return instance;
}

}  // namespace hipdecode::torch_ops
