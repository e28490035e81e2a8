# SPDX-License-Identifier: MIT
"""The stand-alone merge of partial results: split counts, layouts, poison, untouched rows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from hipdecode.testing import compare, reference

NAN, INF = float("nan"), float("inf")
SPLITS = ([2], [3, 2], [4], [8, 5, 7], [33], [300], [2, 4, 16, 64], [6] * 40)
HEADS = (1, 3, 8, 16, 17, 48, 96, 128)


@dataclass(frozen=True)
class Partials:
    """The inputs of one reduce; tile t has splits[t] partials of q_len rows."""

    output: Tensor
    lse: Tensor
    indptr: Tensor
    final_map: Tensor | None
    partial_map: Tensor
    rows: int
    q_len: int


def _int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _make(
    splits: list[int], nhead: int, head_dim_v: int, q_len: int = 1, seed: int = 0
) -> Partials:
    """Random partials at shuffled bases, with one unused row between any two."""
    print(f"seed {seed}")
    gen = torch.Generator().manual_seed(seed)
    count = sum(splits)
    bases = torch.randperm(count, generator=gen) * (q_len + 1)
    rows = count * (q_len + 1)
    data = torch.randn(rows, nhead, head_dim_v, generator=gen)
    lse = torch.randn(rows, nhead, generator=gen) * 3
    unused = torch.ones(rows, dtype=torch.bool)
    for base in bases.tolist():
        unused[base : base + q_len] = False
    data[unused], lse[unused] = NAN, NAN
    indptr = [0, *itertools.accumulate(splits)]
    final = _int32([[t * q_len, (t + 1) * q_len] for t in range(len(splits))])
    return Partials(
        data, lse, _int32(indptr), final, bases.to(torch.int32), len(splits) * q_len, q_len
    )


def _reduce(p: Partials, out: Tensor, lse: Tensor | None) -> None:
    device = out.device
    final = None if p.final_map is None else p.final_map.to(device)
    torch.ops.hipdecode.mla_reduce(
        p.output.to(device),
        p.lse.to(device),
        p.indptr.to(device),
        final,
        p.partial_map.to(device),
        out,
        lse,
        p.q_len,
        int((p.indptr[1:] - p.indptr[:-1]).max()),
    )


def _check(p: Partials, out: Tensor, lse: Tensor | None) -> reference.Attention:
    """Reduces into `out` and `lse`, filled with 7 before, and compares with the oracle."""
    out.fill_(7.0)
    if lse is not None:
        lse.fill_(7.0)
    _reduce(p, out, lse)
    want = reference.mla_reduce(
        p.output, p.lse, p.indptr, p.final_map, p.partial_map, rows=out.shape[0]
    )
    done = want.written
    merged = reference.Attention(
        want.o[done],
        want.lse[done],
        want.l1[done],
        want.l2[done],
        want.faint[done],
        want.logit_bound[done],
        done,
    )
    names = compare.plain_names("merged row", "head", "column")
    # No weight is rounded to bf16 here: the tolerance is that of fp32 arithmetic on any target.
    allowed = compare.allowed_output(merged, out.dtype, "")
    compare.assert_close(out[done], merged.o, allowed, what="out", names=names)
    assert (out[~done] == 7).all(), "rows of unsplit tiles: expected to be untouched"
    if lse is not None:
        limit = compare.allowed_lse(merged)
        compare.assert_close(lse[done], merged.lse, limit, what="lse", names=names)
        assert (lse[~done] == 7).all(), "lse of unsplit tiles: expected to be untouched"
    return want


def _out(
    p: Partials, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor]:
    nhead, head_dim_v = p.output.shape[-2:]
    out = torch.empty(p.rows, nhead, head_dim_v, dtype=dtype, device=device)
    return out, torch.empty(p.rows, nhead, device=device)


@pytest.mark.parametrize("splits", SPLITS, ids=lambda s: "_".join(map(str, s[:4])) + f"of{len(s)}")
@pytest.mark.parametrize("head_dim_v", [64, 128, 512])
def test_mla_reduce_matches_reference(
    splits: list[int], head_dim_v: int, device: torch.device
) -> None:
    p = _make(splits, 16, head_dim_v)
    _check(p, *_out(p, device))


@pytest.mark.parametrize("nhead", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_mla_reduce_takes_any_head_count(
    nhead: int, dtype: torch.dtype, device: torch.device
) -> None:
    p = _make([3, 2, 7], nhead, 512, q_len=2, seed=nhead)
    _check(p, *_out(p, device, dtype))


@pytest.mark.parametrize("q_len", [1, 2, 3, 8, 16])
def test_mla_reduce_merges_every_row_of_a_tile(q_len: int, device: torch.device) -> None:
    p = _make([4, 2, 3], 12, 128, q_len=q_len)
    _check(p, *_out(p, device))


@pytest.mark.parametrize("swapped", [None, (0, 1), (2, 3), (4, 7), (8, 10)])
@pytest.mark.parametrize("q_len", [1, 3])
def test_mla_reduce_believes_the_map_where_partials_lie_almost_in_a_planners_order(
    q_len: int, swapped: tuple[int, int] | None, device: torch.device
) -> None:
    p = _make([2, 4, 3, 2, 5], 16, 512, q_len=q_len)
    used = ~p.lse.isnan().all(dim=1)
    bases = torch.arange(p.partial_map.numel(), dtype=torch.int32) * q_len
    if swapped is not None:
        bases[list(swapped)] = bases[list(reversed(swapped))]
    p = replace(p, output=p.output[used], lse=p.lse[used], partial_map=bases)
    _check(p, *_out(p, device))


def test_mla_reduce_works_without_lse(device: torch.device) -> None:
    p = _make([3, 2], 8, 512)
    _check(p, _out(p, device)[0], None)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_mla_reduce_never_reads_data_of_absent_partials(value: float, device: torch.device) -> None:
    p = _make([4, 3, 2], 16, 128, q_len=2)
    p.lse[p.partial_map[1].long()] = -INF
    p.output[p.partial_map[1].long()] = value
    last = p.partial_map[8].long()
    p.lse[last, 3:9] = -INF
    p.output[last, 3:9] = value
    out, lse = _out(p, device)
    _check(p, out, lse)
    assert out.isfinite().all()
    assert lse.isfinite().all()


def test_mla_reduce_gives_zero_where_all_partials_are_absent(device: torch.device) -> None:
    p = _make([2, 3], 16, 512)
    for k in (0, 1):
        p.lse[p.partial_map[k].long()] = -INF
        p.output[p.partial_map[k].long()] = NAN
    out, lse = _out(p, device)
    _check(p, out, lse)
    assert (out[0] == 0).all()
    assert (lse[0] == -INF).all()


def test_mla_reduce_survives_distant_lses(device: torch.device) -> None:
    p = _make([3, 3], 4, 64)
    for k, lse in enumerate((500.0, -500.0, 499.0, -300.0, -301.0, -900.0)):
        p.lse[p.partial_map[k].long()] = lse
    _check(p, *_out(p, device))


def test_mla_reduce_leaves_tiles_with_fewer_than_two_partials_alone(device: torch.device) -> None:
    p = _make([2, 1, 1, 3, 1], 8, 128)
    p.partial_map[2] = -1
    p.partial_map[7] = 10**9
    p.final_map[1] = _int32([-5, 2**31 - 1])
    indptr = torch.cat([p.indptr, p.indptr[-1:].expand(4)])
    final = torch.cat([p.final_map, torch.full((4, 2), 2**31 - 1, dtype=torch.int32)])
    partial_map = torch.cat([p.partial_map, torch.full((9,), -(2**31), dtype=torch.int32)])
    stale = Partials(p.output, p.lse, indptr, final, partial_map, p.rows, p.q_len)
    want = _check(stale, *_out(p, device))
    assert want.written.tolist() == [True, False, False, True, False]


def test_mla_reduce_derives_rows_from_the_partial_map_when_no_final_map(
    device: torch.device,
) -> None:
    splits, q_len, nhead = [2, 3, 2], 2, 8
    gen = torch.Generator().manual_seed(3)
    bases = torch.arange(sum(splits), dtype=torch.int32) * q_len
    rows = sum(splits) * q_len
    data, lse = (
        torch.randn(rows, nhead, 512, generator=gen),
        torch.randn(rows, nhead, generator=gen),
    )
    indptr = _int32([0, *itertools.accumulate(splits)])
    p = Partials(data, lse, indptr, None, bases, len(splits) * q_len, q_len)
    want = _check(p, *_out(p, device))
    assert want.written.all()


def test_mla_reduce_honours_strides_of_out(device: torch.device) -> None:
    p = _make([2, 5, 3], 6, 128, q_len=2)
    wide = torch.full((p.rows + 1, 15, 136), 7.0, dtype=torch.bfloat16, device=device)
    out = wide[: p.rows, 1:13:2, :128]
    _check(p, out, torch.empty(p.rows, 6, device=device))
    out.fill_(7.0)
    assert (wide == 7.0).all(), "out: expected nothing written outside the view"


def test_mla_reduce_repeats_bit_for_bit(device: torch.device) -> None:
    p = _make([33, 7], 16, 512)
    (first, first_lse), (again, again_lse) = _out(p, device), _out(p, device)
    _reduce(p, first, first_lse)
    for _ in range(20):
        _reduce(p, again, again_lse)
        assert torch.equal(first, again)
        assert torch.equal(first_lse, again_lse)


def test_mla_reduce_accepts_nothing_to_do(device: torch.device) -> None:
    out = torch.full((3, 4, 64), 7.0, dtype=torch.bfloat16, device=device)
    empty = Partials(
        torch.empty(0, 4, 64), torch.empty(0, 4), _int32([0, 0]), _int32([[0, 3]]), _int32([]), 3, 1
    )
    _reduce(empty, out, None)
    assert (out == 7).all()
