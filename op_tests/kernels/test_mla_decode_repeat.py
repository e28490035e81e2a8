# SPDX-License-Identifier: MIT
"""What must not change the result of MLA decode: repetition, neighbours, order, reused buffers."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import hipdecode
from hipdecode.testing import cases, compare
from hipdecode.testing.calls import decode
from hipdecode.testing.cases import Case, MlaInputs

ROUTES = ("hk-1", "hk-4", "persistent")
BASE = Case(nhead=12, q_lens=(1, 3, 1, 2), kv_lens=(700, 65, 0, 129), page_size=16)


def _request(inputs: MlaInputs, batch: int) -> MlaInputs:
    """The call that holds one request of a batch alone."""
    rows = slice(int(inputs["qo_indptr"][batch]), int(inputs["qo_indptr"][batch + 1]))
    pages = slice(int(inputs["kv_indptr"][batch]), int(inputs["kv_indptr"][batch + 1]))
    alone = inputs.copy()
    alone["q"] = inputs["q"][rows]
    for name in ("qo_indptr", "kv_indptr"):
        bounds = inputs[name][batch : batch + 2]
        alone[name] = (bounds - bounds[0]).contiguous()
    alone["kv_indices"] = inputs["kv_indices"][pages].contiguous()
    last = inputs["kv_last_page_lens"]
    assert last is not None
    alone["kv_last_page_lens"] = last[batch : batch + 1].contiguous()
    return alone


def _assert_same_bits(got: torch.Tensor, want: torch.Tensor, what: str) -> None:
    same = got.view(torch.uint8) == want.view(torch.uint8)
    assert same.all(), f"{what}: expected equal bits, {int((~same).sum())} bytes differ"


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", ["bf16", "fp8_e4m3fn"])
def test_mla_decode_repeats_bit_for_bit(device: torch.device, dtype: str, route: str) -> None:
    case = dataclasses.replace(BASE, q_dtype=dtype, kv_dtype=dtype)
    inputs = cases.to_device(cases.make_inputs(case), device)
    first, first_lse = decode(inputs, route)
    for turn in range(20):
        out, lse = decode(inputs, route)
        _assert_same_bits(out, first, f"turn {turn}, o")
        _assert_same_bits(lse, first_lse, f"turn {turn}, lse")


@pytest.mark.parametrize("splits", [None, 1, 4])
def test_mla_decode_hk_gives_a_request_the_same_bits_alone(
    device: torch.device, splits: int | None
) -> None:
    inputs = cases.to_device(cases.make_inputs(BASE), device)
    call = "hk" if splits is None else f"hk-{splits}"
    together, together_lse = decode(inputs, call, batch_invariant=True)
    for batch in range(len(BASE.q_lens)):
        out, lse = decode(_request(inputs, batch), call, batch_invariant=True)
        rows = slice(int(inputs["qo_indptr"][batch]), int(inputs["qo_indptr"][batch + 1]))
        _assert_same_bits(out, together[rows].contiguous(), f"request {batch}, o")
        _assert_same_bits(lse, together_lse[rows].contiguous(), f"request {batch}, lse")


def test_mla_decode_hk_has_the_same_bits_whether_or_not_its_blocks_run_at_once(
    device: torch.device,
) -> None:
    # 64 x 4 blocks are more than any GPU runs at once; those of one request wait for each other
    case = dataclasses.replace(BASE, q_lens=(1,) * 64, kv_lens=(300, 65, 0, 129) * 16)
    inputs = cases.to_device(cases.make_inputs(case), device)
    crowd, crowd_lse = decode(inputs, "hk-4")
    for batch in (0, 2, 63):
        out, lse = decode(_request(inputs, batch), "hk-4")
        _assert_same_bits(out, crowd[batch : batch + 1].contiguous(), f"request {batch}, o")
        _assert_same_bits(lse, crowd_lse[batch : batch + 1].contiguous(), f"request {batch}, lse")


def test_mla_decode_batch_invariant_holds_when_the_route_is_free(device: torch.device) -> None:
    inputs = cases.to_device(cases.make_inputs(BASE), device)
    options = {"return_lse": True, "batch_invariant": True}
    together, _ = hipdecode.mla_decode(**inputs, **options)
    for batch in range(len(BASE.q_lens)):
        out, _ = hipdecode.mla_decode(**_request(inputs, batch), **options)
        rows = slice(int(inputs["qo_indptr"][batch]), int(inputs["qo_indptr"][batch + 1]))
        _assert_same_bits(out, together[rows].contiguous(), f"request {batch}, o")


@pytest.mark.parametrize("route", ROUTES)
def test_mla_decode_gives_a_request_the_same_result_alone(
    target: str, device: torch.device, route: str
) -> None:
    inputs = cases.make_inputs(BASE)
    for batch in range(len(BASE.q_lens)):
        alone = _request(inputs, batch)
        out, lse = decode(cases.to_device(alone, device), route)
        compare.assert_decode_matches(BASE, alone, out, lse, target=target, call=route)


@pytest.mark.parametrize("route", ROUTES)
def test_mla_decode_is_right_for_heads_in_any_company(
    target: str, device: torch.device, route: str
) -> None:
    case = dataclasses.replace(BASE, nhead=40)
    inputs = cases.make_inputs(case)
    for heads in (slice(0, 3), slice(0, 16), slice(7, 24)):
        fewer = inputs.copy()
        fewer["q"] = inputs["q"][:, heads]
        out, lse = decode(cases.to_device(fewer, device), route)
        compare.assert_decode_matches(case, fewer, out, lse, target=target, call=route)


def _variants() -> list[Case]:
    """Twenty calls that fit the same buffers: batch 4, up to 8 rows, up to 60 pages."""
    lengths = [(700, 65, 0, 129), (0, 0, 0, 0), (1, 2, 3, 900), (16, 240, 16, 500)]
    rows = [(1, 3, 1, 2), (2, 2, 2, 2), (1, 1, 1, 1), (0, 4, 4, 0), (3, 0, 1, 1)]
    return [
        dataclasses.replace(BASE, kv_lens=kv, q_lens=q, seed=i)
        for i, (kv, q) in enumerate((kv, q) for kv in lengths for q in rows)
    ]


@pytest.mark.parametrize("route", ROUTES)
def test_mla_decode_follows_new_contents_of_the_same_buffers(
    target: str, device: torch.device, route: str
) -> None:
    q = torch.zeros(8, 12, 576, dtype=torch.bfloat16, device=device)
    pool = torch.zeros(80, 16, 1, 576, dtype=torch.bfloat16, device=device)
    indices = torch.full((60,), -1, dtype=torch.int32, device=device)
    qo_indptr, kv_indptr = (torch.zeros(5, dtype=torch.int32, device=device) for _ in range(2))
    last = torch.zeros(4, dtype=torch.int32, device=device)
    out = torch.full((8, 12, 512), float("nan"), dtype=torch.bfloat16, device=device)
    lse = torch.full((8, 12), float("nan"), device=device)
    for case in _variants():
        new = cases.make_inputs(case)
        pool.fill_(float("nan"))
        indices.fill_(-1)
        pool[: new["kv_buffer"].shape[0]] = new["kv_buffer"]
        indices[: new["kv_indices"].shape[0]] = new["kv_indices"]
        q[: new["q"].shape[0]] = new["q"]
        qo_indptr.copy_(new["qo_indptr"])
        kv_indptr.copy_(new["kv_indptr"])
        last.copy_(new["kv_last_page_lens"])
        inputs = new.copy()
        inputs.update(q=q, kv_buffer=pool, kv_indices=indices, max_seqlen_q=4)
        inputs.update(qo_indptr=qo_indptr, kv_indptr=kv_indptr, kv_last_page_lens=last)
        decode(inputs, route, out=out, lse=lse)
        compare.assert_decode_matches(case, inputs, out, lse, target=target, call=route)
        fresh, fresh_lse = decode(inputs, route)
        _assert_same_bits(out, fresh, f"{case}, o")
        _assert_same_bits(lse, fresh_lse, f"{case}, lse")
