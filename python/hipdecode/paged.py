# SPDX-License-Identifier: MIT
"""Paged attention with grouped queries: one decode step over a cache in chunks of 16 bytes."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops, registry
from .arguments import DTYPE_NAMES, check_choices, describe
from .errors import BadArgument, HipdecodeError, UnsupportedShape
from .paged_route import FP8_NAMES, PagedRoute, PagedShape, route_paged_attention
from .registry import LEAST_ROWS
from .workspace import Workspace, split_scratch

logger = logging.getLogger("hipdecode.dispatch")

HEAD_DIMS = (128, 64)
_FN, _FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
_FNUZ_FAMILY = "gfx942"

_Choice = tuple[bool, int, int, bool]
"""The gate holds, num_splits, tile_rows, uint8 is e4m3fnuz: constants to torch.compile."""
_routes: dict[object, _Choice] = {}
_MAX_ROUTES = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedOptions:
    """What an entry knows beside the tensors; it may influence the route.

    Attributes:
        max_seqlen_q: query tokens of a request, at most.
        max_seq_len: tokens of a request at most, as the host knows it; None: the table's capacity.
        num_splits: the caller's own.
        q_scale: the caller names a scale for queries.
        route: the caller's own choice, `mtp` or `general`.
    """

    max_seqlen_q: int = 1
    max_seq_len: int | None = None
    num_splits: int | None = None
    q_scale: bool = False
    route: str | None = None


_PLAIN = PagedOptions()


def paged_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    *,
    options: PagedOptions | None = None,
    qo_indptr: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    sm_scale: float | None = None,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out_scale: Tensor | None = None,
    lse: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """One decode step of grouped-query attention over a paged cache.

    Query token t of a request of n tokens sees the keys before context_len - n + t + 1. Scales
    multiply scores and weights in fp32; nothing is rounded to fp8 on the way. Nothing synchronises,
    and nothing is allocated when `out` and a warm workspace are there.

    Args:
        q: [rows, nhead, head_dim] bf16 or fp16, last dimension contiguous; head_dim 64 or 128,
            nhead any multiple of nhead_kv.
        key_cache: [num_blocks, nhead_kv, head_dim / x, block_size, x] with x = 16 / element size,
            of q's dtype or fp8 (uint8 is the machine's own); block_size a multiple of 16. Strides
            of blocks and heads are honoured.
        value_cache: [num_blocks, nhead_kv, block_size / x, head_dim, x], or [num_blocks, nhead_kv,
            head_dim, block_size], of the same dtype.
        block_tables: [batch, max_blocks] int32 block ids, rows apart as they are; ids that name no
            block, such as -1, are skipped.
        context_lens: [batch] int32 tokens of each request, those of this step included. 0: zeros.
        options: what the host knows, see PagedOptions.
        qo_indptr: [batch + 1] int32, where each request's rows begin; without it each has
            max_seqlen_q. Rows of nobody are zeros.
        k_scale: fp32 dequantisation scale of fp8 keys: one element, or one for each token and kv
            head in the blocks' order: [num_blocks, nhead_kv, block_size(, 1)].
        v_scale: the same of values; both have one form.
        sm_scale: softmax scale, 0 or more; default 1 / sqrt(head_dim).
        out: [rows, nhead, head_dim] bf16, fp16 or fp8, written in place, strides honoured.
        out_dtype: of the output where `out` is not given; default that of q.
        out_scale: [1] fp32; the output is divided by it.
        lse: [rows, nhead] fp32 for the log-sum-exp of the scores, natural log.
        workspace: scratch; by default this thread's own.

    Returns:
        out. Rows that see no key are zeros, their lse -inf.

    Raises:
        BadArgument: an argument has a wrong type, shape, stride or range; nothing was written.
        UnsupportedShape: no kernel for these dtypes and head_dim.
        BuildError: a kernel that is not cached could not be built.

    Source: PagedAttention (Kwon et al., 2023); the split merge is that of Flash-Decoding.
    """
    options = options or _PLAIN
    if workspace is not None or not (sm_scale is None or type(sm_scale) is float):
        check_choices(sm_scale, None, workspace)
    choice = _route(q, key_cache, value_cache, block_tables, k_scale, out_scale, options)
    mtp, num_splits, tile_rows, fnuz = choice
    if out is None:
        out = torch.empty(q.shape, dtype=out_dtype or q.dtype, device=q.device)
    rows, nhead, head_dim = q.shape
    packed = options.max_seqlen_q * (nhead // key_cache.shape[1])
    counters = block_tables.shape[0] * key_cache.shape[1] * -(-packed // LEAST_ROWS)
    scratch = split_scratch(q, (rows, nhead, head_dim), num_splits, counters, workspace)
    try:
        torch.ops.hipdecode.paged_attention.default(
            q, key_cache, value_cache, out, lse, block_tables, context_lens, qo_indptr, k_scale,
            v_scale, out_scale, *scratch, options.max_seqlen_q, num_splits,
            head_dim**-0.5 if sm_scale is None else sm_scale, mtp, fnuz, tile_rows,
        )  # fmt: skip
    except HipdecodeError:
        raise
    except RuntimeError as error:
        # the operator checks all that it is given before it writes, and names what is wrong
        text = str(error).partition("\n")[0]
        if ": expected" not in text:
            raise
        name, _, rest = text.partition(":")
        given = {
            "o": out, "lse": lse, "block_tables": block_tables, "context_lens": context_lens,
            "qo_indptr": qo_indptr,
        }  # fmt: skip
        known = f"; it is {describe(given[name])}" if name in given else ""
        raise BadArgument(f"{'out' if name == 'o' else name}:{rest}{known}") from None
    return out


def warmup_paged(
    shape: PagedShape, *, device: torch.device | str = "cpu", general: bool = True
) -> tuple[str, ...]:
    """Loads, and builds where needed, the kernels of a shape; before a graph is captured.

    Args:
        shape: of the calls to come.
        device: of the tensors.
        general: the general kernel too, where the shape is routed elsewhere.

    Returns:
        The kernels' names.

    Raises:
        UnsupportedShape: no kernel for these dtypes and head_dim.
        BuildError: one could not be built.
    """
    name = route_paged_attention(shape).kernel
    names = [name, name.replace("-block16-", "-any-")] if general else [name]
    for each in dict.fromkeys(names):
        ops.ensure_kernel(_known(each), device)
    return tuple(dict.fromkeys(names))


def _route(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    k_scale: Tensor | None,
    out_scale: Tensor | None,
    options: PagedOptions,
) -> _Choice:
    """What runs for a call, remembered; loads its kernel."""
    try:
        facts = (
            q.device, q.dtype, q.shape, key_cache.dtype, key_cache.shape, key_cache.stride(),
            value_cache.stride(), block_tables.shape,
            None if k_scale is None else k_scale.numel() > 1, out_scale is not None,
            options.max_seqlen_q, options.max_seq_len, options.num_splits, options.q_scale,
            options.route,
        )  # fmt: skip
        if torch.compiler.is_compiling():
            return _prepare(*facts)
        key = (facts, None if q.is_cuda else ops.cpu_state())
        found = _routes.get(key)
    except (AttributeError, TypeError):
        _check_tensors(q, key_cache, value_cache, block_tables)
        raise
    if found is None:
        _check_tensors(q, key_cache, value_cache, block_tables)
        check_choices(None, options.num_splits, None)
        if len(_routes) >= _MAX_ROUTES:
            _routes.clear()
        found = _routes[key] = _prepare(*facts)
    return found


@ops.constant_when_traced
def _prepare(
    device: torch.device,
    q_dtype: torch.dtype,
    q_shape: tuple[int, ...],
    kv_dtype: torch.dtype,
    kv_shape: tuple[int, ...],
    k_strides: tuple[int, ...],
    v_strides: tuple[int, ...],
    table_shape: tuple[int, ...],
    token_scales: bool | None,
    out_scale: bool,
    max_seqlen_q: int,
    max_seq_len: int | None,
    num_splits: int | None,
    q_scale: bool,
    asked: str | None,
) -> _Choice:
    family, units = ops.family_and_units(device)
    fnuz = kv_dtype == _FNUZ or (kv_dtype == torch.uint8 and family == _FNUZ_FAMILY)
    if kv_dtype == torch.uint8:
        kv_dtype = _FNUZ if fnuz else _FN
    nhead_kv, block_size, x = kv_shape[1], kv_shape[3], kv_shape[4]
    shuffled = len(v_strides) == 5
    column = v_strides[3] == x if shuffled else v_strides[2] == block_size
    capacity = table_shape[1] * block_size
    shape = PagedShape(
        family=family,
        compute_units=units,
        batch=table_shape[0],
        nhead_kv=nhead_kv,
        gqa=q_shape[1] // nhead_kv,
        mtp=max_seqlen_q,
        kv_len=capacity if max_seq_len is None else min(max_seq_len, capacity),
        q_dtype=DTYPE_NAMES.get(q_dtype, str(q_dtype)),
        kv_dtype=DTYPE_NAMES.get(kv_dtype, str(kv_dtype)),
        head_dim=q_shape[2],
        block_size=block_size,
        value_dims=len(v_strides),
        scales="none" if token_scales is None else "token" if token_scales else "tensor",
        q_scale=q_scale,
        out_scale=out_scale,
        uniform=q_shape[0] == table_shape[0] * max_seqlen_q,
        dense=column and tuple(k_strides[2:4]) == (block_size * x, x),
        num_splits=num_splits,
    )
    route = route_paged_attention(shape)
    if asked not in (None, route.route):
        route = _asked(route, shape, asked or "")
    why = "; ".join(text for text in (route.reason, route.table) if text)
    logger.info("%s, %s splits: %s", route.kernel, route.num_splits, why)
    ops.ensure_kernel(_known(route.kernel), device)
    return route.route == "mtp", route.num_splits, route.tile_rows, fnuz


def _asked(found: PagedRoute, shape: PagedShape, route: str) -> PagedRoute:
    """The route that the caller chose in place of the one found."""
    layouts = {"mtp": ("any", "block16"), "general": ("block16", "any")}
    if route not in layouts:
        raise BadArgument(f"route: expected mtp or general, got {route}; or leave it out")
    old, new = layouts[route]
    return PagedRoute(
        route=route,
        kernel=found.kernel.replace(f"-{old}-", f"-{new}-"),
        num_splits=found.num_splits,
        reason="route given by the caller",
    )


def _known(name: str) -> str:
    """A kernel's name where the registry has it.

    Raises:
        UnsupportedShape: it has not; names what it has.
    """
    module = registry.default().module("paged_attention")
    words = name.partition("/")[2].split("-")
    values: dict[str, registry.Value] = dict(zip(module.values, words, strict=True))
    values |= {key: int(words[at]) for key, at in (("head_dim", 0), ("rows", 5))}
    if not module.allows(values):
        raise UnsupportedShape(
            f"head_dim, dtypes, scales: expected head_dim {' or '.join(map(str, HEAD_DIMS))}, q of "
            f"bf16 or fp16, a cache of q's dtype or of {' or '.join(FP8_NAMES)}, scales for each "
            f"token with fp8 alone, got {'-'.join(words[:4])}; convert the cache"
        )
    return name


def _check_tensors(q: Tensor, key_cache: Tensor, value_cache: Tensor, table: Tensor) -> None:
    """Checks what the route is made of; the operator checks the rest.

    Raises:
        BadArgument: one is no tensor, or has a wrong rank.
    """
    for name, value, dims in (
        ("q", q, (3,)),
        ("key_cache", key_cache, (5,)),
        ("value_cache", value_cache, (4, 5)),
        ("block_tables", table, (2,)),
    ):
        if not isinstance(value, Tensor) or value.dim() not in dims:
            rank = " or ".join(f"{n}-D" for n in dims)
            raise BadArgument(f"{name}: expected a {rank} tensor, got {describe(value)}")
    if q.shape[1] < 1 or key_cache.shape[1] < 1 or q.shape[1] % key_cache.shape[1]:
        raise BadArgument(
            f"q: expected a multiple of the {key_cache.shape[1]} kv heads, got {describe(q)}"
        )
