// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "../runtime/kernel_table.h"
#include "tensor.h"

namespace hipdecode::torch_ops {

/// Starts a call of an operator: where it runs, with torch's current stream there.
/// @param q the tensor that decides
runtime::Place begin_call(const Tensor& q);

/// The address of the first element. Where the call runs in the simulator, the tensor's memory
/// joins what the launch may touch, so that an access outside of it is found.
const void* const_address_of(const Tensor& t);
void* address_of(const Tensor& t);

/// The memory of the tensors that this call has asked the addresses of; empty outside of the
/// simulator.
std::span<const runtime::Extent> call_extents();

template <class Params>
void launch(const runtime::Kernel& kernel, const Params& params, int64_t blocks,
            const runtime::Place& place, bool together = false, int32_t cluster = 1) {
  kernel.launch(&params, sizeof(params), {blocks, place.stream, call_extents(), together, cluster});
}

}  // namespace hipdecode::torch_ops
