// SPDX-License-Identifier: MIT
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <exception>

#include "../runtime/driver.h"
#include "boxing.h"
#include "ops.h"
#include "short_way.h"

STABLE_TORCH_LIBRARY(hipdecode, m) {
  m.def(
      "mla_decode_hk(Tensor q, Tensor kv_buffer, Tensor(a!) o, Tensor(b!)? lse, Tensor qo_indptr, "
      "Tensor kv_indptr, "
      "Tensor kv_indices, Tensor? kv_last_page_lens, Tensor(c!)? partial_output, Tensor(d!)? "
      "partial_lse, "
      "Tensor(e!)? arrivals, Tensor? q_scale, Tensor? kv_scale, int max_seqlen_q, int num_splits, "
      "float sm_scale, "
      "bool causal, int tile_rows, Tensor? g_kv_indptr=None, int cp_world_size=1, int cp_rank=0, "
      "int kv_interleave=1) -> ()");
  m.def(
      "mla_decode_persistent(Tensor q, Tensor kv_buffer, Tensor(a!) o, Tensor(b!)? lse, Tensor "
      "qo_indptr, "
      "Tensor kv_indptr, Tensor kv_indices, Tensor? kv_last_page_lens, Tensor work_indptr, Tensor "
      "work_info_set, "
      "Tensor(c!) partial_output, Tensor(d!) partial_lse, Tensor? q_scale, Tensor? kv_scale, int "
      "max_seqlen_q, "
      "float sm_scale, bool causal, Tensor? g_kv_indptr=None, int cp_world_size=1, int cp_rank=0, "
      "int kv_interleave=1) -> ()");
  m.def(
      "mla_reduce(Tensor partial_output, Tensor partial_lse, Tensor reduce_indptr, Tensor? "
      "reduce_final_map, "
      "Tensor reduce_partial_map, Tensor(a!) o, Tensor(b!)? lse, int max_seqlen_q, int "
      "num_kv_splits) -> ()");
  m.def(
      "mla_reduce_decode(Tensor q, Tensor kv_buffer, Tensor(a!) o, Tensor(d!)? lse, Tensor "
      "qo_indptr, Tensor "
      "kv_indptr, Tensor kv_indices, Tensor? kv_last_page_lens, Tensor(b!) partial_output, "
      "Tensor(c!) partial_lse, Tensor? q_scale, Tensor? kv_scale, int batch, int vec, int "
      "num_splits, float sm_scale) -> ()");
  m.def(
      "mla_decode_reduce(Tensor partial_output, Tensor partial_lse, Tensor(a!) reduced, Tensor "
      "kv_indptr, int T, int batch, int vec, int num_splits) -> ()");
  m.def(
      "mla_plan(Tensor qo_indptr, Tensor kv_indptr, Tensor? kv_last_page_lens, Tensor(a!) "
      "work_metadata, "
      "Tensor(b!) work_info_set, Tensor(c!) work_indptr, Tensor(d!) reduce_indptr, Tensor(e!) "
      "reduce_final_map, "
      "Tensor(f!) reduce_partial_map, int nhead, int page_size, int kv_granularity, int "
      "max_seqlen_qo, "
      "int uni_seqlen_qo, int topk, int max_split_per_batch, bool causal, bool intra_batch_mode, "
      "int num_kv_splits) -> ()");
  m.def(
      "sparse_mla_decode(Tensor q, Tensor cache, Tensor indices, Tensor? indptr, Tensor? lengths, "
      "Tensor? extra_cache, Tensor? extra_indices, Tensor? extra_indptr, Tensor? extra_lengths, "
      "Tensor? attn_sink, Tensor(a!) o, Tensor(b!)? lse, Tensor(c!)? partial_output, Tensor(d!)? "
      "partial_lse, Tensor(e!)? arrivals, int num_splits, float sm_scale, bool fnuz, bool "
      "extra_fnuz) -> ()");
  m.def(
      "paged_attention(Tensor q, Tensor key_cache, Tensor value_cache, Tensor(a!) o, Tensor(b!)? "
      "lse, Tensor block_tables, Tensor context_lens, Tensor? qo_indptr, Tensor? k_scale, Tensor? "
      "v_scale, Tensor? out_scale, Tensor(c!)? partial_output, Tensor(d!)? partial_lse, "
      "Tensor(e!)? "
      "arrivals, int max_seqlen_q, int num_splits, float sm_scale, bool fast, bool fnuz, int "
      "tile_rows=0) -> ()");
}

using namespace hipdecode::torch_ops;

// The functions are the same for every device: they launch where the tensors are.
STABLE_TORCH_LIBRARY_IMPL(hipdecode, CPU, m) {
  m.impl("mla_decode_hk", boxed<mla_decode_hk>);
  m.impl("mla_decode_persistent", boxed<mla_decode_persistent>);
  m.impl("mla_reduce", boxed<mla_reduce>);
  m.impl("mla_reduce_decode", boxed<mla_reduce_decode>);
  m.impl("mla_decode_reduce", boxed<mla_decode_reduce>);
  m.impl("mla_plan", boxed<mla_plan>);
  m.impl("sparse_mla_decode", boxed<sparse_mla_decode>);
  m.impl("paged_attention", boxed<paged_attention>);
}

// PyTorch for ROCm calls its devices cuda, too.
STABLE_TORCH_LIBRARY_IMPL(hipdecode, CUDA, m) {
  m.impl("mla_decode_hk", boxed<mla_decode_hk>);
  m.impl("mla_decode_persistent", boxed<mla_decode_persistent>);
  m.impl("mla_reduce", boxed<mla_reduce>);
  m.impl("mla_reduce_decode", boxed<mla_reduce_decode>);
  m.impl("mla_decode_reduce", boxed<mla_decode_reduce>);
  m.impl("mla_plan", boxed<mla_plan>);
  m.impl("sparse_mla_decode", boxed<sparse_mla_decode>);
  m.impl("paged_attention", boxed<paged_attention>);
}

/// The functions of short_way.h as a tuple of Python's, in the order of ShortWay; null where this
/// process has no Python. Called with Python's lock held.
/// @param exchange torch.Tensor's DLPackExchangeAPI
extern "C" __attribute__((visibility("default"))) void* hipdecode_short_way(const void* exchange,
                                                                            void* tensor_type,
                                                                            void* parameter_type) {
  static std::array<PyMethodDef, 7> functions = {{
      {"decode", decode, kFastCall, nullptr},
      {"learn", learn, kFastCall, nullptr},
      {"pack_plan", pack_plan, kFastCall, nullptr},
      {"pack_scratch", pack_scratch, kFastCall, nullptr},
      {"plan", plan, kFastCall, nullptr},
      {"pack_planning", pack_planning, kFastCall, nullptr},
      {"sparse", sparse, kFastCall, nullptr},
  }};
  try {
    const Python& py = python();
    set_tensor_objects({static_cast<const DlExchange*>(exchange), tensor_type, parameter_type});
    PyObject* all = py.new_tuple(functions.size());
    for (size_t i = 0; i < functions.size(); ++i)
      py.set_item(all, static_cast<intptr_t>(i), py.new_function(&functions[i], nullptr, nullptr));
    return all;
  } catch (const std::exception&) {
    return nullptr;
  }
}

namespace {

// torch's own threads run the blocks: a second pool would fight it for the cores.
const bool kThreadsJoined = [] {
  hipdecode::runtime::set_cpu_threads(
      [](int64_t threads, const std::function<void()>& body) {
        torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { body(); });
      },
      [] { return static_cast<int64_t>(torch::stable::get_num_threads()); });
  return true;
}();

}  // namespace
