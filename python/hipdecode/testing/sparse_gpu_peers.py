# SPDX-License-Identifier: MIT
"""What sparse decode is compared with on a GPU: torch, Triton and, where it is there, FlashMLA."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hipdecode.sparse_cache import V4
from hipdecode.testing.sparse_peers import SparseStep, dequantise

_FLASHMLA_HEADS = (64, 128)


def torch_batched(step: SparseStep) -> Callable[[], Tensor]:
    """Gather, dequantise, two batched products: all tokens at once."""
    tokens, dim_v = len(step.q), step.form.head_dim_v
    lists = [(side.cache, side.indices.flatten().long()) for side in step.sides]

    def run() -> Tensor:
        found = [
            dequantise(step.form, cache, slots).view(tokens, -1, step.form.head_dim_qk)
            for cache, slots in lists
        ]
        keys = torch.cat(found, dim=1) if len(found) > 1 else found[0]
        scores = torch.bmm(step.q, keys.transpose(1, 2)).float().mul_(step.scale)
        if step.attn_sink is not None:
            sink = step.attn_sink[None, :, None].expand(tokens, -1, 1)
            scores = torch.cat((scores, sink), dim=2)
        weights = scores.softmax(-1)[..., : keys.shape[1]].to(torch.bfloat16)
        return torch.bmm(weights, keys[..., :dim_v], out=step.out)

    return run


def triton_fused(step: SparseStep) -> Callable[[], Tensor]:
    """One kernel for gather, dequantisation and attention, a second one for the merge of splits.

    Raises:
        ImportError: Triton is not installed.
        ValueError: the cache is not V4's; in V3.2's form the kernel spills and tells nothing.
    """
    if step.form is not V4:
        raise ValueError("V4 caches only")
    from hipdecode.testing.triton_sparse import SparseDecode

    units = torch.cuda.get_device_properties(step.q.device).multi_processor_count
    lists = [(side.cache, side.indices) for side in step.sides]
    return SparseDecode(step.form, step.q, lists, step.attn_sink, step.out, units)


def flash_mla(step: SparseStep) -> Callable[[], Tensor]:
    """FlashMLA's sparse decode of fp8 caches; its plan is made by the first call, then kept.

    Raises:
        ImportError: it is not installed.
        ValueError: it has no kernel for the heads.
    """
    module: Any = importlib.import_module("flash_mla")
    nhead, dtype = step.q.shape[1], torch.float8_e4m3fn
    if nhead not in _FLASHMLA_HEADS:
        raise ValueError(f"nhead {nhead}")
    schedule, _ = module.get_mla_metadata()
    main, extra = step.main, step.extra
    lengths = main.lengths if step.form is V4 else None  # its kernels of V3.2 take none
    more = {} if extra is None else {
        "extra_k_cache": extra.cache[:, :, None].view(dtype),
        "extra_indices_in_kvcache": extra.indices[:, None],
        "extra_topk_length": extra.lengths,
    }  # fmt: skip

    def run() -> Tensor:
        out, _ = module.flash_mla_with_kvcache(
            step.q[:, None],
            main.cache[:, :, None].view(dtype),
            None,
            None,
            step.form.head_dim_v,
            schedule,
            None,
            step.scale,
            False,
            True,
            indices=main.indices[:, None],
            attn_sink=step.attn_sink,
            topk_length=lengths,
            **more,
        )
        rows: Tensor = out[:, 0]
        return rows

    return run


CONTENDERS = {"torch_batched": torch_batched, "triton": triton_fused, "flash_mla": flash_mla}
