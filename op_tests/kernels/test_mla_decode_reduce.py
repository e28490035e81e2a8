# SPDX-License-Identifier: MIT
"""The merge of the splits of single-row requests, and the decode that ends with it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import hipdecode
from hipdecode.errors import BadArgument
from hipdecode.testing import compare, reference
from hipdecode.testing.calls import captured

NAN, INF = math.nan, math.inf
FORMS = [
    (splits, batch, vec)
    for splits in (1, 2, 4, 8, 16)
    for batch in (1, 2, 4, 8)
    for vec in (1, 2, 4)
    if batch <= splits
]
SPLITS = (1, 2, 4, 8, 16)


def _corners(splits: int) -> list[int]:
    return [0, 1, 63, 64, 65, 64 * splits, 64 * splits + 1, 5000]


def _used(kv_len: int, splits: int) -> int:
    return min(-(-kv_len // 64), splits)


class Merge:
    """Random partials, NaN wherever nothing may be read."""

    def __init__(self, kv_lens: list[int], splits: int, nhead: int, head_dim_v: int) -> None:
        gen = torch.Generator().manual_seed(splits * 1000 + nhead)
        self.kv_lens, self.splits = kv_lens, splits
        rows = len(kv_lens) * splits
        self.output = torch.randn(rows, nhead, head_dim_v, generator=gen)
        self.lse = torch.randn(rows, nhead, generator=gen) * 3
        for t, kv_len in enumerate(kv_lens):
            unused = slice(t * splits + _used(kv_len, splits), (t + 1) * splits)
            self.output[unused], self.lse[unused] = NAN, NAN

    def indptr(self) -> Tensor:
        return torch.tensor([0, *itertools.accumulate(self.kv_lens)], dtype=torch.int32)

    def expected(self) -> reference.Attention:
        """Rows of one partial are merged with a partial that saw nothing: the oracle takes two."""
        want = reference.Attention.blank(len(self.kv_lens), *self.output.shape[1:])
        empty = torch.full_like(self.lse[:1], -INF)
        data = torch.cat([self.output, torch.zeros_like(self.output[:1])])
        logs = torch.cat([self.lse, empty])
        for t, kv_len in enumerate(self.kv_lens):
            used = _used(kv_len, self.splits)
            rows = [*range(t * self.splits, t * self.splits + used), *[data.shape[0] - 1] * 2]
            one = reference.mla_reduce(
                data, logs,
                torch.tensor([0, len(rows)]), torch.tensor([[0, 1]]), torch.tensor(rows),
                rows=1,
            )  # fmt: skip
            want.put(slice(t, t + 1), one)
        return want

    def check(self, out: Tensor, batch: int, vec: int) -> None:
        out.fill_(7.0)
        hipdecode.mla_decode_reduce(
            self.output.to(out.device), self.lse.to(out.device), out, self.indptr().to(out.device),
            len(self.kv_lens), batch, vec, self.splits,
        )  # fmt: skip
        want = self.expected()
        allowed = compare.allowed_output(want, out.dtype, "")
        names = compare.plain_names("row", "head", "column")
        compare.assert_close(out, want.o, allowed, what="reduced", names=names)


def _out(merge: Merge, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    shape = (len(merge.kv_lens), *merge.output.shape[1:])
    return torch.empty(shape, dtype=dtype, device=device)


@pytest.mark.parametrize(("splits", "batch", "vec"), FORMS)
def test_mla_decode_reduce_reads_only_splits_that_have_keys(
    splits: int, batch: int, vec: int, device: torch.device
) -> None:
    merge = Merge(_corners(splits), splits, 16, 512)
    merge.check(_out(merge, device), batch, vec)


@pytest.mark.parametrize(("nhead", "head_dim_v"), [(1, 1), (3, 70), (5, 33), (17, 130), (128, 64)])
@pytest.mark.parametrize("vec", [1, 2, 4])
def test_mla_decode_reduce_takes_any_heads_and_columns(
    nhead: int, head_dim_v: int, vec: int, device: torch.device
) -> None:
    merge = Merge([130, 0, 1000], 4, nhead, head_dim_v)
    merge.check(_out(merge, device, torch.float16), 4, vec)


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_mla_decode_reduce_writes_to_any_address_and_stride(
    shift: int, device: torch.device
) -> None:
    merge = Merge([500, 64, 0], 8, 6, 128)
    wide = torch.full((4, 15, 139), 7.0, dtype=torch.bfloat16, device=device)
    out = wide[:3, 1:13:2, shift : shift + 128]
    merge.check(out, 4, 4)
    out.fill_(7.0)
    assert (wide == 7.0).all(), "reduced: expected nothing written outside the view"


def test_mla_decode_reduce_reads_partials_of_any_address(device: torch.device) -> None:
    merge = Merge([500, 64], 4, 4, 64)
    flat = torch.empty(merge.output.numel() + 1)
    flat[1:] = merge.output.flatten()
    merge.output = flat.to(device)[1:].view(merge.output.shape)
    assert merge.output.data_ptr() % 8 == 4
    moved = merge.output
    out = _out(merge, device)
    merge.output = merge.output.cpu()
    want = merge.expected()
    hipdecode.mla_decode_reduce(
        moved, merge.lse.to(device), out, merge.indptr().to(device), 2, 2, 4, 4
    )
    allowed = compare.allowed_output(want, out.dtype, "")
    compare.assert_close(out, want.o, allowed, what="reduced")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_mla_decode_reduce_never_adds_a_split_that_saw_no_key(
    value: float, device: torch.device
) -> None:
    merge = Merge([300, 300, 300], 4, 16, 128)
    merge.lse[1], merge.output[1] = -INF, value
    merge.lse[4:8], merge.output[4:8] = -INF, value
    out = _out(merge, device)
    merge.check(out, 2, 4)
    assert (out[1] == 0).all()


def test_mla_decode_reduce_repeats_bit_for_bit_whatever_batch_and_vec(
    device: torch.device,
) -> None:
    merge = Merge([2000, 700, 64], 8, 16, 512)
    results = []
    for batch, vec in itertools.product((1, 2, 4, 8), (1, 2, 4)):
        results.append(_out(merge, device))
        merge.check(results[-1], batch, vec)
    assert all(torch.equal(results[0], other) for other in results)


BAD: dict[str, object] = {
    "partial_output": torch.zeros(16, 512),
    "partial_lse": torch.zeros(15, 4),
    "reduced": torch.zeros(4, 4, 64),
    "kv_indptr": torch.zeros(5, dtype=torch.int64),
    "T": 5,
    "batch": 3,
    "vec": 8,
    "num_splits": 5,
}


@pytest.mark.parametrize("name", BAD)
def test_mla_decode_reduce_refuses_bad_arguments(name: str) -> None:
    out = torch.full((4, 4, 64), 7.0, dtype=torch.bfloat16)
    arguments: dict[str, object] = {
        "partial_output": torch.zeros(16, 4, 64),
        "partial_lse": torch.zeros(16, 4),
        "reduced": out,
        "kv_indptr": torch.arange(5, dtype=torch.int32) * 300,
        "T": 4,
        "batch": 4,
        "vec": 1,
        "num_splits": 4,
        name: BAD[name],
    }
    with pytest.raises(BadArgument, match=rf"({name}|kv_indptr|partial_output)[\s\S]*expected"):
        hipdecode.mla_decode_reduce(**arguments)
    assert (out == 7).all()


def _decode(
    kv_lens: list[int], q_lens: list[int], splits: int, device: torch.device, nhead: int = 16
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out and lse of the two kernels, and of hk without splits; partials start as NaN."""
    gen = torch.Generator().manual_seed(7)
    rows, tokens = sum(q_lens), sum(kv_lens)
    q = torch.randn(rows + 1, nhead, 576, generator=gen).to(device, torch.bfloat16)
    kv = torch.randn(tokens + 3, 1, 1, 576, generator=gen).to(device, torch.bfloat16)
    indices = torch.randperm(tokens + 3, generator=gen)[:tokens].to(device, torch.int32)
    qo_indptr, kv_indptr = (
        torch.tensor([0, *itertools.accumulate(lens)], dtype=torch.int32, device=device)
        for lens in (q_lens, kv_lens)
    )
    index = (qo_indptr, kv_indptr, indices)
    want, want_lse = hipdecode.mla_decode(
        q, kv, *index, max_seqlen_q=1, route="hk", num_splits=1, return_lse=True
    )
    out, lse = torch.full_like(want, 7.0), torch.full_like(want_lse, 7.0)
    partials = torch.full(((rows + 1) * splits, nhead, 512), NAN, device=device)
    logs = torch.full(partials.shape[:2], NAN, device=device)
    torch.ops.hipdecode.mla_reduce_decode(
        q, kv, out, lse, *index, None, partials, logs, None, None, 8, 4, splits, 576**-0.5
    )
    return out, lse, want, want_lse


@pytest.mark.parametrize("splits", SPLITS)
def test_mla_reduce_decode_equals_the_unsplit_decode(splits: int, device: torch.device) -> None:
    kv_lens = [0, 1, 63, 64, 65, 64 * splits, 64 * splits + 1, 300]
    out, lse, want, want_lse = _decode(kv_lens, [1] * len(kv_lens), splits, device)
    torch.testing.assert_close(out.float(), want.float(), atol=0.02, rtol=0.02)
    torch.testing.assert_close(lse, want_lse, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("nhead", [1, 5, 128])
def test_mla_reduce_decode_takes_any_heads_and_requests_without_rows(
    nhead: int, device: torch.device
) -> None:
    kv_lens, q_lens = [70, 200, 0, 130], [1, 0, 1, 1]
    out, lse, want, want_lse = _decode(kv_lens, q_lens, 4, device, nhead)
    torch.testing.assert_close(out.float(), want.float(), atol=0.02, rtol=0.02)
    torch.testing.assert_close(lse, want_lse, atol=1e-3, rtol=1e-3)
    assert (out[-1] == 0).all(), "expected a row that no request owns to be zero"


def test_mla_decode_reduce_addresses_partials_past_2_to_the_31(target: str) -> None:
    if not target.startswith("cpu"):
        pytest.skip("lazily mapped memory: a CPU target runs it")
    splits, nhead, head_dim_v = 16, 16, 512
    rows = 2**31 // (splits * nhead * head_dim_v) + 2
    output = torch.empty(rows * splits, nhead, head_dim_v)  # untouched pages take no memory
    lse = torch.empty(rows * splits, nhead)
    indptr = torch.zeros(rows + 1, dtype=torch.int32)
    indptr[-1] = 65
    output[-splits], output[1 - splits] = 1.0, 3.0
    lse[-splits:] = 0.0
    reduced = torch.full((rows, nhead, head_dim_v), 7.0, dtype=torch.bfloat16)
    hipdecode.mla_decode_reduce(output, lse, reduced, indptr, rows, 8, 4, splits)
    assert (reduced[-1] == 2).all()
    assert (reduced[:-1] == 0).all()


def test_mla_decode_reduce_replays_with_other_lengths(device: torch.device) -> None:
    merges = [Merge(lens, 4, 16, 512) for lens in ([300, 0, 64], [0, 1000, 65], [64, 64, 129])]
    first = merges[0]
    output, lse = first.output.to(device), first.lse.to(device)
    indptr, out = first.indptr().to(device), _out(first, device)
    call = captured(
        lambda: hipdecode.mla_decode_reduce(output, lse, out, indptr, 3, 4, 4, 4), device
    )
    for merge in merges[1:] + merges[:1]:
        output.copy_(merge.output)
        lse.copy_(merge.lse)
        indptr.copy_(merge.indptr())
        out.fill_(7.0)
        call()
        want = merge.expected()
        allowed = compare.allowed_output(want, out.dtype, "")
        compare.assert_close(out, want.o, allowed, what="reduced")
