# SPDX-License-Identifier: MIT
"""Loads ahead of time all that a decode may launch."""

from __future__ import annotations

import torch

from . import ops
from .registry import wanted_rows
from .tables import ROUTES


def warmup(
    *,
    q_dtype: str = "bf16",
    kv_dtype: str = "bf16",
    head_dim_qk: int = 576,
    head_dim_v: int = 512,
    device: torch.device | str | None = None,
) -> tuple[str, ...]:
    """Loads, and builds where needed, every kernel that a decode of these types may launch.

    Call it before capturing a graph and before the first request.

    Args:
        q_dtype: `bf16`, `fp16`, `fp8_e4m3fn` or `fp8_e4m3fnuz`.
        kv_dtype: likewise.
        head_dim_qk: columns of q and of the cache.
        head_dim_v: leading columns of the cache that are V.
        device: of the tensors; by default torch's current GPU, else the CPU.

    Returns:
        The names of the kernels.

    Raises:
        BuildError: one of them could not be built.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dims = f"{head_dim_qk}-{head_dim_v}-{q_dtype}-{kv_dtype}"
    family = ops.target_of(device).family
    tiles = sorted({wanted_rows(family, packed) for packed in (16, 32, 64, 128)})
    names = (
        *(f"mla_decode_{route}/{dims}-{rows}" for route in ROUTES for rows in tiles),
        "mla_plan",
        "mla_reduce",
    )
    for name in names:
        ops.ensure_kernel(name, device)
    return names
