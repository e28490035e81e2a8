// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "python_api.h"

// The short way of `hipdecode.mla_decode` and its kin: from Python's objects to the launch without
// torch's dispatcher, for calls like earlier ones. Whatever is unusual, wrong arguments included,
// is left to the long way, which says what it was.
namespace hipdecode::torch_ops {

/// What became of a call.
enum class Outcome : long { long_way = 0, served = 1, scratch_missing = 2, plan_missing = 3 };

/// Types whose tensors hold their own memory, and how to look into them. Set before the first call.
struct TensorObjects {
  const DlExchange* exchange = nullptr;
  PyObject* tensor_type = nullptr;     // torch.Tensor
  PyObject* parameter_type = nullptr;  // torch.nn.Parameter
};
void set_tensor_objects(const TensorObjects& objects);

// Functions of Python. Arguments in the order of python/hipdecode/short_way.py.

/// A tuple of the arguments, a tuple of the choices, scratch and plan (bytes or None), and whether
/// the plan is the caller's -> int, an Outcome
PyObject* decode(PyObject*, PyObject* const* arguments, intptr_t count);
/// As decode, the route's name, its splits and the rows of its tiles or 0: what such calls launch
/// from now on
PyObject* learn(PyObject*, PyObject* const* arguments, intptr_t count);
/// Tensors and numbers of an MlaPlan -> bytes, or None where they are no plan
PyObject* pack_plan(PyObject*, PyObject* const* arguments, intptr_t count);
/// Floats and counters of a Workspace -> bytes, or None
PyObject* pack_scratch(PyObject*, PyObject* const* arguments, intptr_t count);
/// Bytes of pack_planning, qo_indptr, kv_indptr, kv_last_page_lens or None -> int, an Outcome
PyObject* plan(PyObject*, PyObject* const* arguments, intptr_t count);
/// The arguments of the operator mla_plan -> bytes, or None where it would refuse them
PyObject* pack_planning(PyObject*, PyObject* const* arguments, intptr_t count);
/// The arguments of the operator sparse_mla_decode -> int, an Outcome
PyObject* sparse(PyObject*, PyObject* const* arguments, intptr_t count);

}  // namespace hipdecode::torch_ops
