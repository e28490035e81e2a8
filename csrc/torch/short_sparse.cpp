// SPDX-License-Identifier: MIT
#include "objects.h"
#include "sparse_call.h"

namespace hipdecode::torch_ops {
namespace {

constexpr intptr_t kArguments = 19;

Outcome run(PyObject* const* a) {
  const SparseArguments call{.q = tensor_of(a[0]),
                             .cache = tensor_of(a[1]),
                             .indices = tensor_of(a[2]),
                             .indptr = optional_tensor_of(a[3]),
                             .lengths = optional_tensor_of(a[4]),
                             .extra_cache = optional_tensor_of(a[5]),
                             .extra_indices = optional_tensor_of(a[6]),
                             .extra_indptr = optional_tensor_of(a[7]),
                             .extra_lengths = optional_tensor_of(a[8]),
                             .attn_sink = optional_tensor_of(a[9]),
                             .o = tensor_of(a[10]),
                             .lse = optional_tensor_of(a[11]),
                             .partial_output = optional_tensor_of(a[12]),
                             .partial_lse = optional_tensor_of(a[13]),
                             .arrivals = optional_tensor_of(a[14]),
                             .num_splits = int_of(a[15]),
                             .sm_scale = float_of(a[16], 0),
                             .fnuz = bool_of(a[17]),
                             .extra_fnuz = bool_of(a[18])};
  const runtime::Place place = begin_call(call.q);
  if (place.device.kind == runtime::DeviceKind::sim) throw Unusual{};  // it wants extents
  const PythonUnlocked unlocked;
  launch_sparse(call, place);
  return Outcome::served;
}

}  // namespace

PyObject* sparse(PyObject*, PyObject* const* arguments, intptr_t count) {
  PyObject* result = unless_unusual([&] {
    return python().new_int(
        static_cast<long>(count == kArguments ? run(arguments) : Outcome::long_way));
  });
  return result ? result : python().new_int(static_cast<long>(Outcome::long_way));
}

}  // namespace hipdecode::torch_ops
