# SPDX-License-Identifier: MIT
"""The fp64 oracle of MLA decode, of its partial results and of their reduce.

Written from the contract alone. It shares no code with the kernels: fp8 is decoded by tables built
here from the format definition, attention is the textbook formula in float64, and nothing is split.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from hipdecode.testing.cases import one_thread

_FP8_BIAS = {torch.float8_e4m3fn: 7, torch.float8_e4m3fnuz: 8}
_FP8_NAN = {torch.float8_e4m3fn: (0x7F, 0xFF), torch.float8_e4m3fnuz: (0x80,)}

FAINT = (2.0**-14, 2.0**-36)
"""Weights below this share of a row's largest one may be lost where they are fp8, fp16."""


@dataclass(frozen=True, slots=True)
class Attention:
    """What one attention call must return, and the magnitudes that bound its rounding errors.

    Attributes:
        o: [rows, nhead, head_dim_v] float64.
        lse: [rows, nhead] float64, natural logarithm; -inf where a row sees nothing.
        l1: [rows, nhead, head_dim_v], sum over keys of p * |v|.
        l2: [rows, nhead, head_dim_v], sqrt of the sum over keys of (p * v)**2.
        faint: [rows, nhead, head_dim_v, 2], sums over keys of min(p, FAINT * largest p) * |v|.
        logit_bound: [rows, nhead], largest |q| * |k| * scale over the visible keys.
        written: [rows] bool, rows that the call must write.
    """

    o: Tensor
    lse: Tensor
    l1: Tensor
    l2: Tensor
    faint: Tensor
    logit_bound: Tensor
    written: Tensor

    @staticmethod
    def blank(rows: int, nhead: int, head_dim_v: int) -> Attention:
        """A result in which no row sees any key: zeros and -inf, nothing written yet."""
        wide, flat = (rows, nhead, head_dim_v), (rows, nhead)
        f64 = torch.float64
        return Attention(
            o=torch.zeros(wide, dtype=f64),
            lse=torch.full(flat, -math.inf, dtype=f64),
            l1=torch.zeros(wide, dtype=f64),
            l2=torch.zeros(wide, dtype=f64),
            faint=torch.zeros((*wide, len(FAINT)), dtype=f64),
            logit_bound=torch.zeros(flat, dtype=f64),
            written=torch.zeros(rows, dtype=torch.bool),
        )

    def put(self, rows: slice, other: Attention) -> None:
        """Writes `other` into `rows` and marks them written."""
        for name in ("o", "lse", "l1", "l2", "faint", "logit_bound"):
            getattr(self, name)[rows] = getattr(other, name)
        self.written[rows] = True


class WorkRecord(NamedTuple):
    """One record of work_info_set, words 0 to 6."""

    batch: int
    partial_row: int
    qo_start: int
    qo_end: int
    kv_start: int
    kv_end: int
    kv_offset: int


@cache
def fp8_table(dtype: torch.dtype) -> Tensor:
    """The 256 values of an fp8 format as float64, from its definition.

    Args:
        dtype: torch.float8_e4m3fn (bias 7, NaN = 0x7f and 0xff, no infinity) or
            torch.float8_e4m3fnuz (bias 8, NaN = 0x80, no negative zero, no infinity).

    Returns:
        [256] float64, indexed by the byte.
    """
    bias = _FP8_BIAS[dtype]
    values = []
    for byte in range(256):
        sign = -1.0 if byte & 0x80 else 1.0
        exponent, mantissa = (byte >> 3) & 0xF, byte & 0x7
        if byte in _FP8_NAN[dtype]:
            values.append(math.nan)
        elif exponent == 0:
            values.append(sign * mantissa * 2.0 ** (1 - bias - 3))
        else:
            values.append(sign * (8 + mantissa) * 2.0 ** (exponent - bias - 3))
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def dequantise(x: Tensor) -> Tensor:
    """float64 values of a bf16, fp16, fp32 or fp8 tensor; no scale is applied."""
    if x.dtype in _FP8_BIAS:
        return fp8_table(x.dtype).to(x.device)[x.view(torch.uint8).long()]
    return x.to(torch.float64)


def scalar(scale: Tensor | float | None) -> float:
    """A per-tensor scale as a Python float; None is 1."""
    if scale is None:
        return 1.0
    return float(scale.reshape(-1)[0]) if isinstance(scale, Tensor) else float(scale)


def attend(q: Tensor, k: Tensor, visible: Tensor, *, scale: float, head_dim_v: int) -> Attention:
    """Softmax attention of a few query rows over one list of keys, all in float64.

    Args:
        q: [rows, nhead, head_dim_qk] float64.
        k: [tokens, head_dim_qk] float64; V is its first head_dim_v columns. Keys that no row sees
            may hold NaN; a NaN in a visible key makes the whole row NaN.
        visible: [rows, tokens] bool.
        scale: factor on the logits.
        head_dim_v: width of V.

    Returns:
        The result for those rows; rows without a visible key are zeros and -inf.
    """
    rows, nhead, width = q.shape
    result = Attention.blank(rows, nhead, head_dim_v)
    seen = visible.any(0)
    k, visible = k[seen], visible[:, seen]
    if k.shape[0] == 0:
        return result
    bad_keys = k.isnan().any(1)
    bad_rows = (visible & bad_keys).any(1)
    if bool(bad_keys.any()):
        k = torch.where(bad_keys[:, None], torch.zeros_like(k), k)
    logits = (q.reshape(rows * nhead, width) @ k.T).reshape(rows, nhead, -1) * scale
    logits = logits.masked_fill(~visible[:, None, :], -math.inf)
    top = logits.amax(-1, keepdim=True)
    weight = torch.exp(logits - torch.where(top == -math.inf, torch.zeros_like(top), top))
    total = weight.sum(-1, keepdim=True)
    p = weight / torch.where(total == 0, torch.ones_like(total), total)
    v = k[:, :head_dim_v]
    flat = p.reshape(rows * nhead, -1)
    shape = (rows, nhead, head_dim_v)
    result.o[:] = (flat @ v).reshape(shape)
    result.lse[:] = (top + total.log()).squeeze(-1)
    result.l1[:] = (flat @ v.abs()).reshape(shape)
    result.l2[:] = (flat.square() @ v.square()).sqrt().reshape(shape)
    for i, share in enumerate(FAINT):
        lost = torch.minimum(flat, flat.amax(1, keepdim=True) * share)
        result.faint[..., i] = (lost @ v.abs()).reshape(shape)
    key_norm = k.norm(dim=1)[None, :].masked_fill(~visible, 0.0).amax(1)
    result.logit_bound[:] = q.norm(dim=-1) * key_norm[:, None] * abs(scale)
    result.o[bad_rows] = math.nan
    result.lse[bad_rows] = math.nan
    return result


def gather_tokens(kv_buffer: Tensor, pages: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` tokens of a list of pages.

    Args:
        kv_buffer: [num_pages, page_size, 1, head_dim_qk].
        pages: [n] int32 page ids; ids below 0 or past the pool are masked.
        count: tokens wanted, at most n * page_size.

    Returns:
        keys [count, head_dim_qk] float64 (zeros where masked) and valid [count] bool.
    """
    num_pages, page_size, _, width = kv_buffer.shape
    token = torch.arange(count)
    page = pages.long()[token // page_size]
    valid = (page >= 0) & (page < num_pages)
    keys = torch.zeros(count, width, dtype=torch.float64)
    is_fp8 = kv_buffer.dtype in _FP8_BIAS
    store = kv_buffer.view(torch.uint8) if is_fp8 else kv_buffer
    found = store[page[valid], token[valid] % page_size, 0]
    keys[valid] = dequantise(found.view(kv_buffer.dtype))
    return keys, valid


def kv_lens_of(kv_indptr: Tensor, kv_last_page_lens: Tensor | None, page_size: int) -> list[int]:
    """Tokens of each request: full pages, the last one cut to kv_last_page_lens (not at page 1)."""
    pages = (kv_indptr[1:] - kv_indptr[:-1]).tolist()
    if page_size == 1 or kv_last_page_lens is None:
        return [n * page_size for n in pages]
    last = kv_last_page_lens.tolist()
    return [(n - 1) * page_size + last[b] if n > 0 else 0 for b, n in enumerate(pages)]


@one_thread()
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
    head_dim_v: int | None = None,
) -> Attention:
    """The fp64 result of `hipdecode.mla_decode`; same arguments, same shapes, o and lse in float64.

    Row i of a request with Q query rows and S tokens sees keys j <= S - Q + i when causal, all keys
    otherwise. Requests without keys, rows that see none and rows past qo_indptr[-1] are 0 and -inf.
    head_dim_v is 512 for keys of 512 columns or more, else 64, unless given.
    """
    del max_seqlen_q  # a launch shape, without influence on the result
    page_size = kv_buffer.shape[1]
    head_dim_v = head_dim_v or default_head_dim_v(q.shape[-1])
    scale, value_scale = scales(q, kv_buffer, sm_scale, q_scale, kv_scale)
    result = Attention.blank(q.shape[0], q.shape[1], head_dim_v)
    result.written[:] = True
    kv_lens = kv_lens_of(kv_indptr, kv_last_page_lens, page_size)
    starts, page_starts = qo_indptr.tolist(), kv_indptr.tolist()
    for b, kv_len in enumerate(kv_lens):
        first, last = starts[b], starts[b + 1]
        keys, valid = gather_tokens(kv_buffer, kv_indices[page_starts[b] :], kv_len)
        end = torch.full((last - first,), kv_len)
        if causal:
            end = kv_len - (last - first) + 1 + torch.arange(last - first)
        visible = (torch.arange(kv_len)[None, :] < end[:, None]) & valid[None, :]
        part = attend(dequantise(q[first:last]), keys, visible, scale=scale, head_dim_v=head_dim_v)
        result.put(slice(first, last), scale_values(part, value_scale))
    return result


def default_head_dim_v(head_dim_qk: int) -> int:
    """Columns of V in a key of head_dim_qk columns: all but the rotary ones."""
    return 512 if head_dim_qk >= 512 else 64


def scales(
    q: Tensor,
    kv_buffer: Tensor,
    sm_scale: float | None,
    q_scale: Tensor | None,
    kv_scale: Tensor | None,
) -> tuple[float, float]:
    """(factor on logits, factor on values); a scale of an operand that is not fp8 is ignored."""
    qs = scalar(q_scale) if q.dtype in _FP8_BIAS else 1.0
    ks = scalar(kv_scale) if kv_buffer.dtype in _FP8_BIAS else 1.0
    base = q.shape[-1] ** -0.5 if sm_scale is None else sm_scale
    return base * qs * ks, ks


def scale_values(part: Attention, factor: float) -> Attention:
    """`part` with everything that is linear in V multiplied by `factor`."""
    magnitude = abs(factor)
    return Attention(
        part.o * factor,
        part.lse,
        part.l1 * magnitude,
        part.l2 * magnitude,
        part.faint * magnitude,
        part.logit_bound,
        part.written,
    )


def work_records(work_indptr: Tensor, work_info_set: Tensor) -> Iterator[WorkRecord]:
    """The live records of a plan, in order; the rest of work_info_set is garbage."""
    live = int(work_indptr[-1])
    for words in work_info_set[:live].tolist():
        yield WorkRecord(*words[:7])


@one_thread()
def walk_work(
    q: Tensor,
    kv_buffer: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    *,
    work_indptr: Tensor,
    work_info_set: Tensor,
    partial_rows: int,
    kv_last_page_lens: Tensor | None = None,
    sm_scale: float | None = None,
    causal: bool = True,
    q_scale: Tensor | None = None,
    kv_scale: Tensor | None = None,
    head_dim_v: int | None = None,
) -> tuple[Attention, Attention]:
    """What the persistent kernel must write for a plan.

    Args:
        work_indptr: [clusters + 1] int32.
        work_info_set: [max_work, 8] int32.
        partial_rows: rows of the partial buffers.

    Returns:
        (partials [partial_rows, ...], direct results [q rows, ...]); `written` tells which rows
        the work list covers. Partials are normalised, their lse is natural log, -inf where a row
        sees nothing of its range.
    """
    page_size = kv_buffer.shape[1]
    head_dim_v = head_dim_v or default_head_dim_v(q.shape[-1])
    scale, value_scale = scales(q, kv_buffer, sm_scale, q_scale, kv_scale)
    partials = Attention.blank(partial_rows, q.shape[1], head_dim_v)
    direct = Attention.blank(q.shape[0], q.shape[1], head_dim_v)
    for work in work_records(work_indptr, work_info_set):
        count = (work.kv_end - work.kv_start) * page_size
        at_tail = work.kv_end == int(kv_indptr[work.batch + 1])
        if at_tail and page_size > 1 and kv_last_page_lens is not None and count > 0:
            count -= page_size - int(kv_last_page_lens[work.batch])
        keys, valid = gather_tokens(kv_buffer, kv_indices[work.kv_start :], count)
        row = torch.arange(work.qo_start, work.qo_end) - int(qo_indptr[work.batch])
        q_len = int(qo_indptr[work.batch + 1]) - int(qo_indptr[work.batch])
        end = torch.full_like(row, count)
        if causal:
            end = torch.clamp(count + work.kv_offset - (q_len - 1 - row), max=count)
        visible = (torch.arange(count)[None, :] < end[:, None]) & valid[None, :]
        rows = dequantise(q[work.qo_start : work.qo_end])
        part = attend(rows, keys, visible, scale=scale, head_dim_v=head_dim_v)
        part = scale_values(part, value_scale)
        if work.partial_row < 0:
            direct.put(slice(work.qo_start, work.qo_end), part)
        else:
            stop = work.partial_row + work.qo_end - work.qo_start
            partials.put(slice(work.partial_row, stop), part)
    return partials, direct


@one_thread()
def mla_reduce(
    partial_output: Tensor,
    partial_lse: Tensor,
    reduce_indptr: Tensor,
    reduce_final_map: Tensor | None,
    reduce_partial_map: Tensor,
    *,
    rows: int,
) -> Attention:
    """The fp64 merge of partial results by their log-sum-exp.

    Args:
        partial_output: [R, nhead, head_dim_v], normalised per partial; never read where its lse
            is -inf.
        partial_lse: [R, nhead], natural log.
        reduce_indptr: [tiles + 1] int32. Tiles with fewer than two entries are left untouched.
        reduce_final_map: [tiles, 2] int32 output rows, or None: tile t owns rows t*n .. (t+1)*n
            with n the distance of its first two partials.
        reduce_partial_map: [P] int32, first row of each partial.
        rows: rows of the output.

    Returns:
        The merged rows; `written` marks the rows of the tiles that were merged.
    """
    nhead, head_dim_v = partial_output.shape[-2:]
    result = Attention.blank(rows, nhead, head_dim_v)
    bases = reduce_partial_map.tolist()
    data = partial_output.reshape(-1, nhead, head_dim_v).double()
    logs = partial_lse.reshape(-1, nhead).double()
    for tile, (begin, end) in enumerate(itertools.pairwise(reduce_indptr.tolist())):
        if end - begin < 2:
            continue
        mine = bases[begin:end]
        if reduce_final_map is None:
            length = mine[1] - mine[0]
            start, stop = tile * length, (tile + 1) * length
        else:
            start, stop = reduce_final_map[tile].tolist()
        index = torch.tensor(mine)[:, None] + torch.arange(stop - start)[None, :]
        result.put(slice(start, stop), _merge(data[index], logs[index]))
    return result


def _merge(data: Tensor, logs: Tensor) -> Attention:
    """Merges [splits, rows, nhead, head_dim_v] with [splits, rows, nhead] over the splits."""
    out = Attention.blank(*data.shape[1:])
    out.lse[:] = torch.logsumexp(logs, 0)
    top = torch.where(out.lse == -math.inf, torch.zeros_like(out.lse), out.lse)
    weight = torch.exp(logs - top)[..., None]
    # NOTE: an absent partial has weight 0 but may hold NaN: it is excluded, not multiplied.
    used = torch.where(weight > 0, data, torch.zeros_like(data)) * weight
    out.o[:] = used.sum(0)
    out.l1[:] = used.abs().sum(0)
    out.l2[:] = used.square().sum(0).sqrt()
    finite = torch.where(logs == -math.inf, torch.zeros_like(logs), logs)
    out.logit_bound[:] = finite.abs().amax(0)
    return out
