# SPDX-License-Identifier: MIT
"""MLA decode against the fp64 oracle: dtypes, heads, query rows, pages, lengths, scales.

Every call writes into outputs filled with NaN and reads pools whose unused memory is NaN.
"""

from __future__ import annotations

import itertools

import pytest

from hipdecode.testing.calls import Checker
from hipdecode.testing.cases import DTYPE_PAIRS, Case

ROUTES = ("hk-1", "hk-3", "persistent")
HEADS = (1, 3, 4, 8, 12, 15, 16, 17, 24, 32, 48, 64, 96, 128)
FEW_HEADS = (1, 12, 17, 128)
# Around every tile edge that a kernel may have (12, 16, 24, 64, 72, 96, 128 tokens) and their sums.
_TILES = (12, 16, 24, 48, 64, 72, 96, 128, 144, 192, 256)
EDGES = sorted({n + d for n in _TILES for d in (-1, 0, 1)})
LENGTHS = (0, 1, 2, 3, *EDGES)


def _pair(index: int, **more: object) -> Case:
    q_dtype, kv_dtype = DTYPE_PAIRS[index]
    scales = {}
    if kv_dtype.startswith("fp8"):
        scales["kv_scale"] = 0.75
    if q_dtype.startswith("fp8"):
        scales["q_scale"] = 1.5
    return Case(q_dtype=q_dtype, kv_dtype=kv_dtype, **scales, **more)  # type: ignore[arg-type]


BF16, FP8 = 0, 6

HEAD_CASES = [
    _pair(pair, nhead=nhead, q_lens=(1, 2, 1), kv_lens=(70, 0, 131), seed=nhead)
    for pair in range(len(DTYPE_PAIRS))
    for nhead in (HEADS if pair in (BF16, FP8) else FEW_HEADS)
]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", HEAD_CASES, ids=str)
def test_mla_decode_matches_reference_for_any_head_count(
    check: Checker, case: Case, route: str
) -> None:
    check(case, route)


TILE_CASES = [
    _pair(pair, nhead=nhead, q_lens=(2, 1, 0, 2), kv_lens=(190, 0, 3, 321), seed=nhead)
    for pair, nhead in itertools.product((BF16, FP8), (5, 24, 48, 128))
]


@pytest.mark.parametrize("tile_rows", [16, 32, 64, 128])
@pytest.mark.parametrize("route", ["hk-1", "hk-3"])
@pytest.mark.parametrize("case", TILE_CASES, ids=str)
def test_mla_decode_matches_reference_in_tiles_of_any_rows(
    check: Checker, case: Case, route: str, tile_rows: int
) -> None:
    check(case, route, tile_rows=tile_rows)


Q_LEN_CASES = [
    _pair(BF16, nhead=nhead, q_lens=(q_len,) * 3, kv_lens=(q_len, 65, 200), causal=causal)
    for q_len, nhead, causal in itertools.product((*range(1, 9), 16), (3, 16), (True, False))
] + [
    _pair(FP8, nhead=8, q_lens=(1, 5, 16, 0, 3), kv_lens=(90, 7, 150, 30, 3), page_size=16),
    _pair(BF16, nhead=128, q_lens=(16,), kv_lens=(100,)),
    _pair(BF16, nhead=32, q_lens=(4, 4, 4, 4), kv_lens=(64, 128, 1, 5)),
    _pair(BF16, nhead=17, q_lens=(1, 2, 3, 4, 5, 6, 7, 8), kv_lens=(9, 1, 77, 64, 5, 130, 6, 9)),
    *(
        _pair(BF16, nhead=nhead, q_lens=(q_len, q_len), kv_lens=(90, 3))
        for nhead, q_len in ((48, 3), (96, 2), (43, 3), (64, 4), (127, 2), (15, 9), (33, 8))
    ),
    _pair(FP8, nhead=24, q_lens=(6, 3), kv_lens=(300, 2), causal=False, page_size=64),
]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", Q_LEN_CASES, ids=str)
def test_mla_decode_masks_each_query_row(check: Checker, case: Case, route: str) -> None:
    check(case, route)


PAGE_CASES = [
    _pair(pair, nhead=16, q_lens=(1,) * len(lens), kv_lens=lens, page_size=page_size, seed=5)
    for pair in (BF16, FP8)
    for page_size, lens in (
        (1, LENGTHS),
        (16, (*range(1, 34), *LENGTHS)),
        (64, (*range(1, 130, 7), *LENGTHS)),
    )
]


@pytest.mark.parametrize("route", ["hk-1", "hk-2", "hk-4", "persistent"])
@pytest.mark.parametrize("case", PAGE_CASES, ids=str)
def test_mla_decode_stops_at_every_context_length(check: Checker, case: Case, route: str) -> None:
    check(case, route)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kv_len", LENGTHS)
def test_mla_decode_matches_reference_for_one_request(
    check: Checker, kv_len: int, route: str
) -> None:
    page_size = (1, 16, 64)[kv_len % 3]
    check(_pair(BF16, nhead=8, q_lens=(2,), kv_lens=(kv_len,), page_size=page_size), route)


SPLIT_CASES = [
    _pair(BF16, nhead=16, q_lens=(1, 4), kv_lens=(1500, 333)),
    _pair(FP8, nhead=32, q_lens=(4, 1), kv_lens=(700, 1025), page_size=64),
    _pair(2, nhead=12, q_lens=(2, 2, 2), kv_lens=(63, 640, 0), page_size=16),
]


@pytest.mark.parametrize("splits", [1, 2, 3, 4, 5, 7, 8, 16, 32])
@pytest.mark.parametrize("case", SPLIT_CASES, ids=str)
def test_mla_decode_hk_is_right_for_any_split_count(
    check: Checker, case: Case, splits: int
) -> None:
    check(case, f"hk-{splits}")


EMPTY_CASES = [
    Case(q_lens=(1, 1, 1), kv_lens=(40, 0, 80)),
    Case(q_lens=(4, 4), kv_lens=(0, 9), nhead=3),
    Case(q_lens=(1, 1, 1, 1), kv_lens=(0, 0, 0, 0)),
    Case(q_lens=(2,), kv_lens=(0,), page_size=64),
    Case(q_lens=(0, 2, 0), kv_lens=(10, 90, 0), padding_rows=3),
    Case(q_lens=(), kv_lens=()),
    Case(q_lens=(), kv_lens=(), padding_rows=2),
    Case(q_lens=(0, 0), kv_lens=(5, 0)),
    Case(q_lens=(5, 8), kv_lens=(2, 1), nhead=16),
]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", EMPTY_CASES, ids=str)
def test_mla_decode_writes_zero_where_nothing_is_visible(
    check: Checker, case: Case, route: str
) -> None:
    check(case, route)


SCALE_CASES = [
    Case(q_dtype=q, kv_dtype=kv, q_scale=qs, kv_scale=ks, scale_shape=shape, kv_lens=(150,), seed=2)
    for q, kv, qs, ks, shape in (
        ("fp8_e4m3fn", "fp8_e4m3fn", None, None, (1,)),
        ("fp8_e4m3fn", "fp8_e4m3fn", 0.05, 1.0, ()),
        ("fp8_e4m3fn", "fp8_e4m3fn", None, 0.5, ()),
        ("fp8_e4m3fnuz", "fp8_e4m3fnuz", 0.5, 0.05, (1,)),
        ("fp8_e4m3fnuz", "fp8_e4m3fnuz", 2.0, None, ()),
        ("bf16", "fp8_e4m3fn", None, 0.05, ()),
        ("bf16", "fp8_e4m3fn", 123.0, 0.5, (1,)),
        ("fp16", "fp8_e4m3fnuz", 123.0, 1.0, ()),
        ("bf16", "bf16", 123.0, 77.0, (1,)),
    )
]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", SCALE_CASES, ids=str)
def test_mla_decode_applies_scales_of_fp8_operands_only(
    check: Checker, case: Case, route: str
) -> None:
    check(case, route)


@pytest.mark.parametrize("route", ROUTES)
def test_mla_decode_defaults_to_inverse_root_of_the_head_dimension(
    check: Checker, route: str
) -> None:
    check(Case(sm_scale=None, q_lens=(2,)), route)


@pytest.mark.parametrize("route", ROUTES)
def test_mla_decode_of_scale_zero_takes_the_mean_of_the_keys_that_a_row_sees(
    check: Checker, route: str
) -> None:
    check(Case(sm_scale=0.0, q_lens=(1, 3), kv_lens=(90, 200)), route)


HEAD_DIM_CASES = [
    _pair(pair, head_dim_qk=qk, head_dim_v=v, nhead=nhead, q_lens=(1, 3), kv_lens=(50, 200))
    for qk, v in ((512, 512), (96, 64), (64, 64))
    for pair in (BF16, FP8)
    for nhead in (4, 17)
] + [_pair(2, head_dim_qk=512, page_size=64), _pair(1, head_dim_qk=96, head_dim_v=64)]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", HEAD_DIM_CASES, ids=str)
def test_mla_decode_matches_reference_for_other_head_dimensions(
    check: Checker, case: Case, route: str
) -> None:
    check(case, route)


CONTENT_CASES = [
    _pair(pair, content=content, nhead=16, q_lens=(3, 1), kv_lens=(180, 77))
    for pair in (BF16, 1, FP8)
    for content in ("large", "one_hot")
]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", CONTENT_CASES, ids=str)
def test_mla_decode_survives_adversarial_logits(check: Checker, case: Case, route: str) -> None:
    check(case, route)


LONG_CASES = [
    Case(nhead=16, q_lens=(1, 1), kv_lens=(8192, 3000), page_size=64),
    Case(nhead=128, q_lens=(4,), kv_lens=(4097,)),
    _pair(FP8, nhead=32, q_lens=(4, 4), kv_lens=(8191, 5000)),
    Case(nhead=4, q_lens=(1,) * 63, kv_lens=tuple(range(3, 1000, 16))),
    Case(nhead=16, q_lens=(1,) * 1000, kv_lens=(5,) * 1000, head_dim_qk=96, head_dim_v=64),
]


@pytest.mark.parametrize("route", ["hk-1", "hk-16", "persistent"])
@pytest.mark.parametrize("case", LONG_CASES, ids=str)
def test_mla_decode_matches_reference_for_long_contexts(
    check: Checker, case: Case, route: str
) -> None:
    check(case, route)
