# SPDX-License-Identifier: MIT
"""The demo's model: transformers' DeepSeek-V3 with its attention moved onto hipdecode."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from hipdecode.demo.cache import PagedLatentCache
from hipdecode.errors import BadArgument
from hipdecode.integrations.transformers.layers import up_projections

FOLDER = Path(__file__).parent
"""Holds config.json and the weights."""
WEIGHTS = "model.safetensors"


class Decode(Protocol):
    """The part of `hipdecode.mla_decode` that the model calls."""

    def __call__(
        self,
        q: Tensor,
        kv_buffer: Tensor,
        qo_indptr: Tensor,
        kv_indptr: Tensor,
        kv_indices: Tensor,
        *,
        max_seqlen_q: int,
        kv_last_page_lens: Tensor | None,
        sm_scale: float | None,
        kv_scale: Tensor | None,
        kv_len: int | None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns [rows, nhead, head_dim_v]."""
        ...


class AbsorbedAttention(nn.Module):
    """Attention of one layer on compressed latents, with the weights of transformers' own.

    W_UK is absorbed into the query and W_UV applied to the output, so that all heads attend to one
    latent of 512 + 64 columns and the cache holds nothing else. Everything but the cache and the
    attention itself stays in fp32.
    """

    def __init__(self, inner: DeepseekV3Attention, layer: int, decode: Decode) -> None:
        """Takes over the modules of `inner`; `serve_on` sets the cache before the first call."""
        super().__init__()
        self.inner = inner
        self.cache: PagedLatentCache | None = None
        self._layer = layer
        self._decode = decode
        self._dims = (inner.qk_nope_head_dim, inner.qk_rope_head_dim)
        to_query = (inner.q_proj, inner.q_a_proj, inner.q_a_layernorm, inner.q_b_proj)
        self._to_query = nn.Sequential(*(part for part in to_query if part is not None))
        self._w_uk, self._w_uv = up_projections(inner, inner.num_heads)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        **_: object,
    ) -> tuple[Tensor, None]:
        """Writes the new tokens to the cache and attends to all tokens in it.

        Args:
            hidden_states: [batch, q_len, hidden_size] fp32.
            position_embeddings: cos and sin, [batch, q_len, qk_rope_head_dim] each.

        Returns:
            [batch, q_len, hidden_size] and None in place of the attention weights.
        """
        if self.cache is None or self.cache.step is None:
            raise BadArgument(
                "cache: expected a step, got none; call decode_step on a served model"
            )
        step, buffer = self.cache.step, self.cache.buffers[self._layer]
        batch, q_len = hidden_states.shape[:2]
        query, latents = self._project(hidden_states, position_embeddings)
        self.cache.write(self._layer, latents, step)
        out = self._decode(
            query.to(torch.bfloat16 if buffer.dtype.itemsize == 1 else buffer.dtype),
            buffer,
            step.qo_indptr,
            step.kv_indptr,
            step.kv_indices,
            max_seqlen_q=q_len,
            kv_last_page_lens=step.kv_last_page_lens,
            sm_scale=self.inner.scaling,
            kv_scale=self.cache.kv_scales[self._layer],
            kv_len=step.kv_len,
        )
        assert isinstance(out, Tensor)  # it is a pair only where the LSE is asked for
        values = torch.einsum("rhl,hvl->rhv", out.float(), self._w_uv)
        return self.inner.o_proj(values.reshape(batch, q_len, -1)), None

    def _project(self, hidden: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Absorbed query [rows, nhead, 576] and latents [rows, 576] of hidden [batch, q_len, ..].

        rows = batch * q_len.
        """
        inner, (batch, q_len, _) = self.inner, hidden.shape
        query = self._to_query(hidden).view(batch, q_len, inner.num_heads, sum(self._dims))
        q_nope, q_rope = torch.split(query, list(self._dims), dim=-1)
        down = inner.kv_a_proj_with_mqa(hidden)
        latent, k_rope = torch.split(down, [inner.kv_lora_rank, self._dims[1]], dim=-1)
        absorbed = torch.einsum("bqhn,hnl->bqhl", q_nope, self._w_uk)
        cos, sin = (part[..., : self._dims[1] // 2] for part in rope)
        q_rope = rotate_pairs(q_rope, cos[:, :, None], sin[:, :, None])
        query = torch.cat((absorbed, q_rope), dim=-1)
        latents = torch.cat((inner.kv_a_layernorm(latent), rotate_pairs(k_rope, cos, sin)), dim=-1)
        return query.flatten(0, 1), latents.flatten(0, 1)


def rotate_pairs(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of neighbouring pairs, the layout of DeepSeek's weights.

    Args:
        values: [..., 2 * pairs].
        cos: [..., pairs], of each pair's angle.
        sin: likewise.

    Returns:
        [..., 2 * pairs]: all first members, then all second ones. Query and key share the order,
        so their product does not see it.
    """
    first, second = values[..., 0::2], values[..., 1::2]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def load_model(
    folder: Path = FOLDER, *, device: torch.device | str = "cpu"
) -> DeepseekV3ForCausalLM:
    """The trained model in fp32 with transformers' eager attention.

    Args:
        folder: holds config.json and model.safetensors (bf16).
        device: where it goes.
    """
    config = DeepseekV3Config.from_json_file(folder / "config.json")
    config._attn_implementation = "eager"
    model = DeepseekV3ForCausalLM(config)
    model.load_state_dict(load_file(folder / WEIGHTS))
    nn.Module.eval(model)
    nn.Module.to(model, device)
    return model.requires_grad_(False)


def absorb(model: DeepseekV3ForCausalLM, decode: Decode) -> DeepseekV3ForCausalLM:
    """Replaces the attention of every layer, in place, by `AbsorbedAttention` on `decode`."""
    for index, layer in enumerate(model.model.layers):
        layer.self_attn = AbsorbedAttention(layer.self_attn, index, decode)
    # The masks of the eager attention are of no use here, and cost more than a layer.
    model.config._attn_implementation = "sdpa"
    return model


def serve_on(
    model: DeepseekV3ForCausalLM,
    *,
    batch: int,
    capacity: int,
    dtype: torch.dtype,
    kv_scales: list[float] | None = None,
    page_size: int = 64,
) -> PagedLatentCache:
    """Gives an absorbed model a new, empty cache.

    Args:
        model: from `absorb`.
        batch: requests.
        capacity: tokens of each request at most.
        dtype: of the cache, and of the query where it is no fp8.
        kv_scales: one per layer, for fp8.
        page_size: tokens of a page.
    """
    config = model.config
    cache = PagedLatentCache(
        layers=config.num_hidden_layers,
        batch=batch,
        capacity=capacity,
        head_dim_qk=config.kv_lora_rank + config.qk_rope_head_dim,
        dtype=dtype,
        page_size=page_size,
        kv_scales=kv_scales,
        device=model.device,
    )
    for layer in model.model.layers:
        layer.self_attn.cache = cache
    return cache


@torch.no_grad()
def decode_step(model: DeepseekV3ForCausalLM, cache: PagedLatentCache, tokens: Tensor) -> Tensor:
    """Logits [batch, q_len, 256] of the next tokens [batch, q_len] int64 of every request."""
    start = cache.kv_len
    step = cache.begin(tokens.shape[1])
    positions = torch.arange(start, step.kv_len, device=tokens.device)[None]
    return next_logits(model, tokens, positions.expand(tokens.shape))


@torch.no_grad()
def next_logits(model: DeepseekV3ForCausalLM, tokens: Tensor, positions: Tensor) -> Tensor:
    """Logits [batch, q_len, 256] of an absorbed model whose cache has a step begun.

    Layer by layer, since transformers' own loop makes masks that the absorbed attention has no use
    for, and looks at their contents: that would end a graph capture.
    """
    inner = model.model
    hidden = inner.embed_tokens(tokens)
    rope = inner.rotary_emb(hidden, positions)
    for layer in inner.layers:
        hidden = layer(hidden, position_embeddings=rope, attention_mask=None)
    logits: Tensor = model.lm_head(inner.norm(hidden))
    return logits
