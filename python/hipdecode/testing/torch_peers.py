# SPDX-License-Identifier: MIT
"""MLA decode in plain torch, the way each data type and shape runs fastest.

In all of them the heads are folded into query rows: one shared KV head makes attention of a request
two matrix products. Which form wins depends on nhead, dtype and CPU, so the benchmarks time all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hipdecode.testing.bench_case import DecodeCase, Peer

# The bits of e4m3 shifted by 7 are an fp16 number this many times too small.
_FP8_STEP = {torch.float8_e4m3fn: 256.0, torch.float8_e4m3fnuz: 128.0}
_NOT_BIT_14 = ~(1 << 14)


def causal_tail(case: DecodeCase) -> Tensor | None:
    """[q_len * nhead, q_len - 1] bool, True where one of the last keys is hidden; None at q_len 1.

    Rows are (query token, head) flattened: only the last q_len - 1 keys are hidden from anyone.
    """
    if case.q_len == 1:
        return None
    row = torch.arange(case.q_len, device=case.device).repeat_interleave(case.spec.nhead)
    return torch.arange(1, case.q_len, device=case.device)[None, :] > row[:, None]


def _gather(case: DecodeCase, slots: Tensor, dtype: torch.dtype, by_bits: bool = False) -> Tensor:
    """[tokens, head_dim_qk] keys of `slots` as `dtype`.

    torch casts fp8 element by element, 3 to 4 ns each; `by_bits` does the same with shifts, ten
    times faster, for codes that are numbers.
    """
    pool = case.inputs["kv_buffer"]
    store = pool.view(-1, pool.shape[-1])
    step = _FP8_STEP.get(store.dtype)
    if step is None:
        return store.index_select(0, slots).to(dtype)
    found = store.view(torch.int8).index_select(0, slots)
    if not by_bits:
        return found.view(store.dtype).to(dtype)
    bits = found.to(torch.int16).bitwise_left_shift_(7).bitwise_and_(_NOT_BIT_14)
    return bits.view(torch.float16).to(torch.float32).mul_(step).to(dtype)


@dataclass(frozen=True, slots=True)
class TorchMatmul:
    """Gather, two matrix products and a softmax per request.

    Attributes:
        name: see Peer.
        dtype: of the operands of the products.
        chunk: tokens at a time with an online softmax, or 0 for the whole context.
        by_bits: fp8 KV converted by shifts instead of torch's cast.
    """

    name: str
    dtype: torch.dtype
    chunk: int = 0
    by_bits: bool = False

    def supports(self, case: DecodeCase) -> str | None:
        """Every case; the forms that convert by bits are for fp8 only."""
        is_fp8 = case.inputs["kv_buffer"].dtype in _FP8_STEP
        return "fp8 KV only" if self.by_bits and not is_fp8 else None

    def prepare(self, case: DecodeCase) -> Callable[[], Tensor]:
        """See Peer."""
        slots = [case.slots(request) for request in range(case.batch)]
        tail = causal_tail(case)
        out = case.new_output()
        body = self._chunked if self.chunk else self._whole

        def run() -> Tensor:
            for request in range(case.batch):
                rows = slice(request * case.q_len, (request + 1) * case.q_len)
                q = case.inputs["q"][rows].flatten(0, 1).to(self.dtype)
                out[rows] = body(case, q, slots[request], tail).view(out[rows].shape)
            return out

        return run

    def _whole(self, case: DecodeCase, q: Tensor, slots: Tensor, tail: Tensor | None) -> Tensor:
        keys = _gather(case, slots, self.dtype, self.by_bits)
        scores = torch.mm(q, keys.T).float().mul_(case.scale)
        if tail is not None:
            scores[:, -tail.shape[1] :].masked_fill_(tail, -torch.inf)
        return torch.mm(scores.softmax(-1).to(self.dtype), keys[:, : case.spec.head_dim_v])

    def _chunked(self, case: DecodeCase, q: Tensor, slots: Tensor, tail: Tensor | None) -> Tensor:
        top = torch.full((q.shape[0], 1), -torch.inf)
        total = torch.zeros(q.shape[0], 1)
        acc = torch.zeros(q.shape[0], case.spec.head_dim_v)
        hidden = 0 if tail is None else tail.shape[1]
        # A last chunk shorter than the hidden tail would split the mask: it joins the one before.
        stops = [*range(self.chunk, slots.numel() - hidden, self.chunk), slots.numel()]
        start = 0
        for stop in stops:
            keys = _gather(case, slots[start:stop], self.dtype, self.by_bits)
            scores = torch.mm(q, keys.T).float().mul_(case.scale)
            if tail is not None and stop == slots.numel():
                scores[:, -hidden:].masked_fill_(tail, -torch.inf)
            new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
            p = scores.sub_(new_top).exp_()
            fade = (top - new_top).exp_()
            total.mul_(fade).add_(p.sum(-1, keepdim=True))
            acc.mul_(fade)
            values = keys[:, : case.spec.head_dim_v]
            if self.dtype == torch.float32:
                acc.addmm_(p, values)
            else:
                acc.add_(torch.mm(p.to(self.dtype), values))
            top, start = new_top, stop
        return acc.div_(total)


@dataclass(frozen=True, slots=True)
class SdpaRows:
    """torch's flash attention; V is all of K, so that the head dims agree and it is eligible."""

    name: str = "sdpa_bf16_rows"

    def supports(self, case: DecodeCase) -> str | None:
        """Every case."""
        del case
        return None

    def prepare(self, case: DecodeCase) -> Callable[[], Tensor]:
        """See Peer."""
        slots = [case.slots(request) for request in range(case.batch)]
        masks = _additive_masks(case)
        out = case.new_output()

        def run() -> Tensor:
            for request in range(case.batch):
                rows = slice(request * case.q_len, (request + 1) * case.q_len)
                q = case.inputs["q"][rows].flatten(0, 1)[None, None].to(torch.bfloat16)
                keys = _gather(case, slots[request], torch.bfloat16)[None, None]
                wide = functional.scaled_dot_product_attention(
                    q, keys, keys, attn_mask=masks[request], scale=case.scale
                )
                out[rows] = wide[0, 0, :, : case.spec.head_dim_v].view(out[rows].shape)
            return out

        return run


def _additive_masks(case: DecodeCase) -> list[Tensor | None]:
    tail = causal_tail(case)
    if tail is None:
        return [None] * case.batch
    masks: list[Tensor | None] = []
    for length in case.spec.kv_lens:
        mask = torch.zeros(tail.shape[0], length, dtype=torch.bfloat16)
        mask[:, -tail.shape[1] :].masked_fill_(tail, -torch.inf)
        masks.append(mask)
    return masks


def torch_peers() -> list[Peer]:
    """Every formulation, chunks as measured best on AVX-512 with 1 MiB of L2."""
    return [
        SdpaRows(),
        TorchMatmul("torch_fp32", torch.float32),
        TorchMatmul("torch_fp32_chunk", torch.float32, chunk=512),
        TorchMatmul("torch_bf16", torch.bfloat16),
        TorchMatmul("torch_bf16_chunk", torch.bfloat16, chunk=1024),
        TorchMatmul("torch_fp32_bits", torch.float32, by_bits=True),
        TorchMatmul("torch_bf16_bits", torch.bfloat16, by_bits=True),
        TorchMatmul("torch_bf16_bits_chunk", torch.bfloat16, chunk=1024, by_bits=True),
    ]
