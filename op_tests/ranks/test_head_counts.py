# SPDX-License-Identifier: MIT
"""Head counts that tensor parallelism leaves a rank: each has a route, and the route a kernel."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import hipdecode
from hipdecode import registry
from hipdecode.dispatch import DecodeShape, route_mla_decode
from hipdecode.testing import cases, compare
from hipdecode.testing.calls import prepared
from hipdecode.testing.cases import Case

HEADS = {"128 over 8": 16, "128 over 16": 8, "64 over 16": 4, "96 over 8": 12, "96 over 16": 6}
FAMILIES = {"cpu": ("bf16", "fp8_e4m3fn"), "gfx950": ("bf16", "fp8_e4m3fn"),
            "gfx942": ("bf16", "fp8_e4m3fnuz"), "sm_90": ("bf16", "fp8_e4m3fn")}  # fmt: skip
ARTEFACTS = {"cpu": "cpu-avx2"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("nhead", HEADS.values(), ids=HEADS)
def test_head_counts_of_tensor_parallel_ranks_have_a_route_and_its_kernel(
    nhead: int, family: str
) -> None:
    known, artefact = registry.default(), ARTEFACTS.get(family, family)
    for q_len, kv_dtype, kv_len, route in product(
        (1, 4), FAMILIES[family], (None, 100, 60000), (None, "hk", "persistent")
    ):
        shape = DecodeShape(
            family=family, compute_units=120, batch=8, nhead=nhead, q_len=q_len, kv_len=kv_len,
            q_dtype="bf16", kv_dtype=kv_dtype, page_size=64, route=route,
        )  # fmt: skip
        got = route_mla_decode(shape)
        assert got.route == (route or got.route)
        rows = registry.wanted_rows(family, nhead * q_len, got.tile_rows)
        name = f"mla_decode_{got.route}/576-512-bf16-{kv_dtype}-{rows}"
        assert known.builds(known.fit(name, artefact), artefact), name


@pytest.mark.parametrize("nhead", HEADS.values(), ids=HEADS)
def test_a_free_route_decodes_the_heads_of_a_tensor_parallel_rank(
    nhead: int, target: str, device: torch.device
) -> None:
    case = Case(nhead=nhead, q_lens=(4, 1), kv_lens=(150, 33))
    inputs, want = prepared(case)
    placed = cases.to_device(inputs, device)
    for kv_len in (None, 100):
        o, lse = hipdecode.mla_decode(**placed, kv_len=kv_len, return_lse=True)
        compare.assert_decode_matches(case, inputs, o, lse, target=target, want=want)
