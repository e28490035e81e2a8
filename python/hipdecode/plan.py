# SPDX-License-Identifier: MIT
"""Plans of persistent MLA decodes: the work list, its sizes, and the call that fills it.

The schedule is made on the device from the lengths there and from host integers, never a dtype.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from . import ops
from .errors import BadArgument, WorkspaceError

TILE_ROWS = 128
"""(query token x head) rows of one work at most, on every target and for every dtype."""

MetadataSize = tuple[int | tuple[int, int], torch.dtype]
_Six = tuple[MetadataSize, MetadataSize, MetadataSize, MetadataSize, MetadataSize, MetadataSize]
_Buffers = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


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

    @property
    def clusters(self) -> int:
        """Persistent workers that the works are dealt to."""
        return self.work_indptr.numel() - 1


class _Bounds(NamedTuple):
    """What no schedule exceeds, whatever the lengths."""

    clusters: int
    tiles: int
    works: int
    partials: int
    partial_rows: int


def _bounds(
    batch: int,
    max_seqlen_q: int,
    nhead: int,
    *,
    is_sparse: bool,
    intra_batch_mode: bool,
    num_kv_splits: int,
    max_split_per_batch: int,
    clusters: int,
) -> _Bounds:
    """The proof is in `mla_metadata_info`."""
    if is_sparse:
        batch, max_seqlen_q = batch * max_seqlen_q, 1
    rows_cap = max(TILE_ROWS // nhead, 1)
    tiles = batch * -(-max_seqlen_q // rows_cap)
    tile_rows = min(rows_cap, max_seqlen_q)
    if intra_batch_mode:
        cuts = num_kv_splits if max_split_per_batch < 0 else min(num_kv_splits, max_split_per_batch)
        works = min(tiles * cuts, clusters + tiles - 1)
        partials = works
        split_tiles = min(tiles, clusters - 1)
        pieces = min(split_tiles * cuts, clusters + split_tiles - 1)
    else:
        budget = clusters if max_split_per_batch < 0 else min(clusters, max_split_per_batch * batch)
        cuts = max(budget - 1, 0)
        works = tiles + cuts
        partials = pieces = cuts + min(tiles, cuts)
    return _Bounds(
        clusters=clusters,
        tiles=max(tiles, 1),
        works=max(works, 1),
        partials=max(partials, 1),
        partial_rows=max(pieces * tile_rows, 1),
    )


def _check_int(name: str, value: int, low: int, high: int = 2**31 - 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadArgument(f"{name}: expected an int from {low} to {high}, got {value!r}")


def _check_max_split(value: int) -> None:
    if value != -1:
        _check_int("max_split_per_batch (-1 for no limit)", value, 1)


def mla_metadata_info(
    batch_size: int,
    max_seqlen_qo: int,
    num_head_qo: int,
    q_dtype: torch.dtype,
    kv_dtype: torch.dtype,
    *,
    is_sparse: bool = False,
    fast_mode: bool = True,
    num_kv_splits: int = 32,
    intra_batch_mode: bool = False,
    max_split_per_batch: int = -1,
    compute_units: int | None = None,
) -> _Six:
    """Sizes of the six metadata tensors, enough for every batch within the arguments.

    Buffers of these sizes serve any smaller batch, any lengths and ragged query lengths.

    Let C be the clusters, R = max(128 // heads, 1) the query rows of a tile and
    N = batch * ceil(max_seqlen_qo / R) the tiles (sparse: one per query token, R = 1). A request
    of q rows has ceil(q / R) tiles of at most min(R, max_seqlen_qo) rows, so N bounds any batch.

    Balanced planner: let b = min(C, max_split_per_batch * batch), or C without that limit. A cut
    ends its cluster, and every cluster that is ended advances the line of blocks by at least its
    share ceil(total / b), so cluster b at the latest reaches the end of the line: at most b - 1
    cuts. Each cut adds one work to the N of uncut tiles: works <= N + b - 1. A tile with k cuts
    has k + 1 partials, uncut ones have none: partials <= (b - 1) + min(N, b - 1).

    Intra-batch planner: n <= N tiles get s <= min(num_kv_splits, max_split_per_batch, ceil(C / n))
    works each, and n * ceil(C / n) <= C + n - 1, so works <= min(N * that, C + N - 1). An uncut
    tile is one partial of -1, so partials = works. Tiles are cut only where n < C.

    The partial buffers need min(R, max_seqlen_qo) rows per partial that is not -1: for the balanced
    planner at most 2 * (C - 1) * 128 rows of one head, whatever the batch, heads and context.

    Args:
        batch_size: requests at most.
        max_seqlen_qo: query rows of one request at most.
        num_head_qo: query heads, 1 to 128.
        q_dtype: accepted as AITER's callers pass it; sizes do not depend on it.
        kv_dtype: as q_dtype.
        is_sparse: each query token is planned as a request of its own.
        fast_mode: size for the balanced planner, also where neither mode is set.
        num_kv_splits: works per tile at most, intra-batch planner only.
        intra_batch_mode: size for the intra-batch planner; with `fast_mode` for either of them.
        max_split_per_batch: -1, or the number of cuts allowed per request on average.
        compute_units: clusters; by default those of the current GPU, else torch's CPU threads.

    Returns:
        (size, dtype) of work_metadata_ptrs, work_indptr, work_info_set, reduce_indptr,
        reduce_final_map, reduce_partial_map; a size is an int or a pair.

    Raises:
        BadArgument: an argument is out of its range.

    Source: AITER, get_mla_metadata_info_v1 (order and meaning; the bounds are ours).
    """
    _check_int("batch_size", batch_size, 0)
    _check_int("max_seqlen_qo", max_seqlen_qo, 1)
    _check_int("num_head_qo", num_head_qo, 1, TILE_ROWS)
    _check_int("num_kv_splits", num_kv_splits, 1)
    _check_max_split(max_split_per_batch)
    for name, dtype in (("q_dtype", q_dtype), ("kv_dtype", kv_dtype)):
        if not isinstance(dtype, torch.dtype):
            raise BadArgument(f"{name}: expected a torch.dtype, got {dtype!r}")
    if compute_units is None:
        compute_units = ops.compute_units("cuda" if torch.cuda.is_available() else "cpu")
    _check_int("compute_units", compute_units, 1)

    bounds = partial(
        _bounds,
        batch_size,
        max_seqlen_qo,
        num_head_qo,
        is_sparse=is_sparse,
        num_kv_splits=num_kv_splits,
        max_split_per_batch=max_split_per_batch,
        clusters=compute_units,
    )
    need = bounds(intra_batch_mode=intra_batch_mode)
    if intra_batch_mode and fast_mode:
        balanced = bounds(intra_batch_mode=False)
        need = _Bounds(*(max(pair) for pair in zip(need, balanced, strict=True)))
    return _sizes(need)


def _sizes(need: _Bounds) -> _Six:
    return (
        (2, torch.uint64),
        (need.clusters + 1, torch.int32),
        ((need.works, 8), torch.int32),
        (need.tiles + 1, torch.int32),
        ((need.tiles, 2), torch.int32),
        (need.partials, torch.int32),
    )


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


def _clusters(compute_units: int | None, out: MlaPlan | None, device: torch.device) -> int:
    if compute_units is None:
        return ops.compute_units(device) if out is None else out.clusters
    _check_int("compute_units", compute_units, 1)
    if out is not None and compute_units != out.clusters:
        raise WorkspaceError(f"compute_units: expected out's {out.clusters}, got {compute_units}")
    return compute_units


def _allocate(need: _Bounds, nhead: int, head_dim_v: int, device: torch.device) -> _Buffers:
    ptrs, work_indptr, info, reduce_indptr, final_map, partial_map = (
        torch.empty(size, dtype=dtype, device=device) for size, dtype in _sizes(need)
    )
    output = torch.empty((need.partial_rows, nhead, head_dim_v), dtype=torch.float32, device=device)
    lse = torch.empty(output.shape[:2], dtype=torch.float32, device=device)
    return ptrs, work_indptr, info, reduce_indptr, final_map, partial_map, output, lse


def _reuse(
    out: MlaPlan, need: _Bounds, nhead: int, head_dim_v: int, device: torch.device
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
        causal: the decode will mask causally; lets a work leave out keys no row of it sees.
        compute_units: clusters that share the work; by default the device's units (CPU: threads).
        max_split_per_batch: -1, or the number of cuts allowed per request on average.
        intra_batch_mode: cut every tile into equally many works instead of balancing clusters.
        num_kv_splits: works per tile at most, intra-batch mode only.
        kv_granularity: pages; KV is cut at multiples of it. Default: 16 pages, 64 tokens at most.
        uni_seqlen_qo: 1 or more where every request has that many query rows; else -1.
        topk: -1, or the keys per query token at most, with kv_indices laid out [rows, topk].
        head_dim_v: columns of the partial outputs.
        out: plan whose buffers are filled anew.

    Returns:
        The plan; shares every buffer with `out` where that is given.

    Raises:
        BadArgument: an argument has a wrong type, shape, device or range.
        WorkspaceError: `out` is too small or of another shape.
    """
    _check_int("nhead", nhead, 1, TILE_ROWS)
    _check_int("max_seqlen_q", max_seqlen_q, 1)
    _check_int("page_size", page_size, 1)
    _check_int("num_kv_splits", num_kv_splits, 1)
    _check_int("head_dim_v", head_dim_v, 1)
    _check_int("topk (-1 for dense)", topk, -1)
    _check_max_split(max_split_per_batch)
    if uni_seqlen_qo != -1:
        _check_int("uni_seqlen_qo (-1 for ragged)", uni_seqlen_qo, 1, max_seqlen_q)
    if kv_granularity is None:
        kv_granularity = max(min(16, 64 // page_size), 1)
    _check_int("kv_granularity", kv_granularity, 1)
    batch, device = _check_lengths(qo_indptr, kv_indptr, kv_last_page_lens)
    need = _bounds(
        batch,
        max_seqlen_q,
        nhead,
        is_sparse=topk >= 0,
        intra_batch_mode=intra_batch_mode,
        num_kv_splits=num_kv_splits,
        max_split_per_batch=max_split_per_batch,
        clusters=_clusters(compute_units, out, device),
    )
    facts = (batch, nhead, max_seqlen_q, page_size, causal, intra_batch_mode, num_kv_splits)
    if out is None:
        plan = MlaPlan(*_allocate(need, nhead, head_dim_v, device), *facts)
    else:
        plan = MlaPlan(*_reuse(out, need, nhead, head_dim_v, device), *facts)
    ops.ensure_kernel("mla_plan", device)
    torch.ops.hipdecode.mla_plan(
        qo_indptr,
        kv_indptr,
        kv_last_page_lens,
        plan.work_metadata_ptrs,
        plan.work_info_set,
        plan.work_indptr,
        plan.reduce_indptr,
        plan.reduce_final_map,
        plan.reduce_partial_map,
        nhead,
        page_size,
        kv_granularity,
        max_seqlen_q,
        uni_seqlen_qo,
        topk,
        max_split_per_batch,
        causal,
        intra_batch_mode,
        num_kv_splits,
    )
    return plan
