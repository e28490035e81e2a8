# SPDX-License-Identifier: MIT
"""MLA decode: checks once, routes, launches."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from . import ops
from .arguments import (
    DTYPE_NAMES,
    HEAD_DIM_V,
    OUTPUT_DTYPES,
    check_choices,
    check_inputs,
    check_options,
    check_plan,
)
from .dispatch import DecodeShape, logger, route_mla_decode
from .plan import MlaPlan, plan_mla_decode
from .registry import LEAST_ROWS, wanted_rows
from .shape_log import log_shape
from .shard import KvShard, check_shard
from .short_way import PLAN_MISSING, SCRATCH_MISSING, SERVED, ShortWay, is_watched
from .workspace import SplitScratch, Workspace, default_workspace, split_scratch


def mla_decode(
    q: Tensor,
    kv_buffer: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    *,
    max_seqlen_q: int,
    kv_last_page_lens: Tensor | None = None,
    sm_scale: float | None = None,
    causal: bool = True,
    q_scale: Tensor | None = None,
    kv_scale: Tensor | None = None,
    shard: KvShard | None = None,
    out: Tensor | None = None,
    return_lse: bool = False,
    lse: Tensor | None = None,
    plan: MlaPlan | None = None,
    kv_len: int | None = None,
    route: str | None = None,
    num_splits: int | None = None,
    tile_rows: int | None = None,
    batch_invariant: bool = False,
    workspace: Workspace | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """One decode step of multi-head latent attention over a paged KV cache.

    Nothing synchronises, and nothing is allocated when `out` (and `lse`) and a warm workspace or a
    plan are there. Values of keys that a row may not see never enter it, NaN included.

    Args:
        q: [rows, nhead, head_dim_qk] bf16, fp16 or fp8; last dimension contiguous; nhead 1..128.
            Rows of a request lie together, its newest token last.
        kv_buffer: [num_pages, page_size, 1, head_dim_qk] bf16, fp16 or fp8; V is the first
            head_dim_v columns (512 of 576 or 512). Rows start at multiples of 16 bytes.
        qo_indptr: [batch + 1] int32, rows of each request. Rows past the last come out as zero.
        kv_indptr: [batch + 1] int32, pages of each request. No pages: rows of zero, lse -inf.
        kv_indices: [any] int32, page ids; negative ids are skipped, the tail is ignored.
        max_seqlen_q: query rows of one request at most, 1..16.
        kv_last_page_lens: [batch] int32, tokens in each last page; None for full pages. Ignored
            where page_size is 1.
        sm_scale: softmax scale, 0 or more; default 1 / sqrt(head_dim_qk).
        causal: row i of n sees all keys but the last n - 1 - i. False: all rows see all keys.
        q_scale: fp32, one element above 0 on the device; dequantises an fp8 q, else ignored.
        kv_scale: likewise for an fp8 cache; enters the scores and the output.
        shard: the keys are one rank's share of the requests': causal then masks by the place that
            a key has among those of all ranks. None: all keys are here.
        out: [rows, nhead, head_dim_v] bf16 or fp16, written in place, strides honoured.
        return_lse: also return the log-sum-exp of the scores.
        lse: [rows, nhead] fp32 to write it to.
        plan: from plan_mla_decode() for these lengths; used by the persistent route, which makes
            its own in the workspace otherwise.
        kv_len: average context in tokens as the host knows it, for the route alone. By default
            the capacity of kv_indices; unknown with a plan, a graph capture or torch.compile.
        route: `hk` or `persistent` instead of the table's choice.
        num_splits: KV pieces per request of the hk route.
        tile_rows: query rows that share a block there: 16, 32, 64 or 128 where the target has it.
        batch_invariant: fixed split count: a request's bits do not depend on its neighbours.
        workspace: scratch; by default this thread's own.

    Returns:
        out in q's dtype (bf16 for fp8), or (out, lse) with lse [rows, nhead] fp32, natural log.

    Raises:
        BadArgument: an argument has a wrong type, shape, stride or range; nothing was written.
        UnsupportedShape: no kernel for this shape; lists required, supported and missing.
        BuildError: a kernel that is not cached could not be built.

    Source: DeepSeek-V2 (2024), section 2.1; the split merge is that of Flash-Decoding.
    """
    choice = (kv_len, batch_invariant, route, num_splits, tile_rows)
    # read before the test, which torch.compile knows to be false
    short = ops.short_way
    if torch.compiler.is_dynamo_compiling():
        short = None
    try:
        if out is None or (return_lse and lse is None):
            out, lse = _outputs(q, out, lse, return_lse)
        index = (qo_indptr, kv_indptr, kv_indices, kv_last_page_lens)
        first = (q, kv_buffer, out, lse, *index, q_scale, kv_scale, max_seqlen_q)
        call = (*first, sm_scale, causal, shard)
        if short is None or not _decode_short(short, call, choice, plan, workspace):
            scale = q.shape[2] ** -0.5 if sm_scale is None else sm_scale
            if isinstance(scale, Tensor) or isinstance(max_seqlen_q, Tensor):
                raise TypeError("a number on the device: reading it would synchronise")
            if workspace is not None and not isinstance(workspace, Workspace):
                raise TypeError("workspace")
            _decode(_Step(*first, scale, causal, shard), choice, plan, workspace)
    except Exception:
        # The operators check all they are given, cheaply, before they write. Only when one refuses
        # is it worth the time to find out whose fault it was and to say so by name.
        check_inputs(q, kv_buffer, qo_indptr, kv_indptr, kv_indices, max_seqlen_q)
        check_options(q, out, lse, kv_last_page_lens, q_scale, kv_scale, qo_indptr.numel() - 1)
        check_choices(sm_scale, num_splits, workspace, plan, q.device, tile_rows)
        batch = qo_indptr.numel() - 1
        check_shard(shard, batch, q.device, causal=causal, max_seqlen_q=max_seqlen_q)
        raise
    return (out, lse) if return_lse and lse is not None else out


_routes: dict[tuple[object, ...], tuple[str, int, int]] = {}
_MAX_ROUTES = 8192


class _Step(NamedTuple):
    """One checked call; fields as the arguments of mla_decode."""

    q: Tensor
    kv_buffer: Tensor
    out: Tensor
    lse: Tensor | None
    qo_indptr: Tensor
    kv_indptr: Tensor
    kv_indices: Tensor
    kv_last_page_lens: Tensor | None
    q_scale: Tensor | None
    kv_scale: Tensor | None
    max_seqlen_q: int
    sm_scale: float | None
    causal: bool
    shard: KvShard | None

    @property
    def trims(self) -> bool:
        """Whether a plan may leave out keys that only later tiles of a request see."""
        return self.causal and (self.shard is None or self.max_seqlen_q == 1)

    @property
    def batch(self) -> int:
        return self.qo_indptr.numel() - 1


def _outputs(
    q: Tensor, out: Tensor | None, lse: Tensor | None, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    rows, nhead, head_dim_qk = q.shape
    if out is None:
        dtype = q.dtype if q.dtype in OUTPUT_DTYPES else torch.bfloat16
        head_dim_v = HEAD_DIM_V.get(head_dim_qk, head_dim_qk)
        out = torch.empty((rows, nhead, head_dim_v), dtype=dtype, device=q.device)
    if lse is None and return_lse:
        lse = torch.empty((rows, nhead), dtype=torch.float32, device=q.device)
    return out, lse


def _decode_short(
    short: ShortWay,
    call: tuple[object, ...],
    choice: tuple[object, ...],
    plan: MlaPlan | None,
    workspace: Workspace | None,
) -> bool:
    """Launches a step like an earlier one; False where it is not, or the long way must see it."""
    if is_watched() or not (workspace is None or isinstance(workspace, Workspace)):
        return False
    planned, planning = plan is not None, None
    scratch = None if workspace is None else workspace.packed(short.pack_scratch)
    if not planned and workspace is not None and workspace.last_plan is not None:
        plan, planning = workspace.last_plan, workspace.last_plan.planning
    packed = plan.packed(short.pack_plan) if isinstance(plan, MlaPlan) else None
    outcome = short.decode(call, choice, scratch, packed, planned, planning)
    if outcome == SCRATCH_MISSING and workspace is None:
        scratch = default_workspace(_Step._make(call).q.device).packed(short.pack_scratch)
        outcome = short.decode(call, choice, scratch, None, False, None)
    elif outcome == PLAN_MISSING and not planned:
        packed = _own_plan(_Step._make(call), workspace).packed(short.pack_plan)
        outcome = short.decode(call, choice, scratch, packed, False, None)
    if outcome != SERVED:
        return False
    if logger.isEnabledFor(logging.INFO):
        step = _Step._make(call)
        _log(step, _facts(step, _known(step, choice, planned)), planned=planned)
    return True


def _decode(
    step: _Step, choice: tuple[object, ...], plan: MlaPlan | None, workspace: Workspace | None
) -> None:
    """Routes a step and launches it."""
    compiling = torch.compiler.is_compiling()
    if compiling:  # the call will be replayed: lengths seen now mean nothing
        chosen = _prepare(step.q.device, *_facts(step, choice))
    else:
        chosen = _remembered(step, choice, plan is not None)
    if step.q.shape[0] == 0:
        return
    route, splits, tile_rows = chosen
    if route == "hk":
        _decode_hk(step, splits, tile_rows, workspace)
    else:
        _decode_persistent(step, plan, workspace)
    if not compiling and ops.short_way is not None:
        ops.short_way.learn(step, choice, None, None, plan is not None, None, *chosen)


def _remembered(step: _Step, choice: tuple[object, ...], planned: bool) -> tuple[str, int, int]:
    """As _prepare(), known again by what tensors answer fast: spelling the facts out takes 4 us."""
    q, kv_buffer = step.q, step.kv_buffer
    choice = _known(step, choice, planned)
    key = (
        q.device, q.shape, q.dtype, kv_buffer.shape, kv_buffer.dtype, step.out.shape,
        step.qo_indptr.shape, step.max_seqlen_q, choice, None if q.is_cuda else ops.cpu_state(),
    )  # fmt: skip
    found = _routes.get(key)
    if found is None:
        if len(_routes) >= _MAX_ROUTES:
            _routes.clear()
        found = _routes[key] = _prepare(q.device, *_facts(step, choice))
    if logger.isEnabledFor(logging.INFO):
        _log(step, _facts(step, choice), planned=planned)
    return found


def _known(step: _Step, choice: tuple[object, ...], planned: bool) -> tuple[object, ...]:
    """The choice with the average context, where the host knows at least the capacity."""
    if choice[0] is not None or planned:
        return choice
    # in a graph the lengths of the capture mean nothing to its replays
    if step.q.is_cuda and torch.cuda.is_current_stream_capturing():
        return choice
    capacity = step.kv_indices.numel() * step.kv_buffer.shape[1]
    return -(-capacity // max(step.batch, 1)), *choice[1:]


def _decode_hk(step: _Step, num_splits: int, tile_rows: int, workspace: Workspace | None) -> None:
    torch.ops.hipdecode.mla_decode_hk.default(
        *step[:8],
        *_split_scratch(step, num_splits, workspace),
        *step[8:11],
        num_splits,
        *step[11:13],
        tile_rows,
        *(step.shard or ()),
    )


def _decode_persistent(step: _Step, plan: MlaPlan | None, workspace: Workspace | None) -> None:
    if plan is None:
        plan = _own_plan(step, workspace)
    nhead, head_dim_v = step.out.shape[1:]
    page_size = step.kv_buffer.shape[1]
    check_plan(plan, step.batch, nhead, head_dim_v, step.max_seqlen_q, page_size, step.trims)
    torch.ops.hipdecode.mla_decode_persistent.default(
        *step[:8],
        plan.work_indptr,
        plan.work_info_set,
        plan.partial_output,
        plan.partial_lse,
        *step[8:13],
        *(step.shard or ()),
    )
    if plan.clusters > 1:  # one cluster cuts nothing, so there is nothing to merge
        torch.ops.hipdecode.mla_reduce.default(
            plan.partial_output,
            plan.partial_lse,
            plan.reduce_indptr,
            plan.reduce_final_map,
            plan.reduce_partial_map,
            step.out,
            step.lse,
            step.max_seqlen_q,
            0,
        )


def _facts(step: _Step, choice: tuple[object, ...]) -> tuple[object, ...]:
    """What the route may depend on: host integers and words, in the order of _shape()."""
    _, nhead, head_dim_qk = step.q.shape
    return (
        *ops.family_and_units(step.q.device),
        max(step.batch, 1),
        nhead,
        step.max_seqlen_q,
        DTYPE_NAMES[step.q.dtype],
        DTYPE_NAMES[step.kv_buffer.dtype],
        step.kv_buffer.shape[1],
        head_dim_qk,
        step.out.shape[2],
        *choice,
    )


def _log(step: _Step, facts: tuple[object, ...], *, planned: bool) -> None:
    shape = _shape(*facts)
    log_shape(
        shape,
        route_mla_decode(shape),
        q_shape=step.q.shape,
        kv_shape=step.kv_buffer.shape,
        o_shape=step.out.shape,
        total_kv=step.kv_indices.numel(),
        planned=planned,
    )


_FACTS = (
    "family", "compute_units", "batch", "nhead", "q_len", "q_dtype", "kv_dtype", "page_size",
    "head_dim_qk", "head_dim_v", "kv_len", "batch_invariant", "route", "num_splits", "tile_rows",
)  # fmt: skip


def _shape(*facts: object) -> DecodeShape:
    return DecodeShape(**dict(zip(_FACTS, facts, strict=True)))  # type: ignore[arg-type]


@ops.constant_when_traced
def _prepare(device: torch.device, *facts: object) -> tuple[str, int, int]:
    """Routes and loads what the route launches."""
    shape = _shape(*facts)
    route = route_mla_decode(shape)
    dims = f"{shape.head_dim_qk}-{shape.head_dim_v}-{shape.q_dtype}-{shape.kv_dtype}"
    rows = wanted_rows(shape.family, shape.nhead * shape.q_len, route.tile_rows)
    ops.ensure_kernel(f"mla_decode_{route.route}/{dims}-{rows}", device)
    if route.route == "persistent":
        ops.ensure_kernel("mla_plan", device)
        ops.ensure_kernel("mla_reduce", device)
    return route.route, route.num_splits or 1, route.tile_rows or 0


def _split_scratch(
    step: _Step, num_splits: int, workspace: Workspace | None
) -> SplitScratch | tuple[None, None, None]:
    rows, nhead, head_dim_v = step.out.shape
    counters = step.batch * -(-step.max_seqlen_q * nhead // LEAST_ROWS)
    return split_scratch(step.q, (rows, nhead, head_dim_v), num_splits, counters, workspace)


def _own_plan(step: _Step, workspace: Workspace | None) -> MlaPlan:
    """Plans in the workspace: the caller gave no plan, so every call makes the schedule anew."""
    kept = None
    _, nhead, head_dim_v = step.out.shape
    _, units = ops.family_and_units(step.q.device)
    page_size = step.kv_buffer.shape[1]
    key = (step.batch, nhead, step.max_seqlen_q, head_dim_v, units, page_size, step.trims)
    if workspace is None and not torch.compiler.is_compiling():
        workspace = default_workspace(step.q.device)
    if workspace is not None:
        kept = workspace.plan(key)
    plan = plan_mla_decode(
        step.qo_indptr,
        step.kv_indptr,
        nhead=nhead,
        max_seqlen_q=step.max_seqlen_q,
        page_size=page_size,
        kv_last_page_lens=step.kv_last_page_lens,
        causal=step.trims,
        head_dim_v=head_dim_v,
        out=kept,
        workspace=workspace,
    )
    if workspace is not None:
        if kept is None:
            workspace.keep_plan(key, plan)
        workspace.last_plan = plan
    return plan
