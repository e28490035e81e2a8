# SPDX-License-Identifier: MIT
"""Decode in two kernels: pieces of every context, then their merge; and the merge on its own."""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops
from .arguments import (
    DTYPE_NAMES,
    check_choices,
    check_inputs,
    check_int,
    check_options,
    check_output,
    check_tensor,
    describe,
)
from .dispatch import logger
from .errors import BadArgument
from .reduce_route import SPLIT_COUNTS, ReduceRoute, ReduceShape, route_mla_reduce
from .registry import wanted_rows
from .workspace import Workspace, default_workspace

_BATCHES, _VECS = (1, 2, 4, 8), (1, 2, 4)


def mla_decode_reduce(
    partial_output: Tensor,
    partial_lse: Tensor,
    reduced: Tensor,
    kv_indptr: Tensor,
    T: int,
    batch: int,
    vec: int = 1,
    num_splits: int = 16,
) -> None:
    """Merges the pieces of T requests with one query row each by their log-sum-exp.

    Of the num_splits partials of row t, rows t * num_splits and on, the first
    min(ceil(kv_len / 64), num_splits) are read, and no others.

    Args:
        partial_output: [T * num_splits, nhead, head_dim_v] fp32, each normalised.
        partial_lse: [T * num_splits, nhead] (any shape of that size) fp32, natural log; -inf: the
            piece saw no key, and its output is not looked at.
        reduced: [T, nhead, head_dim_v] bf16 or fp16, written in place, strides honoured. Requests
            without keys come out as zero.
        kv_indptr: [T + 1] int32, tokens of each request.
        T: requests.
        batch: partials that are on their way at a time: 1, 2, 4 or 8; num_splits at most count.
        vec: columns that a lane reads as one: 1, 2 or 4. Where head_dim_v, an address or a stride
            is no multiple, the largest that is; the log names what it was.
        num_splits: 1, 2, 4, 8 or 16.

    Raises:
        BadArgument: an argument has a wrong type, shape or range; nothing was written.
        BuildError: a kernel that is not cached could not be built.
    """
    try:
        if isinstance(T, Tensor):
            raise TypeError("a number on the device: reading it would synchronise")
        ops.load_binding()
        torch.ops.hipdecode.mla_decode_reduce.default(
            partial_output, partial_lse, reduced, kv_indptr, T, batch, vec, num_splits
        )
    except Exception:
        _check_reduce(partial_output, partial_lse, reduced, kv_indptr, T)
        for name, value, allowed in (
            ("batch", batch, _BATCHES),
            ("vec", vec, _VECS),
            ("num_splits", num_splits, SPLIT_COUNTS),
        ):
            if isinstance(value, bool) or value not in allowed:
                raise BadArgument(f"{name}: expected one of {allowed}, got {value!r}") from None
        _check_rows(partial_output, partial_lse, T * num_splits)
        raise
    if vec > 1 and not torch.compiler.is_compiling() and logger.isEnabledFor(20):
        _log_vec(partial_output, reduced, vec)


def usable_vec(partial_output: Tensor, reduced: Tensor, vec: int) -> tuple[int, str]:
    """The vec that a merge takes when it is asked for `vec`, and what keeps it from more.

    Args:
        partial_output: as in mla_decode_reduce.
        reduced: as in mla_decode_reduce.
        vec: 1, 2 or 4.
    """
    limits = {
        "head_dim_v": reduced.shape[2],
        "the address of partial_output": partial_output.data_ptr() // 4,
        "the address of reduced": reduced.data_ptr() // 2,
        "a stride of reduced": reduced.stride(0) | reduced.stride(1),
    }
    found, why = vec, ""
    for name, elements in limits.items():
        most = elements & -elements or vec
        if most < found:
            found, why = most, f"{name} is no multiple of {found} elements"
    return found, why


def _log_vec(partial_output: Tensor, reduced: Tensor, vec: int) -> None:
    found, why = usable_vec(partial_output, reduced, vec)
    if why:
        logger.info("mla_decode_reduce: vec %d instead of %d: %s", found, vec, why)


def _check_reduce(
    partial_output: Tensor, partial_lse: Tensor, reduced: Tensor, kv_indptr: Tensor, rows: int
) -> None:
    if not isinstance(partial_output, Tensor) or partial_output.dim() not in (3, 4):
        raise BadArgument(
            f"partial_output: expected a 3-D or 4-D tensor, got {describe(partial_output)}"
        )
    nhead, head_dim_v = partial_output.shape[-2:]
    device = partial_output.device
    check_int("T", rows, 0)
    check_tensor("partial_output", partial_output, torch.float32, device, contiguous=True)
    check_tensor("partial_lse", partial_lse, torch.float32, device, contiguous=True)
    check_tensor("kv_indptr", kv_indptr, torch.int32, device, contiguous=True)
    check_output("reduced", reduced, None, nhead, head_dim_v, device)
    if kv_indptr.numel() < rows + 1 or reduced.shape[0] < rows:
        raise BadArgument(
            f"kv_indptr, reduced: expected [T + 1] and [T, nhead, head_dim_v] for T {rows}, got "
            f"{describe(kv_indptr)} and {describe(reduced)}"
        )


def _check_rows(partial_output: Tensor, partial_lse: Tensor, rows: int) -> None:
    nhead, head_dim_v = partial_output.shape[-2:]
    for name, value, row in (
        ("partial_output", partial_output, nhead * head_dim_v),
        ("partial_lse", partial_lse, nhead),
    ):
        if value.numel() < rows * row:
            raise BadArgument(
                f"{name}: expected T * num_splits = {rows} rows of {row} elements, got "
                f"{describe(value)}"
            )


def mla_reduce_decode(
    q: Tensor,
    kv_buffer: Tensor,
    o_scratch: Tensor | None,
    *,
    cu_seqlens_q: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_last_page_lens: Tensor | None,
    max_seqlen_q: int,
    scale: float | None,
    q_scale: Tensor | None,
    k_scale: Tensor | None,
    kv_lora_rank: int,
    v_head_dim: int,
    num_splits: int | None = None,
    lse: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Tensor | None:
    """A decode step by the route `reduce`, or None where the table does not have it.

    Contexts are cut into as many pieces as fill the machine best (`reduce_route.adaptive_splits`),
    whose partials mla_decode_reduce merges. Nothing synchronises, and nothing is allocated when
    o_scratch and a warm workspace are there. Whether the step is taken follows from shapes alone,
    so that a captured graph can be replayed with other lengths.

    Args:
        q: as in mla_decode; each request has one row at most.
        kv_buffer: as in mla_decode, page_size 1.
        o_scratch: [rows, nhead, kv_lora_rank] bf16 or fp16, written in place; None: a new tensor.
        cu_seqlens_q: [batch + 1] int32, rows of each request. Rows past the last come out as zero.
        kv_indptr: [batch + 1] int32, tokens of each request.
        kv_indices: [any] int32, page ids.
        kv_last_page_lens: not looked at where page_size is 1.
        max_seqlen_q: query rows of one request at most.
        scale: softmax scale; None: 1 / sqrt(head_dim_qk).
        q_scale: as in mla_decode.
        k_scale: kv_scale of mla_decode.
        kv_lora_rank: columns of V in the cache.
        v_head_dim: columns of the output.
        num_splits: 1, 2, 4, 8 or 16 instead of the adaptive number.
        lse: [rows, nhead] fp32 to write the log-sum-exp to, or None.
        workspace: scratch; by default this thread's own.

    Returns:
        [rows, nhead, kv_lora_rank]: o_scratch where that was given. None on a miss, said with its
        reason in the log: the caller decodes as without this route.

    Raises:
        BadArgument: an argument has a wrong type, shape, stride or range; nothing was written.
        UnsupportedShape: no kernel for this shape.
        BuildError: a kernel that is not cached could not be built.
    """
    out = o_scratch
    try:
        columns = (kv_lora_rank, v_head_dim)
        facts = _facts(q, kv_buffer, cu_seqlens_q, max_seqlen_q, columns, num_splits)
        route = _prepare(q.device, *facts)
        if route.batch is None:
            return None
        if isinstance(scale, Tensor):
            raise TypeError("a number on the device: reading it would synchronise")
        if out is None:
            dtype = q.dtype if q.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
            out = torch.empty((*q.shape[:2], kv_lora_rank), dtype=dtype, device=q.device)
        partials = _scratch(q, q.shape[0] * route.num_splits, kv_lora_rank, workspace)
        sm_scale = q.shape[2] ** -0.5 if scale is None else scale
        torch.ops.hipdecode.mla_reduce_decode.default(
            q, kv_buffer, out, lse, cu_seqlens_q, kv_indptr, kv_indices, kv_last_page_lens,
            *partials, q_scale, k_scale, route.batch, route.vec, route.num_splits, sm_scale,
        )  # fmt: skip
    except Exception:
        check_inputs(q, kv_buffer, cu_seqlens_q, kv_indptr, kv_indices, max_seqlen_q)
        batch = cu_seqlens_q.numel() - 1
        check_options(q, o_scratch, lse, kv_last_page_lens, q_scale, k_scale, batch)
        check_choices(scale, num_splits, workspace, None, q.device)
        raise
    return out


def _scratch(
    q: Tensor, rows: int, head_dim_v: int, workspace: Workspace | None
) -> tuple[Tensor, Tensor]:
    if workspace is None and torch.compiler.is_compiling():  # the compiler plans this memory
        shape = (rows, q.shape[1], head_dim_v)
        output = q.new_empty(shape, dtype=torch.float32)
        return output, q.new_empty(shape[:2], dtype=torch.float32)
    if workspace is None:
        workspace = default_workspace(q.device)
    return workspace.partials(rows, q.shape[1], head_dim_v)


def _facts(
    q: Tensor,
    kv_buffer: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    columns: tuple[int, int],
    num_splits: int | None,
) -> tuple[object, ...]:
    """The fields of ReduceShape behind the machine's, in their order."""
    return (
        max(cu_seqlens_q.numel() - 1, 1),
        q.shape[1],
        max_seqlen_q,
        DTYPE_NAMES[q.dtype],
        DTYPE_NAMES[kv_buffer.dtype],
        kv_buffer.shape[1],
        q.shape[2],
        *columns,
        num_splits,
    )


@ops.constant_when_traced
def _prepare(device: torch.device, *facts: object) -> ReduceRoute:
    """Routes, and loads what the route launches."""
    family, units = ops.family_and_units(device)
    names = tuple(ReduceShape.__dataclass_fields__)[2:]
    shape = ReduceShape(
        family=family,
        compute_units=units,
        **dict(zip(names, facts, strict=True)),  # type: ignore[arg-type]
    )
    route = route_mla_reduce(shape)
    if route.batch is not None:
        dims = f"{shape.head_dim_qk}-{shape.kv_lora_rank}-{shape.q_dtype}-{shape.kv_dtype}"
        ops.ensure_kernel(f"mla_decode_split/{dims}-{wanted_rows(family, shape.nhead)}", device)
        form = f"{route.num_splits}-{min(route.batch, route.num_splits)}-{route.vec}"
        ops.ensure_kernel(f"mla_decode_reduce/{form}", device)
    return route
