# SPDX-License-Identifier: MIT
"""The layers of a `PagedCache`: what they store, and how a decode step reads it."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

from hipdecode.errors import BadArgument, UnsupportedShape
from hipdecode.paged import HEAD_DIMS as PAGED_HEAD_DIMS
from hipdecode.paged import PagedOptions, paged_attention
from hipdecode.support import HEAD_DIMS

if TYPE_CHECKING:
    from hipdecode.integrations.transformers.cache import PagedCache, Step

FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
Slots = tuple[Tensor, Tensor]
"""Of tokens: ids of their pages, and their places in them; int64."""
LAYER = "hipdecode_layer"
"""Attribute of the keys that `update` returns where the attention is to read the pages instead."""


class PagedLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """What latents and grouped keys have in common: columns, and where they are."""

    is_croppable = True
    supports_early_init = False

    def __init__(self, cache: PagedCache, index: int) -> None:
        """Layer `index` of `cache`, without memory yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache = cache
        self._index = index
        self.seen = 0
        self.batch_size = cache.batch

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Writes the new tokens [batch, heads, q_len, columns] into the pages.

        Returns:
            In a decode step the same, marked as lying in the pages; else all tokens so far.

        Raises:
            BadArgument: the model was not prepared by `install`, or was called past its hook.
        """
        step, q_len = self.cache.step, key_states.shape[-2]
        if step is None or (step.q_len, step.seen) != (q_len, self.seen):
            raise BadArgument(
                "past_key_values: expected a model prepared for it, got one that is not; call "
                "hipdecode.integrations.transformers.install(model)"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.is_initialized = True
        with torch.no_grad():  # the pages hold numbers, no history
            self.write(step.slots, key_states, value_states)
        self.seen += q_len
        if step.decodes:
            marked = key_states.view_as(key_states)
            setattr(marked, LAYER, self)
            return marked, value_states
        if step.earlier is None:
            return key_states, value_states
        earlier = self.read(step.earlier, key_states.dtype)
        keys, values = zip(earlier, (key_states, value_states), strict=True)
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)

    @abstractmethod
    def write(self, slots: Slots, keys: Tensor, values: Tensor) -> None:
        """Stores tokens at their slots."""

    @abstractmethod
    def read(self, slots: Slots, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Tokens of slots [batch, n] as the model gave them: [batch, heads, n, columns]."""

    @abstractmethod
    def attend(self, module: nn.Module, query: Tensor, sm_scale: float | None) -> Tensor:
        """Attention of query [batch, nhead, q_len, dim] to the pages: [batch, q_len, nhead, v]."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns with the new ones, and the first."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Columns so far, padding included."""
        return self.seen

    def get_max_length(self) -> int:
        """Columns at most."""
        return self.cache.capacity

    def reset(self) -> None:
        """Forgets all tokens; the memory stays."""
        self.seen = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the newest -tokens_to_remove columns (a count of 0 or less)."""
        self.seen += tokens_to_remove

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refused: beams would share pages.

        Raises:
            BadArgument: always.
        """
        raise _refused("beams", beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refused as `reorder_cache`.

        Raises:
            BadArgument: always.
        """
        raise _refused("repeated requests", repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Refused as `reorder_cache`.

        Raises:
            BadArgument: always.
        """
        raise _refused("a part of the requests", indices)

    def scale(self, index: int = 0) -> Tensor | None:
        """[1] fp32 that dequantises the layer's cache (0: latents or keys, 1: values)."""
        scales = self.cache.kv_scales
        return None if scales is None else scales[self._index][index]

    def put(self, pool: Tensor, slots: Slots, values: Tensor, scale: Tensor | None) -> None:
        """Writes values [rows, ...] in the dtype of a pool [pages, page_size, ...]."""
        put(pool, slots, quantised(values, pool.dtype, scale, self.cache.limits))


class LatentLayer(PagedLayer):  # type: ignore[no-untyped-call]
    """Latents of multi-head latent attention: [pages + 1, page_size, 1, latent + rope]."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Takes the memory.

        Raises:
            UnsupportedShape: no kernel for these widths.
        """
        dims = (key_states.shape[-1] + value_states.shape[-1], key_states.shape[-1])
        if dims not in HEAD_DIMS:
            widths = ", ".join(f"{v} + {qk - v}" for qk, v in HEAD_DIMS)
            raise UnsupportedShape(
                f"kv_lora_rank + qk_rope_head_dim: expected one of {widths}, got {dims[1]} + "
                f"{dims[0] - dims[1]}; give this model transformers' own cache"
            )
        cache = self.cache
        shape = (cache.pages.numel() + 1, cache.page_size, 1, dims[0])
        self.pool = torch.empty(shape, dtype=cache.dtype, device=cache.device)

    def write(self, slots: Slots, keys: Tensor, values: Tensor) -> None:
        """Stores latents [batch, 1, q_len, 512] and ropes [batch, 1, q_len, 64]."""
        latents = torch.cat((keys, values), dim=-1).flatten(0, 2)
        self.put(self.pool[:, :, 0], slots, latents, self.scale())

    def read(self, slots: Slots, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Latents and ropes of slots [batch, n]."""
        found = dequantised(self.pool[:, :, 0][slots], dtype, self.scale())[:, None]
        width = self.cache.latent
        return found[..., :width], found[..., width:]

    def attend(self, module: nn.Module, query: Tensor, sm_scale: float | None) -> Tensor:
        """W_UK into the query, attention to the latents, W_UV after it."""
        step = cast("Step", self.cache.step)
        assert step.lists is not None  # it decodes latents
        *lists, kv_last_page_lens = step.lists
        w_uk, w_uv = up_projections(module, query.shape[1])
        nope, rope = query[..., : w_uk.shape[1]], query[..., w_uk.shape[1] :]
        absorbed = torch.einsum("bhqn,hnl->bqhl", nope, w_uk)
        rows = torch.cat((absorbed, rope.transpose(1, 2)), dim=-1).flatten(0, 1)
        out = self.cache.decode(
            rows.to(self.cache.q_dtype),
            self.pool,
            *lists,
            max_seqlen_q=step.q_len,
            kv_last_page_lens=kv_last_page_lens,
            sm_scale=sm_scale,
            kv_scale=self.scale(),
            kv_len=step.kv_len,
            **self.cache.schedule(query.shape[1]),
        )
        out = out.to(w_uv.dtype)
        values = out.new_empty((*out.shape[:2], w_uv.shape[1]))
        # into the order that the layer goes on with: einsum's, heads first, would be copied to it
        torch.bmm(out.transpose(0, 1), w_uv.mT, out=values.transpose(0, 1))
        return values.view(-1, step.q_len, *values.shape[1:])


class GroupedLayer(PagedLayer):  # type: ignore[no-untyped-call]
    """Keys and values of grouped heads, in the chunks that `hipdecode.paged_attention` reads."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Takes the memory.

        Raises:
            UnsupportedShape: no kernel for this head_dim or page size.
        """
        cache, head_dim = self.cache, key_states.shape[-1]
        if head_dim not in PAGED_HEAD_DIMS or value_states.shape[-1] != head_dim:
            raise UnsupportedShape(
                f"head_dim: expected one of {PAGED_HEAD_DIMS}, got {head_dim}; give this model "
                "transformers' own cache"
            )
        if cache.page_size % 16:
            raise BadArgument(
                f"page_size: expected a multiple of 16 for keys and values, got {cache.page_size}"
            )
        x = 16 // cache.dtype.itemsize
        blocks, heads = cache.pages.numel() + 1, key_states.shape[1]
        self.key_pool = torch.empty(
            (blocks, heads, head_dim // x, cache.page_size, x),
            dtype=cache.dtype, device=cache.device,
        )  # fmt: skip
        self.value_pool = torch.empty(
            (blocks, heads, head_dim, cache.page_size), dtype=cache.dtype, device=cache.device
        )

    def write(self, slots: Slots, keys: Tensor, values: Tensor) -> None:
        """Stores keys and values [batch, nhead_kv, q_len, head_dim]."""
        keys, values = (part.transpose(1, 2).flatten(0, 1) for part in (keys, values))
        chunks = keys.view(*keys.shape[:2], -1, self.key_pool.shape[-1])
        self.put(self.key_pool.movedim(3, 1), slots, chunks, self.scale(0))
        self.put(self.value_pool.movedim(3, 1), slots, values, self.scale(1))

    def read(self, slots: Slots, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of slots [batch, n]."""
        keys = self.key_pool.movedim(3, 1)[slots].flatten(3)
        values = self.value_pool.movedim(3, 1)[slots]
        return (
            dequantised(keys, dtype, self.scale(0)).transpose(1, 2),
            dequantised(values, dtype, self.scale(1)).transpose(1, 2),
        )

    def attend(self, module: nn.Module, query: Tensor, sm_scale: float | None) -> Tensor:
        """Attention of the query's heads to their groups."""
        del module
        step = cast("Step", self.cache.step)
        rows = query.transpose(1, 2).flatten(0, 1)
        out = paged_attention(
            rows.to(self.cache.q_dtype),
            self.key_pool,
            self.value_pool,
            self.cache.pages,
            step.lengths,
            options=PagedOptions(max_seqlen_q=step.q_len, max_seq_len=step.kv_len),
            k_scale=self.scale(0),
            v_scale=self.scale(1),
            sm_scale=sm_scale,
        )
        return out.to(query.dtype).reshape(-1, step.q_len, *out.shape[1:])


def up_projections(module: nn.Module, nhead: int) -> tuple[Tensor, Tensor]:
    """W_UK [nhead, nope, latent] and W_UV [nhead, v, latent], views of an MLA layer's weight."""
    weight = cast(nn.Linear, module.kv_b_proj).weight
    up = weight.view(nhead, -1, weight.shape[1])
    nope = int(cast(int, module.qk_nope_head_dim))
    return up[:, :nope], up[:, nope:]


def fp8_limits(dtype: torch.dtype, device: torch.device | str) -> tuple[Tensor, Tensor] | None:
    """The least and the largest number of a kind of fp8, on the device; None for other dtypes."""
    if dtype not in FP8_DTYPES:
        return None
    limit = torch.finfo(dtype).max
    return torch.tensor(-limit, device=device), torch.tensor(limit, device=device)


def quantised(
    values: Tensor,
    dtype: torch.dtype,
    scale: Tensor | None,
    limits: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Values in the dtype of a pool; fp8 saturates, since torch would make NaN of what is large.

    Limits on the device let one kernel saturate and convert: with numbers torch takes two.
    """
    if limits is None:
        return values.to(dtype)
    found = torch.empty(values.shape, dtype=dtype, device=values.device)
    return torch.clamp(values if scale is None else values / scale, *limits, out=found)


def dequantised(values: Tensor, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
    """The inverse of `quantised`."""
    return values.to(dtype) if scale is None else (values.float() * scale).to(dtype)


def put(pool: Tensor, slots: tuple[Tensor, ...], values: Tensor) -> None:
    """pool[slots] = values; fp8 as bytes, since torch has no indexed copy of it."""
    if pool.dtype in FP8_DTYPES:
        pool, values = pool.view(torch.uint8), values.view(torch.uint8)
    pool.index_put_(slots, values)


def _refused(what: str, value: object) -> BadArgument:
    del value
    return BadArgument(
        f"past_key_values: expected greedy search or sampling, got {what}; give this call "
        "transformers' own cache"
    )
