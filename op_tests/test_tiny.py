# SPDX-License-Identifier: MIT
"""Smoke: one small decode per route and dtype family, against the oracle, in a few seconds."""

from __future__ import annotations

import pytest

from hipdecode.testing.calls import Checker
from hipdecode.testing.cases import Case

CASES = [
    Case(nhead=12, q_lens=(1, 2, 1), kv_lens=(70, 0, 200), page_size=16),
    Case(
        nhead=16,
        q_lens=(2,),
        kv_lens=(150,),
        q_dtype="fp8_e4m3fn",
        kv_dtype="fp8_e4m3fn",
        q_scale=0.5,
        kv_scale=2.0,
    ),
]


@pytest.mark.parametrize("route", ["hk-1", "hk-2", "persistent"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tiny_decode_matches_reference(check: Checker, case: Case, route: str) -> None:
    check(case, route)
