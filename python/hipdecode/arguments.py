# SPDX-License-Identifier: MIT
"""Checks of what callers pass: each failure names the argument, what was expected and what came."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .dispatch import MAX_SPLITS
from .errors import BadArgument, WorkspaceError
from .plan import MlaPlan
from .registry import TILE_ROWS
from .support import HEAD_DIMS, check_supported
from .workspace import Workspace

DTYPE_NAMES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8_e4m3fn",
    torch.float8_e4m3fnuz: "fp8_e4m3fnuz",
}
HEAD_DIM_V = dict(HEAD_DIMS)
OUTPUT_DTYPES = (torch.bfloat16, torch.float16)
_ROW_ALIGNMENT = 16  # bytes: vector loads and direct-to-LDS copies need it


def describe(value: object) -> str:
    """Says what an argument is, for messages."""
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} {value!r}"
    return f"{value.dtype} {list(value.shape)} on {value.device}, strides {list(value.stride())}"


def check_tensor(
    name: str,
    value: object,
    dtype: torch.dtype,
    device: torch.device,
    *,
    contiguous: bool = False,
) -> None:
    """Requires a tensor of a dtype on a device.

    Raises:
        BadArgument: it is something else.
    """
    good = isinstance(value, Tensor) and value.dtype == dtype and value.device == device
    if not good or (contiguous and not value.is_contiguous()):  # type: ignore[attr-defined]
        kind = "contiguous " if contiguous else ""
        raise BadArgument(
            f"{name}: expected a {kind}{dtype} tensor on {device}, got {describe(value)}"
        )


def check_int(name: str, value: object, low: int, high: int = 2**31 - 1) -> None:
    """Requires an int in [low, high].

    Raises:
        BadArgument: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadArgument(f"{name}: expected an int from {low} to {high}, got {value!r}")


def check_choices(
    sm_scale: float | None,
    num_splits: int | None,
    workspace: Workspace | None,
    plan: MlaPlan | None = None,
    device: torch.device | None = None,
    tile_rows: int | None = None,
) -> None:
    """Checks what a caller chooses freely; scratch and plan lie on the call's device.

    Raises:
        BadArgument: a choice means nothing.
    """
    number = isinstance(sm_scale, int | float)
    if sm_scale is not None and not (number and math.isfinite(sm_scale) and sm_scale >= 0):
        raise BadArgument(f"sm_scale: expected a number of 0 or more or None, got {sm_scale!r}")
    if num_splits is not None:
        check_int("num_splits", num_splits, 1, MAX_SPLITS)
    if tile_rows is not None and (isinstance(tile_rows, bool) or tile_rows not in TILE_ROWS):
        raise BadArgument(f"tile_rows: expected one of {TILE_ROWS} or None, got {tile_rows!r}")
    if workspace is not None and not isinstance(workspace, Workspace):
        raise BadArgument(f"workspace: expected a Workspace or None, got {describe(workspace)}")
    for name, made in (
        ("workspace", None if workspace is None else workspace.device),
        ("plan", plan.work_indptr.device if isinstance(plan, MlaPlan) else None),
    ):
        if made is None or device is None:
            continue
        if (made.type, made.index or 0) != (device.type, device.index or 0):
            raise BadArgument(f"{name}: expected one on {device}, got one on {made}; make another")


def check_inputs(
    q: Tensor,
    kv_buffer: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    max_seqlen_q: int,
) -> None:
    """Checks the inputs of a decode against each other.

    Raises:
        BadArgument: an argument has a wrong type, shape or stride.
    """
    for name, value, dim in (("q", q, 3), ("kv_buffer", kv_buffer, 4)):
        if not isinstance(value, Tensor) or value.dim() != dim or value.dtype not in DTYPE_NAMES:
            names = ", ".join(DTYPE_NAMES.values())
            raise BadArgument(
                f"{name}: expected a {dim}-D tensor of {names}, got {describe(value)}"
            )
    if q.device.type not in ("cpu", "cuda"):
        raise BadArgument(f"q: expected a tensor on the CPU or a GPU, got {describe(q)}; move it")
    _, nhead, head_dim_qk = q.shape
    if q.stride(2) != 1 or not 1 <= nhead <= 128:
        raise BadArgument(
            f"q: expected [rows, nhead 1..128, head_dim_qk] with a contiguous last dimension, "
            f"got {describe(q)}"
        )
    _check_cache(kv_buffer, head_dim_qk, q.device)
    check_int("max_seqlen_q", max_seqlen_q, 1)
    for name, value in (
        ("qo_indptr", qo_indptr),
        ("kv_indptr", kv_indptr),
        ("kv_indices", kv_indices),
    ):
        check_tensor(name, value, torch.int32, q.device, contiguous=True)
    batch = qo_indptr.numel() - 1
    if qo_indptr.dim() != 1:
        raise BadArgument(f"qo_indptr: expected [batch + 1], got {describe(qo_indptr)}")
    if batch < 0 or kv_indptr.numel() < batch + 1:
        raise BadArgument(
            f"qo_indptr, kv_indptr: expected [batch + 1] each, got {describe(qo_indptr)} and "
            f"{describe(kv_indptr)}"
        )
    if head_dim_qk not in HEAD_DIM_V:
        check_supported(
            nhead=nhead,
            q_len=max_seqlen_q,
            dtypes=(DTYPE_NAMES[q.dtype], DTYPE_NAMES[kv_buffer.dtype]),
            head_dims=(head_dim_qk, head_dim_qk),
            page_size=kv_buffer.shape[1],
        )


def _check_cache(kv_buffer: Tensor, head_dim_qk: int, device: torch.device) -> None:
    step = kv_buffer.element_size()
    starts = (kv_buffer.stride(0) * step, kv_buffer.stride(1) * step, kv_buffer.data_ptr())
    aligned = not any(start % _ROW_ALIGNMENT for start in starts)
    good = kv_buffer.shape[1] >= 1 and kv_buffer.shape[2:] == (1, head_dim_qk)
    if not (good and aligned and kv_buffer.stride(3) == 1 and kv_buffer.device == device):
        raise BadArgument(
            f"kv_buffer: expected [num_pages, page_size, 1, {head_dim_qk}] on {device}, last "
            f"dimension contiguous, rows at multiples of {_ROW_ALIGNMENT} bytes, "
            f"got {describe(kv_buffer)}"
        )


def check_options(
    q: Tensor,
    out: Tensor | None,
    lse: Tensor | None,
    kv_last_page_lens: Tensor | None,
    q_scale: Tensor | None,
    kv_scale: Tensor | None,
    batch: int,
) -> None:
    """Checks the optional tensors of a decode against its checked inputs.

    Raises:
        BadArgument: one has a wrong type, shape or stride.
    """
    rows, nhead, head_dim_qk = q.shape
    if out is not None:
        check_output("out", out, rows, nhead, HEAD_DIM_V[head_dim_qk], q.device)
    check_lse(lse, rows, nhead, q.device)
    for name, scale in (("q_scale", q_scale), ("kv_scale", kv_scale)):
        if scale is not None:
            check_tensor(name, scale, torch.float32, q.device)
            if scale.numel() != 1:
                raise BadArgument(
                    f"{name}: expected one element (0-d or [1]), got {describe(scale)}"
                )
    if kv_last_page_lens is not None:
        check_tensor("kv_last_page_lens", kv_last_page_lens, torch.int32, q.device, contiguous=True)
        if kv_last_page_lens.numel() < batch:
            raise BadArgument(
                f"kv_last_page_lens: expected {batch} elements, got {describe(kv_last_page_lens)}"
            )


def check_output(
    name: str, out: Tensor, rows: int | None, nhead: int, head_dim_v: int, device: torch.device
) -> None:
    """Requires [rows, nhead, head_dim_v] bf16 or fp16 without overlapping rows.

    Raises:
        BadArgument: it is something else.
    """
    good = isinstance(out, Tensor) and out.dim() == 3 and out.dtype in OUTPUT_DTYPES
    good = good and out.device == device and out.stride(2) == 1
    good = good and out.shape[1:] == (nhead, head_dim_v) and rows in (None, out.shape[0])
    good = good and (nhead == 1 or out.stride(1) >= head_dim_v)
    if not good or (out.shape[0] > 1 and out.stride(0) < head_dim_v):
        raise BadArgument(
            f"{name}: expected [{'rows' if rows is None else rows}, {nhead}, {head_dim_v}] bf16 or "
            f"fp16 on {device}, last dimension contiguous, rows apart, got {describe(out)}"
        )


def check_lse(
    lse: Tensor | None, rows: int, nhead: int, device: torch.device, *, name: str = "lse"
) -> None:
    """Requires [rows, nhead] fp32 contiguous, or None.

    Raises:
        BadArgument: it is something else.
    """
    if lse is None:
        return
    check_tensor(name, lse, torch.float32, device, contiguous=True)
    if lse.numel() != rows * nhead:
        raise BadArgument(f"{name}: expected [{rows}, {nhead}], got {describe(lse)}")


def check_plan(
    plan: MlaPlan,
    batch: int,
    nhead: int,
    head_dim_v: int,
    max_seqlen_q: int,
    page_size: int,
    causal: bool,
) -> None:
    """Requires a plan made for this step.

    Raises:
        WorkspaceError: it was made for another.
    """
    if not isinstance(plan, MlaPlan):
        raise BadArgument(f"plan: expected an MlaPlan, got {describe(plan)}; call plan_mla_decode")
    have = (plan.batch, plan.nhead, plan.page_size, plan.partial_output.shape[2])
    need = (batch, nhead, page_size, head_dim_v)
    if have != need or plan.max_seqlen_q < max_seqlen_q or (plan.causal and not causal):
        raise WorkspaceError(
            f"plan: expected one for batch, nhead, page_size, head_dim_v {need}, max_seqlen_q "
            f"{max_seqlen_q}, causal {causal}, got {have}, {plan.max_seqlen_q}, {plan.causal}; "
            "call plan_mla_decode with the arguments of the decode (causal=False for a shard)"
        )
