# SPDX-License-Identifier: MIT
"""What MLA decode may read and write: poison, stale tails, strides, addresses past 4 GiB."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hipdecode.testing import cases, compare, reference
from hipdecode.testing.calls import Checker, decode
from hipdecode.testing.cases import Case

ROUTES = ("hk-1", "hk-3", "persistent")
NAN = float("nan")

TABLE_CASES = [
    Case(kv_lens=(70, 33), q_lens=(2, 1), tail="minus_one"),
    Case(kv_lens=(70, 33), q_lens=(2, 1), tail="stale", page_size=16),
    Case(kv_lens=(70, 33), q_lens=(2, 1), tail="capacity", page_size=64),
    Case(kv_lens=(500,), q_lens=(1,), tail="capacity"),
    Case(kv_lens=(0, 0), q_lens=(1, 1), tail="minus_one"),
    Case(kv_lens=(140, 90), q_lens=(3, 1), holes=3),
    Case(kv_lens=(140, 290), q_lens=(3, 1), holes=2, page_size=16),
    Case(kv_lens=(70,), q_lens=(2,), holes=1),
    Case(kv_lens=(200,), q_lens=(4,), holes=5, q_dtype="fp8_e4m3fnuz", kv_dtype="fp8_e4m3fnuz"),
    Case(kv_lens=(150, 150), q_lens=(1, 2), repeat_pages=True),
    Case(kv_lens=(150, 150), q_lens=(1, 2), repeat_pages=True, page_size=16),
    Case(kv_lens=(70, 33), q_lens=(2, 1), last_page_lens="garbage"),
    Case(kv_lens=(70, 33), q_lens=(2, 1), last_page_lens="none"),
    Case(kv_lens=(64, 192), q_lens=(2, 1), last_page_lens="none", page_size=64),
    Case(kv_lens=(70, 33), q_lens=(2, 1), padding_rows=5, nhead=3),
    Case(kv_lens=(90, 1), q_lens=(1, 1), q_dtype="fp8_e4m3fn", kv_dtype="fp8_e4m3fn", page_size=64),
    Case(kv_lens=(90, 1), q_lens=(1, 1), kv_dtype="fp8_e4m3fnuz", page_size=64),
]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", TABLE_CASES, ids=str)
def test_mla_decode_reads_only_tokens_of_the_request(
    check: Checker, case: Case, route: str
) -> None:
    check(case, route)


@pytest.mark.parametrize("route", ROUTES)
def test_mla_decode_skips_page_ids_past_the_pool(
    target: str, device: torch.device, route: str
) -> None:
    case = Case(kv_lens=(100, 90), q_lens=(2, 1), page_size=16)
    inputs = cases.make_inputs(case)
    inputs["kv_indices"][2] = inputs["kv_buffer"].shape[0]
    inputs["kv_indices"][5] = 2**31 - 1
    out, lse = decode(cases.to_device(inputs, device), route)
    compare.assert_decode_matches(case, inputs, out, lse, target=target, call=route)


# Engines keep one buffer for the largest batch; the batch of a call is that of qo_indptr.
@pytest.mark.parametrize("route", ROUTES)
def test_mla_decode_ignores_entries_past_the_batch(
    target: str, device: torch.device, route: str
) -> None:
    case = Case(kv_lens=(100, 0, 90), q_lens=(2, 1, 1), page_size=16)
    inputs = cases.make_inputs(case)
    garbage = torch.full((6,), 2**31 - 1, dtype=torch.int32)
    longer = cases.to_device(inputs, device).copy()
    for name in ("kv_indptr", "kv_last_page_lens", "kv_indices"):
        longer[name] = torch.cat([longer[name], garbage.to(device)])
    out, lse = decode(longer, route)
    compare.assert_decode_matches(case, inputs, out, lse, target=target, call=route)


# kv_indptr may promise more pages than kv_indices holds: what lies behind the list is not read.
@pytest.mark.parametrize("route", ROUTES)
def test_mla_decode_stops_at_the_end_of_the_page_list(
    target: str, device: torch.device, route: str
) -> None:
    case = Case(kv_lens=(70, 100), q_lens=(1, 2), seed=4)
    inputs = cases.make_inputs(case)
    whole = inputs["kv_indices"].clone()
    short = cases.to_device(inputs, device).copy()
    short["kv_indices"] = whole.to(device)[:150]
    inputs["kv_indices"][150:] = -1
    out, lse = decode(short, route)
    compare.assert_decode_matches(case, inputs, out, lse, target=target, call=route)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kv_dtype", ["bf16", "fp8_e4m3fn", "fp8_e4m3fnuz"])
def test_mla_decode_propagates_nan_of_a_visible_token_only(
    target: str, device: torch.device, kv_dtype: str, route: str
) -> None:
    q_dtype = "bf16" if kv_dtype == "bf16" else kv_dtype
    case = Case(q_dtype=q_dtype, kv_dtype=kv_dtype, q_lens=(4, 1), kv_lens=(100, 80), nhead=4)
    inputs = cases.make_inputs(case)
    newest_but_one = inputs["kv_indices"][98].long()
    where = torch.zeros(inputs["kv_buffer"].shape[:2], dtype=torch.bool)
    where[newest_but_one] = True
    cases.poison(inputs["kv_buffer"], where)
    out, lse = decode(cases.to_device(inputs, device), route)
    assert out[2:4].isnan().all(), "rows that see the NaN token: expected NaN"
    assert lse[2:4].isnan().all()
    compare.assert_decode_matches(case, inputs, out, lse, target=target, call=route)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("byte", [0x7F, 0xFF, 0x80])
@pytest.mark.parametrize("dtype", ["fp8_e4m3fn", "fp8_e4m3fnuz"])
def test_mla_decode_decodes_special_fp8_codes_by_flavour(
    target: str, device: torch.device, dtype: str, byte: int, route: str
) -> None:
    case = Case(q_dtype=dtype, kv_dtype=dtype, kv_lens=(70, 40), q_lens=(1, 1))
    inputs = cases.make_inputs(case)
    token = inputs["kv_indices"][10].long()
    inputs["kv_buffer"].view(torch.uint8)[token, 0, 0, 3] = byte
    out, lse = decode(cases.to_device(inputs, device), route)
    compare.assert_decode_matches(case, inputs, out, lse, target=target, call=route)


@pytest.mark.parametrize("route", ROUTES)
def test_mla_decode_keeps_nan_of_one_head_in_that_head(
    target: str, device: torch.device, route: str
) -> None:
    case = Case(nhead=20, q_lens=(1, 2), kv_lens=(100, 40))
    inputs = cases.make_inputs(case)
    inputs["q"][:, 5] = NAN
    inputs["q"][1, 16:] = NAN
    out, lse = decode(cases.to_device(inputs, device), route)
    compare.assert_decode_matches(case, inputs, out, lse, target=target, call=route)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("nhead", [3, 16])
def test_mla_decode_honours_strides_of_q_and_out(
    target: str, device: torch.device, nhead: int, route: str
) -> None:
    case = Case(nhead=nhead, q_lens=(2, 1, 3), kv_lens=(70, 130, 9))
    inputs = cases.to_device(cases.make_inputs(case), device)
    rows = inputs["q"].shape[0]
    wide_q = torch.full((rows, 2 * nhead, 640), NAN, dtype=torch.bfloat16, device=device)
    q = wide_q[:, ::2, :576]
    q.copy_(inputs["q"])
    wide_out = torch.full((rows + 1, 3 * nhead, 520), 7.0, dtype=torch.bfloat16, device=device)
    out = wide_out[:rows, 1::3, :512]
    inputs["q"] = q
    got, lse = decode(inputs, route, out=out)
    assert got.data_ptr() == out.data_ptr()
    compare.assert_decode_matches(case, inputs, out, lse, target=target, call=route)
    out.fill_(7.0)
    assert (wide_out == 7.0).all(), "out: expected nothing written outside the view"


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("page_size", [1, 16])
def test_mla_decode_honours_strides_of_the_pool(
    target: str, device: torch.device, page_size: int, route: str
) -> None:
    case = Case(q_lens=(2, 1), kv_lens=(70, 133), page_size=page_size)
    inputs = cases.to_device(cases.make_inputs(case), device)
    pages = inputs["kv_buffer"].shape[0]
    layers = torch.full((pages, 3, page_size, 1, 576), NAN, dtype=torch.bfloat16, device=device)
    layers[:, 1] = inputs["kv_buffer"]
    inputs["kv_buffer"] = layers[:, 1]
    out, lse = decode(inputs, route)
    compare.assert_decode_matches(case, inputs, out, lse, target=target, call=route)


@pytest.mark.parametrize("route", ROUTES)
def test_mla_decode_leaves_its_inputs_alone(device: torch.device, route: str) -> None:
    case = Case(q_lens=(2, 1), kv_lens=(70, 300), poison=False, tail="stale")
    inputs = cases.to_device(cases.make_inputs(case), device)
    tensors = {k: v.clone() for k, v in inputs.items() if isinstance(v, torch.Tensor)}
    decode(inputs, route)
    for name, before in tensors.items():
        assert torch.equal(inputs[name], before), f"{name}: expected to be unchanged"


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("boundary", [2**31, 2**32])
@pytest.mark.parametrize("dtype", ["bf16", "fp8_e4m3fn"])
def test_mla_decode_addresses_pools_past_4_gib(
    target: str, device: torch.device, dtype: str, boundary: int, route: str, tmp_path: Path
) -> None:
    if device.type != "cpu":
        pytest.skip("lazily mapped pools are host memory: runs on any CPU machine")
    case = Case(q_dtype=dtype, kv_dtype=dtype, kv_lens=(150, 40), q_lens=(1, 2))
    inputs = cases.make_inputs(case)
    small = inputs["kv_buffer"]
    first = boundary // 576 - small.shape[0] // 2
    slots = first + small.shape[0]
    # A sparse file: only the pages that hold the requests take memory.
    size = slots * 576 * small.dtype.itemsize
    memory = torch.from_file(str(tmp_path / "pool"), shared=True, size=size, dtype=torch.uint8)
    pool = memory.view(small.dtype).view(slots, 1, 1, 576)
    pool[first:] = small
    inputs["kv_buffer"] = pool
    inputs["kv_indices"] += first
    out, lse = decode(inputs, route)
    want = reference.mla_decode(**inputs)
    compare.assert_decode_matches(case, inputs, out, lse, target=target, want=want, call=route)
