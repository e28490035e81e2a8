// SPDX-License-Identifier: MIT
#pragma once

#include "tensor_checks.h"

// The operators of register.cpp; their contracts are in the docstrings of python/hipdecode/ops.py.
namespace hipdecode::torch_ops {

void mla_decode_hk(Tensor q, Tensor kv_buffer, Tensor o, OptionalTensor lse, Tensor qo_indptr,
                   Tensor kv_indptr, Tensor kv_indices, OptionalTensor kv_last_page_lens,
                   OptionalTensor partial_output, OptionalTensor partial_lse,
                   OptionalTensor arrivals, OptionalTensor q_scale, OptionalTensor kv_scale,
                   int64_t max_seqlen_q, int64_t num_splits, double sm_scale, bool causal,
                   int64_t tile_rows, OptionalTensor g_kv_indptr, int64_t cp_world_size,
                   int64_t cp_rank, int64_t kv_interleave);

void mla_decode_persistent(Tensor q, Tensor kv_buffer, Tensor o, OptionalTensor lse,
                           Tensor qo_indptr, Tensor kv_indptr, Tensor kv_indices,
                           OptionalTensor kv_last_page_lens, Tensor work_indptr,
                           Tensor work_info_set, Tensor partial_output, Tensor partial_lse,
                           OptionalTensor q_scale, OptionalTensor kv_scale, int64_t max_seqlen_q,
                           double sm_scale, bool causal, OptionalTensor g_kv_indptr,
                           int64_t cp_world_size, int64_t cp_rank, int64_t kv_interleave);

void mla_reduce(Tensor partial_output, Tensor partial_lse, Tensor reduce_indptr,
                OptionalTensor reduce_final_map, Tensor reduce_partial_map, Tensor o,
                OptionalTensor lse, int64_t max_seqlen_q, int64_t num_kv_splits);

void mla_reduce_decode(Tensor q, Tensor kv_buffer, Tensor o, OptionalTensor lse, Tensor qo_indptr,
                       Tensor kv_indptr, Tensor kv_indices, OptionalTensor kv_last_page_lens,
                       Tensor partial_output, Tensor partial_lse, OptionalTensor q_scale,
                       OptionalTensor kv_scale, int64_t batch, int64_t vec, int64_t num_splits,
                       double sm_scale);

void mla_decode_reduce(Tensor partial_output, Tensor partial_lse, Tensor reduced, Tensor kv_indptr,
                       int64_t rows, int64_t batch, int64_t vec, int64_t num_splits);

void mla_plan(Tensor qo_indptr, Tensor kv_indptr, OptionalTensor kv_last_page_lens,
              Tensor work_metadata, Tensor work_info_set, Tensor work_indptr, Tensor reduce_indptr,
              Tensor reduce_final_map, Tensor reduce_partial_map, int64_t nhead, int64_t page_size,
              int64_t kv_granularity, int64_t max_seqlen_qo, int64_t uni_seqlen_qo, int64_t topk,
              int64_t max_split_per_batch, bool causal, bool intra_batch_mode,
              int64_t num_kv_splits);

void sparse_mla_decode(Tensor q, Tensor cache, Tensor indices, OptionalTensor indptr,
                       OptionalTensor lengths, OptionalTensor extra_cache,
                       OptionalTensor extra_indices, OptionalTensor extra_indptr,
                       OptionalTensor extra_lengths, OptionalTensor attn_sink, Tensor o,
                       OptionalTensor lse, OptionalTensor partial_output,
                       OptionalTensor partial_lse, OptionalTensor arrivals, int64_t num_splits,
                       double sm_scale, bool fnuz, bool extra_fnuz);

void paged_attention(Tensor q, Tensor key_cache, Tensor value_cache, Tensor o, OptionalTensor lse,
                     Tensor block_tables, Tensor context_lens, OptionalTensor qo_indptr,
                     OptionalTensor k_scale, OptionalTensor v_scale, OptionalTensor out_scale,
                     OptionalTensor partial_output, OptionalTensor partial_lse,
                     OptionalTensor arrivals, int64_t max_seqlen_q, int64_t num_splits,
                     double sm_scale, bool fast, bool fnuz, int64_t tile_rows);

}  // namespace hipdecode::torch_ops
