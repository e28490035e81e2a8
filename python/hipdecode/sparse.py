# SPDX-License-Identifier: MIT
"""Sparse MLA decode: each query token attends to the keys that its own list names."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import ops, registry
from .arguments import (
    DTYPE_NAMES,
    check_choices,
    check_int,
    check_lse,
    check_output,
    check_tensor,
    describe,
)
from .errors import BadArgument, UnsupportedShape
from .registry import LEAST_ROWS, wanted_rows
from .short_way import SERVED, is_watched
from .sparse_cache import FORMATS, FP8_MAX, V4, CacheFormat, format_named, format_of
from .sparse_route import MAX_SPLITS_OF, SparseShape, route_sparse_mla_decode
from .workspace import Workspace, split_scratch

_FN, _FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
_FNUZ_FAMILY = "gfx942"

_FORM_OF = {form.token_bytes: form for form in FORMATS.values()}

_prepared: dict[tuple[object, ...], tuple[bool, bool, int, int]] = {}
_MAX_PREPARED = 8192


def sparse_mla_decode(
    q: Tensor,
    cache: Tensor,
    indices: Tensor,
    *,
    indptr: Tensor | None = None,
    lengths: Tensor | None = None,
    extra_cache: Tensor | None = None,
    extra_indices: Tensor | None = None,
    extra_indptr: Tensor | None = None,
    extra_lengths: Tensor | None = None,
    attn_sink: Tensor | None = None,
    sm_scale: float | None = None,
    kv_dtype: torch.dtype | None = None,
    extra_kv_dtype: torch.dtype | None = None,
    max_keys: int | None = None,
    out: Tensor | None = None,
    return_lse: bool = False,
    lse: Tensor | None = None,
    num_splits: int | None = None,
    workspace: Workspace | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """One decode step over keys chosen by an indexer, in packed fp8 caches.

    A token's keys are those of its list in `cache` and of its list in `extra_cache`, as often as
    they are named. A slot is block * block_size + position; what is no slot of the cache, such as
    -1, is skipped. Several tokens of a request are more rows. Nothing synchronises, and nothing is
    allocated when `out` (and `lse`) and a warm workspace are there.

    Args:
        q: [tokens, nhead, 576] (V3.2) or [tokens, nhead, 512] (V4) bf16, last dimension
            contiguous; nhead 1..128.
        cache: [num_blocks, block_size, 656] (V3.2) or [num_blocks, block_size, 584] (V4) bytes, as
            quantize_v32 or quantize_v4 writes them; blocks may lie apart.
        indices: int32 slots: a table [tokens, topk], or [any] with indptr.
        indptr: [tokens + 1] int32, where each token's slots begin.
        lengths: [tokens / n] int32, entries of a table row that count, each for n tokens; without
            it a row is as long as its last slot.
        extra_cache: a second cache of the same format with its own block size and stride.
        extra_indices: its slots; extra_indptr and extra_lengths likewise.
        extra_indptr: see indptr.
        extra_lengths: see lengths.
        attn_sink: [nhead] fp32, a logit in the denominator of each row that has no value. -inf
            changes nothing; inf gives zeros.
        sm_scale: softmax scale, 0 or more; default 1 / sqrt(columns of q).
        kv_dtype: torch.float8_e4m3fn or torch.float8_e4m3fnuz; default the cache's own where it is
            not uint8, else fnuz on gfx942 and fn elsewhere.
        extra_kv_dtype: of the extra cache; default its own where it is not uint8, else e4m3fn for
            V4 (its compressed cache is OCP on every machine), kv_dtype for V3.2.
        max_keys: keys of a token at most as the host knows it, for the number of splits alone;
            default topk, or the capacity of ragged indices for each token.
        out: [tokens, nhead, 512] bf16 or fp16, written in place, strides honoured.
        return_lse: also return the log-sum-exp of the scores, without the sink.
        lse: [tokens, nhead] fp32 to write it to.
        num_splits: pieces of a token's keys, instead of those of the tables and the rule; at most
            as many as a cluster has blocks on sm_90, 16 on an H100.
        workspace: scratch; by default this thread's own.

    Returns:
        out, or (out, lse) with lse [tokens, nhead] fp32, natural log. Tokens without a key are
        zeros and -inf.

    Raises:
        BadArgument: an argument has a wrong type, shape, stride or range; nothing was written.
        UnsupportedShape: no kernel for these dtypes.
        BuildError: a kernel that is not cached could not be built.

    Source: DeepSeek-V3.2 (2025), sparse attention; the split merge is that of Flash-Decoding.
    """
    main = (cache, indices, indptr, lengths)
    extra = (extra_cache, extra_indices, extra_indptr, extra_lengths)
    short = ops.short_way
    if torch.compiler.is_dynamo_compiling():
        short = None
    try:
        tokens, nhead, width = q.shape
        if out is None:
            out = torch.empty((tokens, nhead, 512), dtype=torch.bfloat16, device=q.device)
        if lse is None and return_lse:
            lse = torch.empty((tokens, nhead), dtype=torch.float32, device=q.device)
        scale = width**-0.5 if sm_scale is None else sm_scale
        if isinstance(scale, Tensor) or isinstance(num_splits, Tensor):
            raise TypeError("a number on the device: reading it would synchronise")
        if workspace is not None and not isinstance(workspace, Workspace):
            raise TypeError("workspace")
        keys = max_keys
        if keys is None:
            keys = _capacity(indices, indptr, tokens)
            if extra_cache is not None and extra_indices is not None:
                keys += _capacity(extra_indices, extra_indptr, tokens)
        choice = (kv_dtype, extra_kv_dtype, keys, num_splits)
        fnuz, extra_fnuz, splits, partials = _plan(q, cache, extra_cache, choice)
        counters = tokens * -(-nhead // LEAST_ROWS)
        scratch = split_scratch(q, (tokens, nhead, 512), partials, counters, workspace)
        call = (q, *main, *extra, attn_sink, out, lse, *scratch, splits, scale, fnuz, extra_fnuz)
        if short is None or is_watched() or short.sparse(*call) != SERVED:
            torch.ops.hipdecode.sparse_mla_decode.default(*call)
    except Exception:
        # The operator checks all that it is given, cheaply, before it writes. Only when it refuses
        # is it worth the time to find out whose fault it was and to say so by name.
        _check(q, main, extra, attn_sink, sm_scale, out, lse)
        _check_choices(kv_dtype, extra_kv_dtype, max_keys, num_splits)
        check_choices(None, None, workspace)
        raise
    return (out, lse) if return_lse and lse is not None else out


def warmup_sparse(
    form: CacheFormat | str,
    *,
    nhead: int = 128,
    kv_dtype: torch.dtype | None = None,
    extra_kv_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> str:
    """Loads, and builds where needed, the kernel of a format; before a graph is captured.

    Args:
        form: V32, V4 or their names.
        nhead: query heads.
        kv_dtype: as in sparse_mla_decode.
        extra_kv_dtype: likewise.
        device: of the tensors.

    Returns:
        The kernel's name.

    Raises:
        BadArgument: no such format.
        UnsupportedShape: no kernel for these dtypes.
        BuildError: it could not be built.
    """
    form = format_named(form)
    family = ops.family_and_units(torch.device(device))[0]
    main = kv_dtype or _default_dtype(family)
    extra = extra_kv_dtype or _default_extra(form, main)
    name = _kernel_name(form, main, extra, wanted_rows(family, nhead))
    ops.ensure_kernel(name, device)
    return name


def _capacity(indices: Tensor, indptr: Tensor | None, tokens: int) -> int:
    return indices.shape[-1] if indptr is None else -(-indices.numel() // max(tokens, 1))


def _plan(
    q: Tensor,
    cache: Tensor,
    extra_cache: Tensor | None,
    choice: tuple[torch.dtype | None, torch.dtype | None, int, int | None],
) -> tuple[bool, bool, int, int]:
    """(main is fnuz, extra is fnuz, splits, partial results of a row) of a call, remembered.

    Loads its kernel.
    """
    other = None if extra_cache is None else extra_cache.dtype
    facts = (q.device, q.shape[0], q.shape[1], cache.shape[-1], cache.dtype, other, *choice)
    if torch.compiler.is_compiling():
        return _prepare(*facts)
    key = (*facts, None if q.is_cuda else ops.cpu_state())
    found = _prepared.get(key)
    if found is None:
        format_of(cache)
        _check_choices(*choice)
        if len(_prepared) >= _MAX_PREPARED:
            _prepared.clear()
        found = _prepared[key] = _prepare(*facts)
    return found


class _Facts(NamedTuple):
    """What a call's kernel and split count follow from."""

    device: torch.device
    tokens: int
    nhead: int
    token_bytes: int
    cache_dtype: torch.dtype
    extra_cache_dtype: torch.dtype | None
    kv_dtype: torch.dtype | None
    extra_kv_dtype: torch.dtype | None
    max_keys: int
    num_splits: int | None


@ops.constant_when_traced
def _prepare(*facts: object) -> tuple[bool, bool, int, int]:
    call = _Facts(*facts)  # type: ignore[arg-type]
    form = _FORM_OF[call.token_bytes]
    family, units = ops.family_and_units(call.device)
    main = call.kv_dtype or _own_dtype(call.cache_dtype) or _default_dtype(family)
    extra = call.extra_kv_dtype or _own_dtype(call.extra_cache_dtype)
    if extra is None or call.extra_cache_dtype is None:
        extra = _default_extra(form, main)
    ops.ensure_kernel(_kernel_name(form, main, extra, wanted_rows(family, call.nhead)), call.device)
    shape = SparseShape(
        family=family,
        compute_units=units,
        format=form.name,
        tokens=call.tokens,
        nhead=call.nhead,
        max_keys=call.max_keys,
        num_splits=call.num_splits,
    )
    splits = route_sparse_mla_decode(shape).num_splits
    # where blocks of a cluster add up what they have, nothing of it goes to memory
    return main == _FNUZ, extra == _FNUZ, splits, 1 if family in MAX_SPLITS_OF else splits


def _own_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    return dtype if dtype in FP8_MAX else None


def _default_dtype(family: str) -> torch.dtype:
    return _FNUZ if family == _FNUZ_FAMILY else _FN


def _default_extra(form: CacheFormat, main: torch.dtype) -> torch.dtype:
    return _FN if form is V4 else main


def _kernel_name(form: CacheFormat, main: torch.dtype, extra: torch.dtype, rows: int) -> str:
    module = registry.default().module("sparse_mla_decode")
    values: dict[str, registry.Value] = {
        "format": form.name,
        "q_dtype": "bf16",
        "kv_dtype": DTYPE_NAMES.get(main, str(main)),
        "extra_dtype": DTYPE_NAMES.get(extra, str(extra)),
        "rows": rows,
    }
    if not module.allows(values):
        pairs = {(k.by_name["kv_dtype"], k.by_name["extra_dtype"]) for k in module.kernels()
                 if k.by_name["format"] == form.name}  # fmt: skip
        have = "; ".join(f"{a} and {b}" for a, b in sorted(pairs))
        raise UnsupportedShape(
            f"kv_dtype, extra_kv_dtype: expected for {form.name} one of {have}, got "
            f"{values['kv_dtype']} and {values['extra_dtype']}; write the caches so"
        )
    return module.kernel(**values).name


def _check(
    q: Tensor,
    main: tuple[Tensor | None, ...],
    extra: tuple[Tensor | None, ...],
    attn_sink: Tensor | None,
    sm_scale: float | None,
    out: Tensor | None,
    lse: Tensor | None,
) -> None:
    """Names the argument that is wrong.

    Raises:
        BadArgument: there is one.
    """
    form = _check_cache("", main, q)
    if form is None:
        raise BadArgument("cache: expected a tensor, got None; pass the cache and its indices")
    good = q.dim() == 3 and q.dtype == torch.bfloat16 and q.stride(2) == 1
    if not good or q.shape[2] != form.head_dim_qk or not 1 <= q.shape[1] <= 128:
        raise BadArgument(
            f"q: expected [tokens, nhead 1..128, {form.head_dim_qk}] bf16 with a contiguous last "
            f"dimension, got {describe(q)}"
        )
    other = _check_cache("extra_", extra, q)
    if other not in (None, form):
        raise BadArgument(
            f"extra_cache: expected {form.token_bytes} bytes a token, got {describe(extra[0])}"
        )
    tokens, nhead = q.shape[:2]
    if attn_sink is not None:
        check_tensor("attn_sink", attn_sink, torch.float32, q.device, contiguous=True)
        if attn_sink.numel() < nhead:
            raise BadArgument(f"attn_sink: expected [{nhead}], got {describe(attn_sink)}")
    if out is not None:
        check_output("out", out, tokens, nhead, form.head_dim_v, q.device)
    check_lse(lse, tokens, nhead, q.device)
    check_choices(sm_scale, None, None)


def _check_cache(prefix: str, tensors: tuple[Tensor | None, ...], q: Tensor) -> CacheFormat | None:
    """Checks one cache and its lists; their names start with `prefix`."""
    if not isinstance(q, Tensor) or q.dim() != 3:
        raise BadArgument(f"q: expected a 3-D tensor, got {describe(q)}")
    cache, *lists = tensors
    names = [prefix + name for name in ("indices", "indptr", "lengths")]
    if cache is None:
        given = [n for n, value in zip(names, lists, strict=True) if value is not None]
        if given:
            raise BadArgument(f"{prefix}cache: expected a tensor beside {given[0]}, got None")
        return None
    form = format_of(cache, f"{prefix}cache")
    if cache.device != q.device:
        raise BadArgument(f"{prefix}cache: expected it on {q.device}, got {describe(cache)}")
    indices, indptr, lengths = lists
    if indices is None:
        raise BadArgument(f"{names[0]}: expected a tensor, got None")
    for name, value in zip(names, lists, strict=True):
        if value is not None:
            check_tensor(name, value, torch.int32, q.device, contiguous=True)
    tokens = q.shape[0]
    if indptr is not None:
        if lengths is not None or indptr.numel() < tokens + 1:
            raise BadArgument(
                f"{names[1]}: expected [{tokens + 1}] and no {names[2]}, got {describe(indptr)}"
            )
        return form
    if indices.dim() < 1 or indices.numel() != tokens * indices.shape[-1]:
        raise BadArgument(
            f"{names[0]}: expected [{tokens}, topk] or {names[1]} beside it, got "
            f"{describe(indices)}"
        )
    if lengths is not None and (lengths.numel() < 1 or tokens % lengths.numel()):
        raise BadArgument(
            f"{names[2]}: expected [{tokens}] or a divisor of it, got {describe(lengths)}"
        )
    return form


def _check_choices(
    kv_dtype: torch.dtype | None,
    extra_kv_dtype: torch.dtype | None,
    max_keys: int | None,
    num_splits: int | None,
) -> None:
    for name, dtype in (("kv_dtype", kv_dtype), ("extra_kv_dtype", extra_kv_dtype)):
        if dtype is not None and dtype not in FP8_MAX:
            raise BadArgument(f"{name}: expected {_FN}, {_FNUZ} or None, got {dtype}")
    if max_keys is not None:
        check_int("max_keys", max_keys, 0)
    check_choices(None, num_splits, None)
