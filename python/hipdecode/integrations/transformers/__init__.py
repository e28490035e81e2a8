# SPDX-License-Identifier: MIT
"""transformers' models on hipdecode: an attention function, and a cache in pages.

    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16)
    install(model)
    cache = PagedCache(model.config, batch=1, capacity=4096, device=model.device)
    model.generate(**inputs, past_key_values=cache)

Models with latent attention keep their latents in the cache. Their own forward makes keys and
values of every head from them before it calls an attention function; `install` replaces that one
method of each layer by one that hands the latents on while a step decodes, and the attention
function moves the weights to the query (W_UK) and behind the attention (W_UV). The first tokens,
and steps of more than 16, run on the model's own method and torch's attention.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hipdecode.errors import BadArgument
from hipdecode.integrations.transformers.cache import PagedCache
from hipdecode.integrations.transformers.graph import DecodeGraph
from hipdecode.integrations.transformers.layers import LAYER, PagedLayer

__all__ = ["NAME", "DecodeGraph", "PagedCache", "attention", "install"]

NAME = "hipdecode"
"""Of the attention function: `attn_implementation` of a model."""

_REFUSED = ("sliding_window", "softcap", "s_aux", "position_bias")

Model = TypeVar("Model", bound=PreTrainedModel)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """The function behind `attn_implementation="hipdecode"`.

    Args:
        module: the layer.
        query: [batch, nhead, q_len, head_dim].
        key: the layer's keys; of a decode on a PagedCache the new ones alone, which it marks.
        value: likewise.
        attention_mask: used where no PagedCache is decoded on.
        scaling: softmax scale.
        dropout: of the weights; 0 in a decode.

    Returns:
        [batch, q_len, nhead, head_dim_v] and None for the weights.

    Raises:
        BadArgument: the layer asks for what the kernels do not have, such as a sliding window.
    """
    layer = getattr(key, LAYER, None)
    if layer is None:
        own = cast(Callable[..., tuple[Tensor, None]], sdpa_attention_forward)
        return own(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    for name in _REFUSED:
        if kwargs.get(name) is not None:
            raise BadArgument(
                f"{name}: expected None with a PagedCache, got {kwargs[name]!r}; give this model "
                "transformers' own cache"
            )
    with torch.no_grad():  # a decode has no backward
        return cast(PagedLayer, layer).attend(module, query, scaling), None


def install(model: Model) -> Model:
    """Prepares a model, in place, for decoding on a PagedCache; other caches work as before.

    Args:
        model: with full attention in all layers, latent (DeepSeek-V2 and V3 and their kin) or
            grouped (Llama, Qwen and their kin).

    Returns:
        The model.

    Raises:
        BadArgument: its up-projections cannot be absorbed, since they are quantised, or this
            release of transformers expands latents elsewhere.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "kv_b_proj"):
            continue
        if not hasattr(module, "expand_kv"):
            raise BadArgument(
                f"{name}: expected latent attention with a method expand_kv, as transformers 5.17 "
                f"to 5.23 have it, got {type(module).__name__} of {transformers.__version__}"
            )
        _check_absorbable(f"{name}.kv_b_proj", module.kv_b_proj)
        module.expand_kv = partial(_expand_kv, module)
    inner = model.base_model
    if _begin not in inner._forward_pre_hooks.values():
        inner.register_forward_pre_hook(_begin, with_kwargs=True)
    model.set_attn_implementation(NAME)
    return model


def _begin(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Starts a step of a PagedCache before the layers run; a decode needs no mask."""
    del model
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, PagedCache):
        return args, kwargs
    tokens = kwargs.get("input_ids")
    if tokens is None:
        tokens = kwargs.get("inputs_embeds")
    if tokens is None or tokens.shape[0] != cache.batch:
        raise BadArgument(
            f"input_ids: expected {cache.batch} requests, as the cache has, got "
            f"{None if tokens is None else tokens.shape[0]}"
        )
    mask = kwargs.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        raise BadArgument("attention_mask: expected [batch, columns] or None with a PagedCache")
    step = cache.begin(tokens.shape[1], mask)
    if not step.decodes:
        return args, kwargs
    # four dimensions: transformers takes it for a finished mask and makes none
    return args, {**kwargs, "attention_mask": torch.empty((0, 0, 0, 0), device=cache.device)}


def _expand_kv(module: nn.Module, latent: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of every head, or the latents themselves where the pages will be read."""
    if hasattr(latent, LAYER):
        return latent, rope
    own = cast(Any, type(module)).expand_kv
    return cast(tuple[Tensor, Tensor], own(module, latent, rope))


def _check_absorbable(name: str, projection: nn.Module) -> None:
    weight = getattr(projection, "weight", None)
    plain = isinstance(weight, Tensor) and weight.is_floating_point() and weight.itemsize >= 2
    if not plain or getattr(projection, "bias", None) is not None:
        got = weight.dtype if isinstance(weight, Tensor) else type(projection).__name__
        raise BadArgument(
            f"{name}: expected a linear layer of bf16, fp16 or fp32 without a bias, got {got}; "
            "load the model without quantisation of this layer"
        )


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
