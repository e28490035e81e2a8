// SPDX-License-Identifier: MIT
#pragma once

#include "../abi/mla_decode_reduce_params.h"
#include "../abi/mla_reduce_params.h"
#include "decode_params.h"

// Launches of checked parameters: behind the operators and behind the short way alike.
namespace hipdecode::torch_ops {

/// The kernel `module/qk-v-q-kv-rows` for a call.
/// @param tile_rows as wanted_rows()
/// @throws runtime::Error where it is not loaded and cannot be
const runtime::Kernel& decode_kernel(const runtime::Place& place, const char* module,
                                     const Tensor& q, const Tensor& kv_buffer, int64_t head_dim_v,
                                     const abi::MlaDecodeParams& p, int64_t tile_rows);

/// Where hk puts partial results of split contexts, and how many elements fit.
struct SplitMemory {
  float* partial_o = nullptr;
  float* partial_lse = nullptr;
  int32_t* arrivals = nullptr;  // zero between calls
  int64_t outputs = 0, lses = 0, counters = 0;
};

/// @throws runtime::Error where the memory is too small for p.num_splits
void launch_hk(const runtime::Kernel& kernel, abi::MlaDecodeParams& p, const SplitMemory& memory,
               int64_t head_dim_v, const runtime::Place& place);

/// @param clusters workers that the works in p are dealt to
void launch_persistent(const runtime::Kernel& kernel, abi::MlaDecodeParams& p, int64_t clusters,
                       const runtime::Place& place);

/// @param max_seqlen_q query rows of one tile at most
void launch_reduce(const runtime::Kernel& kernel, const abi::MlaReduceParams& p,
                   int64_t max_seqlen_q, const runtime::Place& place);

/// How `mla_decode_reduce` goes about its work: its template values.
struct ReduceShape {
  int64_t num_splits;  // 1, 2, 4, 8 or 16
  int64_t batch;       // partials on their way at a time: 1, 2, 4 or 8, num_splits at most
  int64_t vec;         // columns a lane reads as one: 1, 2 or 4
};

/// @throws runtime::Error where there is no such kernel
void check_reduce_shape(const ReduceShape& wanted);

/// Merges num_splits partials a row. Takes the largest vec, up to the wanted one, that head_dim_v
/// and the addresses are multiples of.
/// @throws runtime::Error where the wanted shape is none, or the rows are too many for a launch
void launch_decode_reduce(abi::MlaDecodeReduceParams p, ReduceShape wanted,
                          const runtime::Place& place);

}  // namespace hipdecode::torch_ops
