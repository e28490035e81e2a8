# SPDX-License-Identifier: MIT
"""Plans of persistent MLA decodes: the work list, its sizes, and the call that fills it.

The schedule is made on the device from the lengths there and from host integers, never a dtype.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from . import ops
from .errors import BadArgument, WorkspaceError
from .hk_splits import HOPPER_ROWS
from .plan_sizes import TILE_ROWS, Bounds, bounds, check_int, check_max_split, sizes
from .short_way import SERVED, is_watched

_Buffers = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class HoldsPartials(Protocol):
    """A Workspace, as far as plans know it."""

    def partials(self, rows: int, nhead: int, head_dim_v: int) -> tuple[Tensor, Tensor]:
        """[rows, nhead, head_dim_v] and [rows, nhead] fp32, the latter natural logarithms."""


@dataclass(frozen=True, slots=True, eq=False)
class MlaPlan:
    """A work list and the scratch of the decode that walks it; made by `plan_mla_decode`.

    Of the first six only what `work_indptr` and `reduce_indptr` point at is meaningful.

    Attributes:
        work_metadata_ptrs: [2] uint64, addresses of `work_indptr` and `work_info_set`.
        work_indptr: [clusters + 1] int32, works of each cluster.
        work_info_set: [max_works, 8] int32, records as in `csrc/abi/work_item.h`.
        reduce_indptr: [max_tiles + 1] int32, partials of each tile of query rows.
        reduce_final_map: [max_tiles, 2] int32, output rows [begin, end) of each tile.
        reduce_partial_map: [max_partials] int32, first partial row of each partial.
        partial_output: [max_partial_rows, nhead, head_dim_v] fp32.
        partial_lse: [max_partial_rows, nhead] fp32, natural log.
        batch: requests of the planned step.
        nhead: query heads.
        max_seqlen_q: query rows of one request at most.
        page_size: tokens per page.
        causal: keys that causal masking hides from a whole tile may be missing from its works.
        intra_batch_mode: which of the two planners made it.
        num_kv_splits: works per tile at most (intra-batch mode).
    """

    work_metadata_ptrs: Tensor
    work_indptr: Tensor
    work_info_set: Tensor
    reduce_indptr: Tensor
    reduce_final_map: Tensor
    reduce_partial_map: Tensor
    partial_output: Tensor
    partial_lse: Tensor
    batch: int
    nhead: int
    max_seqlen_q: int
    page_size: int
    causal: bool
    intra_batch_mode: bool
    num_kv_splits: int
    _kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def packed(self, pack: Callable[..., bytes | None]) -> bytes | None:
        """What the short way of a decode needs of the plan, made once; `pack` is its pack_plan."""
        if "decode" not in self._kept:
            lists = (self.work_indptr, self.work_info_set, self.reduce_indptr)
            maps = (self.reduce_final_map, self.reduce_partial_map)
            partials = (self.partial_output, self.partial_lse)
            step = (self.batch, self.nhead, self.max_seqlen_q, self.page_size, self.causal)
            self._kept["decode"] = pack(*lists, *maps, *partials, *step)
        return self._kept["decode"]  # type: ignore[no-any-return]

    def planned_before(self, choices: tuple[object, ...]) -> bytes | None:
        """The packed arguments of the last mla_plan into this plan, if its choices were these."""
        kept = self._kept.get("plan")
        return kept[1] if kept and kept[0] == choices else None

    @property
    def planning(self) -> bytes | None:
        """The packed arguments of the last mla_plan into this plan."""
        kept = self._kept.get("plan")
        return kept[1] if kept else None

    def keep_planning(self, choices: tuple[object, ...], packed: bytes | None) -> None:
        """Keeps what `planned_before` returns."""
        self._kept["plan"] = (choices, packed)

    @property
    def facts(self) -> tuple[int, ...]:
        """What it was made for, in the order of the fields."""
        step = (self.batch, self.nhead, self.max_seqlen_q, self.page_size, self.causal)
        return *step, self.intra_batch_mode, self.num_kv_splits

    @property
    def clusters(self) -> int:
        """Persistent workers that the works are dealt to."""
        return self.work_indptr.numel() - 1


def _check_index(name: str, tensor: Tensor, least: int, device: torch.device) -> None:
    if not isinstance(tensor, Tensor):
        raise BadArgument(f"{name}: expected an int32 tensor, got {type(tensor).__name__}")
    sized = tensor.dim() == 1 and tensor.numel() >= least
    if tensor.dtype != torch.int32 or not sized or not tensor.is_contiguous():
        raise BadArgument(
            f"{name}: expected a contiguous int32 tensor of at least {least} elements, got "
            f"{tensor.dtype} {list(tensor.shape)} with strides {list(tensor.stride())}"
        )
    if tensor.device != device:
        raise BadArgument(f"{name}: expected a tensor on {device}, got one on {tensor.device}")


def _check_lengths(
    qo_indptr: Tensor, kv_indptr: Tensor, kv_last_page_lens: Tensor | None
) -> tuple[int, torch.device]:
    # qo_indptr says how many requests there are; callers pass the others at full capacity
    device = qo_indptr.device if isinstance(qo_indptr, Tensor) else torch.device("cpu")
    _check_index("qo_indptr", qo_indptr, 1, device)
    batch = qo_indptr.numel() - 1
    _check_index("kv_indptr", kv_indptr, batch + 1, device)
    if kv_last_page_lens is not None:
        _check_index("kv_last_page_lens", kv_last_page_lens, batch, device)
    return batch, device


def _clusters(
    compute_units: int | None, out: MlaPlan | None, device: torch.device, rows: int
) -> int:
    if compute_units is None:
        return _default_clusters(device, rows) if out is None else out.clusters
    check_int("compute_units", compute_units, 1)
    if out is not None and compute_units != out.clusters:
        raise WorkspaceError(f"compute_units: expected out's {out.clusters}, got {compute_units}")
    return compute_units


def _default_clusters(device: torch.device, rows: int) -> int:
    """Return how many clusters of a decode of so many (query token x head) rows run at once."""
    family, units = ops.family_and_units(device)
    blocks = -(-min(rows, TILE_ROWS) // HOPPER_ROWS) if family == "sm_90" else 1
    return max(units // blocks, 1)


def _allocate(
    need: Bounds, nhead: int, head_dim_v: int, device: torch.device, workspace: HoldsPartials | None
) -> _Buffers:
    ptrs, work_indptr, info, reduce_indptr, final_map, partial_map = (
        torch.empty(size, dtype=dtype, device=device) for size, dtype in sizes(need)
    )
    final_map.zero_()  # mla_reduce asks for the rows of a tile before it knows if there is one
    if workspace is not None:
        output, lse = workspace.partials(need.partial_rows, nhead, head_dim_v)
    else:
        shape = (need.partial_rows, nhead, head_dim_v)
        output = torch.empty(shape, dtype=torch.float32, device=device)
        lse = torch.empty(shape[:2], dtype=torch.float32, device=device)
    return ptrs, work_indptr, info, reduce_indptr, final_map, partial_map, output, lse


def _reuse(
    out: MlaPlan, need: Bounds, nhead: int, head_dim_v: int, device: torch.device
) -> _Buffers:
    if out.work_indptr.device != device:
        raise WorkspaceError(f"out: expected a plan on {device}, got {out.work_indptr.device}")
    shape = list(out.partial_output.shape)
    if shape[1:] != [nhead, head_dim_v]:
        wanted = f"[rows, {nhead}, {head_dim_v}]"
        raise WorkspaceError(f"out.partial_output: expected {wanted}, got {shape}; plan anew")
    for name, have, want in (
        ("work_info_set", out.work_info_set.shape[0], need.works),
        ("reduce_final_map", out.reduce_final_map.shape[0], need.tiles),
        ("reduce_indptr", out.reduce_indptr.numel(), need.tiles + 1),
        ("reduce_partial_map", out.reduce_partial_map.numel(), need.partials),
        ("partial_output", out.partial_output.shape[0], need.partial_rows),
    ):
        if have < want:
            raise WorkspaceError(f"out.{name}: expected {want} or more, got {have}; plan anew")
    metadata = (out.work_metadata_ptrs, out.work_indptr, out.work_info_set)
    reduce = (out.reduce_indptr, out.reduce_final_map, out.reduce_partial_map)
    return *metadata, *reduce, out.partial_output, out.partial_lse


def plan_mla_decode(
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    *,
    nhead: int,
    max_seqlen_q: int,
    page_size: int = 1,
    kv_last_page_lens: Tensor | None = None,
    causal: bool = True,
    compute_units: int | None = None,
    max_split_per_batch: int = -1,
    intra_batch_mode: bool = False,
    num_kv_splits: int = 32,
    kv_granularity: int | None = None,
    uni_seqlen_qo: int = -1,
    topk: int = -1,
    head_dim_v: int = 512,
    out: MlaPlan | None = None,
    workspace: HoldsPartials | None = None,
) -> MlaPlan:
    """Plans one decode step on the device, without reading a length on the host.

    With `out` nothing is allocated, so the call can be captured in a graph and replayed on new
    lengths. Sizes and the bound of the scratch are those of `mla_metadata_info`.

    Args:
        qo_indptr: [batch + 1] int32, query rows; requests of more than max_seqlen_q rows are cut.
        kv_indptr: [batch + 1] int32, pages; a request of 0 pages gets a work that zeroes its rows.
        nhead: query heads, 1 to 128.
        max_seqlen_q: query rows of one request at most.
        page_size: tokens per page.
        kv_last_page_lens: [batch] int32, tokens in the last page; not read where page_size is 1.
        causal: the decode will mask causally; lets a work leave out keys no row of it sees. False
            where the keys are a rank's share.
        compute_units: clusters that share the work; by default as many as the device runs at once:
            its units (CPU: threads), on sm_90 half of them for more than 64 rows of nhead x
            max_seqlen_q, where two blocks share each work.
        max_split_per_batch: -1, or the number of cuts allowed per request on average.
        intra_batch_mode: cut every tile into equally many works instead of balancing clusters.
        num_kv_splits: works per tile at most, intra-batch mode only.
        kv_granularity: pages; KV is cut at multiples of it. Default: 16 pages, 64 tokens at most.
        uni_seqlen_qo: 1 or more where every request has that many query rows; else -1.
        topk: -1, or the keys per query token at most, with kv_indices laid out [rows, topk].
        head_dim_v: columns of the partial outputs.
        out: plan whose buffers are filled anew.
        workspace: a Workspace that holds the partial results of a new plan; all plans made with
            it share them: their decodes must not run at once. By default a plan has its own.

    Returns:
        The plan; shares every buffer with `out` where that is given.

    Raises:
        BadArgument: an argument has a wrong type, shape, device or range.
        WorkspaceError: `out` is too small or of another shape, or `workspace` may not grow.
    """
    choices = (
        nhead, max_seqlen_q, page_size, causal, compute_units, max_split_per_batch,
        intra_batch_mode, num_kv_splits, kv_granularity, uni_seqlen_qo, topk, head_dim_v,
    )  # fmt: skip
    alone = not torch.compiler.is_dynamo_compiling() and not is_watched()
    short = ops.short_way
    if alone and short is not None and isinstance(out, MlaPlan):
        before = out.planned_before(choices)
        if short.plan(before, qo_indptr, kv_indptr, kv_last_page_lens) == SERVED:
            return out
    check_int("nhead", nhead, 1, TILE_ROWS)
    check_int("max_seqlen_q", max_seqlen_q, 1)
    check_int("page_size", page_size, 1)
    check_int("num_kv_splits", num_kv_splits, 1)
    check_int("head_dim_v", head_dim_v, 1)
    check_int("topk (-1 for dense)", topk, -1)
    check_max_split(max_split_per_batch)
    if uni_seqlen_qo != -1:
        check_int("uni_seqlen_qo (-1 for ragged)", uni_seqlen_qo, 1, max_seqlen_q)
    if kv_granularity is None:
        kv_granularity = max(min(16, 64 // page_size), 1)
    check_int("kv_granularity", kv_granularity, 1)
    batch, device = _check_lengths(qo_indptr, kv_indptr, kv_last_page_lens)
    need = bounds(
        batch,
        max_seqlen_q,
        nhead,
        is_sparse=topk >= 0,
        intra_batch_mode=intra_batch_mode,
        num_kv_splits=num_kv_splits,
        max_split_per_batch=max_split_per_batch,
        clusters=_clusters(compute_units, out, device, nhead * max_seqlen_q),
    )
    facts = (batch, nhead, max_seqlen_q, page_size, causal, intra_batch_mode, num_kv_splits)
    if out is None:
        plan = MlaPlan(*_allocate(need, nhead, head_dim_v, device, workspace), *facts)
    else:
        buffers = _reuse(out, need, nhead, head_dim_v, device)
        plan = out if out.facts == facts else MlaPlan(*buffers, *facts)
    ops.ensure_kernel("mla_plan", device)
    lists = (plan.work_metadata_ptrs, plan.work_info_set, plan.work_indptr)
    maps = (plan.reduce_indptr, plan.reduce_final_map, plan.reduce_partial_map)
    arguments = (
        qo_indptr, kv_indptr, kv_last_page_lens, *lists, *maps, nhead, page_size, kv_granularity,
        max_seqlen_q, uni_seqlen_qo, topk, max_split_per_batch, causal, intra_batch_mode,
        num_kv_splits,
    )  # fmt: skip
    torch.ops.hipdecode.mla_plan(*arguments)
    if alone and ops.short_way is not None:
        plan.keep_planning(choices, ops.short_way.pack_planning(*arguments))
    return plan
