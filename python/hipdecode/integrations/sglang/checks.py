# SPDX-License-Identifier: MIT
"""What SGLang may ask for and is not done, refused by SGLang's own names."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.configs.model_config import is_deepseek_dsa
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.runtime_context import get_parallel, get_spec

from hipdecode.arguments import DTYPE_NAMES
from hipdecode.errors import BadArgument

from . import NAME, scales_queries

MAX_Q_LEN = 16


def check_runner(runner: Any) -> None:  # noqa: ANN401
    """Refuses what is not done, before a model runs.

    Raises:
        BadArgument: names SGLang's option.
    """
    spec, ranks = get_spec(), get_parallel().attn_dcp_size
    drafts = spec.speculative_num_draft_tokens or 0
    topk = spec.speculative_eagle_topk or 1
    for name, wrong, want, got in (
        ("--attention-backend", not runner.use_mla_backend, "an MLA model", "another"),
        (
            "--attention-backend",
            is_deepseek_dsa(runner.model_config.hf_config),
            "a model with dense attention",
            "one with DeepSeek's sparse attention; use dsa",
        ),
        (
            "--dcp-size",
            ranks > 1 and runner.is_draft_worker,
            "1 where the draft model, too, runs",
            f"{ranks}; choose another --speculative-draft-attention-backend",
        ),
        (
            "--dcp-size",
            ranks > 1 and runner.prefill_attention_backend_str == NAME,
            "1 where prompts, too, run",
            f"{ranks}; choose --prefill-attention-backend flashinfer (aiter on ROCm) and "
            f"--decode-attention-backend {NAME}",
        ),
        (
            "--dcp-size",
            ranks > 1 and scales_queries(runner.model_config),
            "1 for a model with llama_4_scaling",
            ranks,
        ),
        (
            "--speculative-ngram-max-bfs-breadth"
            if runner.spec_algorithm.is_ngram()
            else "--speculative-eagle-topk",
            topk != 1,
            "1 (a chain of drafts)",
            topk,
        ),
        ("--speculative-num-draft-tokens", drafts > MAX_Q_LEN, f"at most {MAX_Q_LEN}", drafts),
        (
            "--enable-unified-memory",
            runner.kv_index_translator is not None and runner.kv_index_translator.is_translating,
            "a pool whose slots req_to_token names",
            "one that moves them",
        ),
        (
            "--kv-cache-dtype",
            runner.kv_cache_dtype not in DTYPE_NAMES,
            "bf16, fp16 or fp8_e4m3",
            runner.kv_cache_dtype,
        ),
    ):
        if wrong:
            raise BadArgument(f"{name}: expected {want} with hipdecode, got {got}")


def check_layer(layer: Any, kv_cache_dtype: torch.dtype) -> None:  # noqa: ANN401
    """Refuses a layer whose attention is another than absorbed MLA's.

    Raises:
        BadArgument: names the attribute of SGLang's `RadixAttention`.
    """
    fp8 = kv_cache_dtype.itemsize == 1
    for name, wrong, want in (
        ("tp_k_head_num", layer.tp_k_head_num != 1, "1: one latent row for all heads"),
        ("logit_cap", layer.logit_cap > 0, "0: no cap"),
        ("sliding_window_size", layer.sliding_window_size > -1, "-1: no window"),
        ("is_cross_attention", layer.is_cross_attention, "False"),
        ("attn_type", layer.attn_type is not AttentionType.DECODER, "DECODER"),
        ("xai_temperature_len", layer.xai_temperature_len > 0, "-1"),
        (
            "k_scale_float",
            not fp8 and layer.k_scale_float not in (None, 1.0),
            f"None with a {kv_cache_dtype} cache; use --kv-cache-dtype fp8_e4m3",
        ),
    ):
        if wrong:
            raise BadArgument(f"{name}: expected {want}, got {getattr(layer, name)}")
