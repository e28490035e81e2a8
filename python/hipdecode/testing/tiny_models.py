# SPDX-License-Identifier: MIT
"""Models of transformers' own classes, small, with random weights: latent and grouped attention."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

_SIZES = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
_SPREAD = {"initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": None}
_LATENT = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 2,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 64,
    "v_head_dim": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
_GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
_CLASSES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "deepseek_v3": (DeepseekV3Config, DeepseekV3ForCausalLM, {**_LATENT, "q_lora_rank": 16}),
    "deepseek_v2": (DeepseekV2Config, DeepseekV2ForCausalLM, {**_LATENT, "q_lora_rank": None}),
    "llama": (LlamaConfig, LlamaForCausalLM, _GROUPED),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, _GROUPED),
}


def tiny_model(kind: str = "deepseek_v3", **changes: object) -> PreTrainedModel:
    """A model in fp32 with transformers' eager attention; the same weights for the same arguments.

    Args:
        kind: deepseek_v3 or deepseek_v2 (latents of 512 + 64 columns), llama or qwen3.
        changes: of the configuration.
    """
    config, model_class, shape = _CLASSES[kind]
    settings: dict[str, Any] = {**_SIZES, **_SPREAD, **shape, **changes}
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(config(**settings))
    model.set_attn_implementation("eager")
    torch.nn.Module.eval(model)
    return model.requires_grad_(False)
