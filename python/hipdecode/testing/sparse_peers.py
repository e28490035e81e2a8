# SPDX-License-Identifier: MIT
"""Sparse MLA decode in plain torch: gather, dequantise, two bf16 products and a softmax."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import hipdecode
from hipdecode.sparse_cache import FORMATS, V4, CacheFormat
from hipdecode.testing import compare, sparse_reference
from hipdecode.testing.bench_report import Checked
from hipdecode.testing.reference import Attention

_STEP = 256.0  # the bits of e4m3fn shifted by 7 are an fp16 number this many times too small
_NOT_BIT_14 = ~(1 << 14)


@dataclass(frozen=True, slots=True)
class SparseStep:
    """One decode step over a pool that holds more than the step names.

    Attributes:
        form: format of the cache.
        q: [tokens, nhead, head_dim_qk] bf16.
        cache: [num_blocks, 64, bytes] uint8.
        indices: [tokens, topk] int32.
        lengths: [tokens] int32: all of topk. An indexer says them; a kernel need not look for them.
        attn_sink: [nhead] fp32, or None.
        out: [tokens, nhead, 512] bf16, written by every contender.
    """

    form: CacheFormat
    q: Tensor
    cache: Tensor
    indices: Tensor
    lengths: Tensor
    attn_sink: Tensor | None
    out: Tensor

    @staticmethod
    def pool(form: CacheFormat, tokens: int, device: str) -> Tensor:
        """A cache of normal numbers."""
        block_size, chunk = 64, 4096
        cache = hipdecode.new_sparse_cache(
            form, -(-tokens // block_size), block_size, device=device
        )
        write = hipdecode.quantize_v4 if form is V4 else hipdecode.quantize_v32
        gen = torch.Generator().manual_seed(0)
        for first in range(0, tokens, chunk):
            count = min(chunk, tokens - first)
            kv = torch.randn(count, form.head_dim_qk, generator=gen).to(torch.bfloat16)
            write(kv.to(device), cache, torch.arange(first, first + count, device=device))
        return cache

    @staticmethod
    def draw(
        name: str, cache: Tensor, *, tokens: int, nhead: int, topk: int, sink: bool, seed: int
    ) -> SparseStep:
        """Slots without repeats in random order, other ones for each token and seed."""
        form, device = FORMATS[name], cache.device
        gen = torch.Generator().manual_seed(seed)
        slots = cache.shape[0] * cache.shape[1]
        lists = [torch.randperm(slots, generator=gen)[:topk] for _ in range(tokens)]
        q = torch.randn(tokens, nhead, form.head_dim_qk, generator=gen).to(torch.bfloat16)
        return SparseStep(
            form=form,
            q=q.to(device),
            cache=cache,
            indices=torch.stack(lists).to(torch.int32).to(device),
            lengths=torch.full((tokens,), topk, dtype=torch.int32, device=device),
            attn_sink=torch.zeros(nhead, device=device) if sink else None,
            out=torch.empty(tokens, nhead, form.head_dim_v, dtype=torch.bfloat16, device=device),
        )

    @property
    def scale(self) -> float:
        """Of the softmax."""
        return float(self.form.head_dim_qk**-0.5)

    def want(self) -> Attention:
        """The oracle's answer for the first and the last token."""
        return sparse_reference.sparse_mla_decode(
            self.q[self._ends].cpu(),
            self.cache.cpu(),
            self.indices[self._ends].cpu(),
            attn_sink=None if self.attn_sink is None else self.attn_sink.cpu(),
        )

    def check(self, target: str, want: Attention) -> Checked:
        """Holds `out` against what `want` has said."""
        error = (self.out[self._ends].cpu().double() - want.o).abs()
        allowed = compare.allowed_output(want, self.out.dtype, target, torch.bfloat16)
        return Checked(float(error.max()), bool((error <= allowed).all()))

    @property
    def _ends(self) -> slice:
        return slice(None, None, max(len(self.q) - 1, 1))


def dequantise(step: SparseStep, slots: Tensor) -> Tensor:
    """[n, head_dim_qk] bf16 keys, as fast as torch does it: fp8 by shifts, not by its cast."""
    form, cache, size = step.form, step.cache, step.cache.shape[1]
    blocks, gap = cache.shape[0], cache.stride(0)
    records = cache.as_strided((blocks, size, form.data_bytes), (gap, form.data_bytes, 1))
    found = records[slots // size, slots % size]
    if form.scales_apart:
        start = size * form.data_bytes
        shape = (blocks, size, form.scale_bytes)
        apart = cache.as_strided(shape, (gap, form.scale_bytes, 1), start)
        biased = apart[slots // size, slots % size][:, : form.groups]
        scale = (biased.to(torch.int32) << 23).view(torch.float32)
    else:
        scale = found[:, form.latent : form.latent + form.scale_bytes].contiguous()
        scale = scale.view(torch.float32)
    codes = found[:, : form.latent].contiguous().view(torch.int8)
    bits = codes.to(torch.int16).bitwise_left_shift_(7).bitwise_and_(_NOT_BIT_14)
    wide = bits.view(torch.float16).to(torch.float32).view(-1, form.groups, form.group)
    keys = torch.empty(len(slots), form.head_dim_qk, dtype=torch.bfloat16, device=slots.device)
    keys[:, : form.latent] = wide.mul_(scale[:, :, None] * _STEP).view(-1, form.latent)
    keys[:, form.latent :] = found[:, -2 * form.rope :].contiguous().view(torch.bfloat16)
    return keys


def _attend(step: SparseStep, token: int, keys: Tensor) -> None:
    scores = torch.mm(step.q[token], keys.T).float().mul_(step.scale)
    if step.attn_sink is not None:
        scores = torch.cat((scores, step.attn_sink[:, None]), dim=1)
    weights = scores.softmax(-1).to(torch.bfloat16)[:, : len(keys)]
    step.out[token] = torch.mm(weights, keys[:, : step.form.head_dim_v])


def ours(step: SparseStep) -> Callable[[], object]:
    """`hipdecode.sparse_mla_decode`."""
    return lambda: hipdecode.sparse_mla_decode(
        step.q,
        step.cache,
        step.indices,
        lengths=step.lengths,
        attn_sink=step.attn_sink,
        out=step.out,
    )


def torch_gather(step: SparseStep) -> Callable[[], object]:
    """Gather, dequantise and two products for each token."""
    lists = list(step.indices.long())

    def run() -> None:
        for token, slots in enumerate(lists):
            _attend(step, token, dequantise(step, slots))

    return run


def torch_products(step: SparseStep) -> Callable[[], object]:
    """The two products and the softmax alone: keys are gathered before the clock starts."""
    keys = [dequantise(step, slots) for slots in step.indices.long()]

    def run() -> None:
        for token, mine in enumerate(keys):
            _attend(step, token, mine)

    return run


CONTENDERS = {"hipdecode": ours, "torch_gather": torch_gather, "torch_products": torch_products}
