# SPDX-License-Identifier: MIT
"""One step of paged attention to be timed, and torch's ways to do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hipdecode.paged import PagedOptions, paged_attention
from hipdecode.testing import compare, paged_reference
from hipdecode.testing.bench_report import Checked
from hipdecode.testing.reference import Attention

_STEP = 256.0  # the bits of e4m3fn shifted by 7 are an fp16 number this many times too small


@dataclass(frozen=True, slots=True)
class PagedStep:
    """One decode step; every request has the same context, its blocks lie in random order.

    Attributes:
        q: [batch * mtp, nhead, 128] bf16.
        key_cache: [num_blocks, nhead_kv, 128 / x, block_size, x] bf16 or e4m3fn.
        value_cache: [num_blocks, nhead_kv, block_size / x, 128, x].
        block_tables: [batch, blocks] int32.
        context_lens: [batch] int32.
        k_scale: [num_blocks, nhead_kv, block_size] fp32 beside fp8, else None.
        v_scale: likewise.
        mtp: query tokens of a request.
        context: tokens of a request.
        out: like q, written by every contender.
    """

    q: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_tables: Tensor
    context_lens: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None
    mtp: int
    context: int
    out: Tensor

    @staticmethod
    def draw(
        *,
        batch: int,
        context: int,
        gqa: int,
        nhead_kv: int,
        mtp: int,
        fp8: bool,
        block_size: int = 16,
        device: str = "cpu",
        seed: int = 0,
    ) -> PagedStep:
        """Normal numbers; scales of fp8 differ from token to token."""
        gen = torch.Generator().manual_seed(seed)
        x = 16 if fp8 else 8
        columns = -(-context // block_size)
        blocks = batch * columns
        shapes = {
            "key_cache": (blocks, nhead_kv, 128 // x, block_size, x),
            "value_cache": (blocks, nhead_kv, block_size // x, 128, x),
        }
        caches: dict[str, Tensor] = {}
        scales: dict[str, Tensor | None] = {}
        for name, shape in shapes.items():
            numbers = torch.randn(shape, generator=gen)
            kind = torch.float8_e4m3fn if fp8 else torch.bfloat16
            caches[name] = (numbers * (64 if fp8 else 1)).to(kind).to(device)
        for name in ("k_scale", "v_scale"):
            each = torch.rand(blocks, nhead_kv, block_size, generator=gen) / 64 + 1 / 128
            scales[name] = each.to(device) if fp8 else None
        order = torch.randperm(blocks, generator=gen).to(torch.int32)
        q = torch.randn(batch * mtp, nhead_kv * gqa, 128, generator=gen).to(torch.bfloat16)
        return PagedStep(
            q=q.to(device),
            key_cache=caches["key_cache"],
            value_cache=caches["value_cache"],
            block_tables=order.view(batch, columns).to(device),
            context_lens=torch.full((batch,), context, dtype=torch.int32, device=device),
            k_scale=scales["k_scale"],
            v_scale=scales["v_scale"],
            mtp=mtp,
            context=context,
            out=torch.empty_like(q, device=device),
        )

    @property
    def gqa(self) -> int:
        """Query heads of a kv head."""
        return self.q.shape[1] // self.key_cache.shape[1]

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys, values and scales that the step names."""
        tokens = self.block_tables.shape[0] * self.context * self.key_cache.shape[1]
        each = 2 * 128 * self.key_cache.element_size() + (8 if self.k_scale is not None else 0)
        return tokens * each

    def want(self) -> Attention:
        """The oracle's answer for the first request."""
        scale = None if self.k_scale is None else self.k_scale.cpu()
        return paged_reference.paged_attention(
            self.q[: self.mtp].cpu(),
            self.key_cache.cpu(),
            self.value_cache.cpu(),
            self.block_tables[:1].cpu(),
            self.context_lens[:1].cpu(),
            max_seqlen_q=self.mtp,
            k_scale=scale,
            v_scale=None if self.v_scale is None else self.v_scale.cpu(),
        )

    def check(self, out: Tensor, want: Attention, target: str) -> Checked:
        """Holds a result against what `want` has said."""
        error = (out[: self.mtp].cpu().double() - want.o).abs()
        allowed = compare.allowed_output(want, out.dtype, target, torch.bfloat16)
        return Checked(float(error.max()), bool((error <= allowed).all()))


def _ours(route: str | None) -> Callable[[PagedStep], Callable[[], Tensor]]:
    def make(step: PagedStep) -> Callable[[], Tensor]:
        options = PagedOptions(max_seqlen_q=step.mtp, route=route)
        return lambda: paged_attention(
            step.q, step.key_cache, step.value_cache, step.block_tables, step.context_lens,
            options=options, k_scale=step.k_scale, v_scale=step.v_scale, out=step.out,
        )  # fmt: skip

    return make


def widened(codes: Tensor) -> Tensor:
    """fp8 e4m3fn as bf16, as fast as torch does it: by shifts, not by its cast."""
    bits = codes.view(torch.int8).to(torch.int16)
    half = ((bits << 7) & ~(1 << 14)).view(torch.float16)
    return half.to(torch.bfloat16) * _STEP


def gathered(step: PagedStep) -> tuple[Tensor, Tensor]:
    """Keys and values [batch, nhead_kv, context, 128] bf16 of the requests."""
    batch, heads = step.block_tables.shape[0], step.key_cache.shape[1]
    blocks = step.block_tables.flatten()
    k, v = step.key_cache[blocks], step.value_cache[blocks]
    k, v = (
        k.transpose(2, 3),
        v.transpose(3, 4),
    )  # [blocks, heads, size, d / x, x], [.., chunk, x, d]
    pairs = []
    for cache, scale in ((k, step.k_scale), (v, step.v_scale)):
        dense = cache.reshape(len(blocks), heads, -1, 128)
        if scale is not None:
            dense = widened(dense) * scale[blocks][..., None].to(torch.bfloat16)
        dense = dense.view(batch, -1, *dense.shape[1:]).transpose(1, 2)
        pairs.append(dense.reshape(batch, heads, -1, 128)[:, :, : step.context])
    return pairs[0], pairs[1]


def _sdpa(step: PagedStep, k: Tensor, v: Tensor) -> Tensor:
    """All rows of a kv head as the rows of one head: torch then reads its keys once."""
    batch, heads = k.shape[:2]
    rows = step.q.view(batch, step.mtp, heads, step.gqa, 128).permute(0, 2, 1, 3, 4)
    mask = None
    if step.mtp > 1:
        token = torch.arange(step.mtp, device=k.device).repeat_interleave(step.gqa)
        limit = step.context - step.mtp + token + 1
        mask = torch.arange(step.context, device=k.device)[None] < limit[:, None]
    flat = rows.reshape(batch, heads, -1, 128)
    out = functional.scaled_dot_product_attention(flat, k, v, attn_mask=mask)
    out = out.view(batch, heads, step.mtp, step.gqa, 128).transpose(1, 2)
    return out.reshape(step.q.shape)


def _torch_sdpa(step: PagedStep) -> Callable[[], Tensor]:
    return lambda: _sdpa(step, *gathered(step))


def _torch_sdpa_dense(step: PagedStep) -> Callable[[], Tensor]:
    k, v = (x.contiguous() for x in gathered(step))
    return lambda: _sdpa(step, k, v)


CONTENDERS: dict[str, Callable[[PagedStep], Callable[[], Tensor]]] = {
    "hipdecode": _ours(None),
    "general": _ours("general"),
    "torch_sdpa": _torch_sdpa,
    "torch_sdpa_dense": _torch_sdpa_dense,
}
"""Ways to do a step. `general`: the same by the kernel for any cache. `torch_sdpa`: gather and
dequantise, then scaled_dot_product_attention; `torch_sdpa_dense`: the latter alone, on keys that
were gathered before."""
