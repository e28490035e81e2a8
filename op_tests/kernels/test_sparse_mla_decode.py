# SPDX-License-Identifier: MIT
"""Sparse MLA decode against the fp64 oracle: true shapes of both models, and every hazard.

Every call writes into outputs filled with NaN and reads pools whose unused memory is NaN.
"""

from __future__ import annotations

import pytest
import torch

import hipdecode
from hipdecode import registry
from hipdecode import target as targets
from hipdecode.testing.sparse_cases import (
    SparseCase,
    assert_sparse_matches,
    check_sparse,
    for_target,
    make_sparse_inputs,
    to_device,
)

pytestmark = pytest.mark.usefixtures("sparse_kernels")

FORMS = ("v32", "v4")
SPLITS = (1, 3)
# Around every tile and piece that a kernel may have (12, 24, 64, 72, 96, 128 keys) and their sums.
_TILES = (12, 24, 64, 72, 96, 128, 144, 192)
EDGES = (0, 1, 2, *sorted({n + d for n in _TILES for d in (-1, 0, 1)}))


# DeepSeek-V3.2: 128 heads, or shared by tensor-parallel ranks; the indexer picks 2048 tokens.
V32_CASES = [
    SparseCase("v32", nhead, lens=lens, layout=layout, power_of_two=power, sm_scale=576**-0.5)
    for nhead, lens, layout, power in (
        (128, (2048,), "lengths", True),
        (64, (2048, 2048), "table", True),
        (16, (2048, 700, 2048), "ragged", False),
        (128, (1024, 3), "lengths", False),
    )
]
# DeepSeek-V4: 64 or 128 heads, a window of 128 tokens, 512 or 1024 compressed ones, a sink.
V4_CASES = [
    SparseCase(
        "v4", nhead, lens=window, extra_lens=extra, block_size=64, extra_block_size=size,
        sink="normal", layout=layout, sm_scale=512**-0.5, gap=gap,
    )
    for nhead, window, extra, size, layout, gap in (
        (128, (128, 128), (512, 512), 64, "ragged", 0),
        (64, (128, 77, 1), (1024, 19, 0), 64, "ragged", 224),
        (64, (128, 128, 128), (2, 300, 512), 2, "lengths", 0),
        (16, (128, 128), (1024, 1024), 4, "table", 640),
        (128, (128,), None, 4, "ragged", 0),
        (8, (0, 128), (40, 0), 64, "ragged", 0),
    )
]  # fmt: skip


@pytest.mark.parametrize("splits", [None, 1, 4])
@pytest.mark.parametrize("case", V32_CASES + V4_CASES, ids=str)
def test_sparse_mla_decode_matches_reference_on_shapes_of_the_models(
    case: SparseCase, splits: int | None, target: str, device: torch.device
) -> None:
    check_sparse(case, splits, target, device)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nhead", [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 24, 31, 33, 48, 96, 127])
def test_sparse_mla_decode_matches_reference_for_any_head_count(
    form: str, nhead: int, target: str, device: torch.device
) -> None:
    case = SparseCase(form, nhead, lens=(70, 0, 131), extra_lens=(3, 0, 40), sink="normal")
    for splits in SPLITS:
        check_sparse(case, splits, target, device)


@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ["ragged", "lengths", "table"])
def test_sparse_mla_decode_stops_at_every_length(
    form: str, layout: str, splits: int, target: str, device: torch.device
) -> None:
    extra = tuple(reversed(EDGES))
    case = SparseCase(form, 12, lens=EDGES, extra_lens=extra, layout=layout, sink="normal")
    check_sparse(case, splits, target, device)
    check_sparse(SparseCase(form, 3, lens=EDGES, layout=layout), splits, target, device)


@pytest.mark.parametrize("splits", [1, 2, 3, 5, 8, 32, 100])
@pytest.mark.parametrize("form", FORMS)
def test_sparse_mla_decode_is_right_for_any_split_count(
    form: str, splits: int, target: str, device: torch.device
) -> None:
    case = SparseCase(form, 20, lens=(900, 64, 0), extra_lens=(150, 65, 0), sink="mixed")
    check_sparse(case, splits, target, device)


HAZARDS = [
    SparseCase(form, **more)  # type: ignore[arg-type]
    for form in FORMS
    for more in (
        {"holes": 1},
        {"holes": 2, "lens": (300, 41), "extra_lens": (9, 200)},
        {"holes": 3, "layout": "lengths"},
        {"holes": 7, "layout": "table", "lens": (200, 0)},
        {"repeat": True, "lens": (150, 99), "extra_lens": (20, 30)},
        {"lens": (0, 0), "sink": "normal"},
        {"lens": (0, 0), "extra_lens": (0, 5), "layout": "table"},
        {"lens": ()},
        {"lens": (40, 40, 9, 9), "layout": "lengths", "tokens_per_length": 2},
        {"lens": (40, 300), "extra_lens": (1, 50), "gap": 16, "extra_block_size": 16},
        {"lens": (40, 300), "block_size": 1, "extra_lens": (33, 1), "extra_block_size": 256},
        {"content": "large", "lens": (200, 30), "sink": "mixed"},
        {"content": "large", "lens": (200, 30), "sink": "normal", "nhead": 128},
        {"sm_scale": 0.0, "lens": (90, 3)},
    )
]


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("case", HAZARDS, ids=str)
def test_sparse_mla_decode_reads_only_slots_that_lists_name(
    case: SparseCase, splits: int, target: str, device: torch.device
) -> None:
    check_sparse(case, splits, target, device)


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("nhead", [4, 40])
@pytest.mark.parametrize("flavours", ["v32 fnuz fnuz", "v4 fnuz fn", "v4 fnuz fnuz", "v4 fn fn"])
def test_sparse_mla_decode_follows_the_fp8_flavour_of_each_cache(
    flavours: str, nhead: int, splits: int, target: str, device: torch.device
) -> None:
    form, *kinds = flavours.split()
    kv_dtype, extra_dtype = (f"fp8_e4m3{kind}" for kind in kinds)
    if f"{kv_dtype}-{extra_dtype}" not in _flavours_of(target):
        pytest.skip(f"{target} has no kernels of these flavours: runs on any CPU machine")
    case = SparseCase(
        form, nhead, lens=(130, 40), extra_lens=(70, 99), kv_dtype=kv_dtype, extra_dtype=extra_dtype
    )
    check_sparse(case, splits, target, device)


def _flavours_of(target: str) -> set[str]:
    held = registry.default()
    kernels = held.kernels(held.module("sparse_mla_decode"), targets.resolve(target).artefact)
    return {f"{k.by_name['kv_dtype']}-{k.by_name['extra_dtype']}" for k in kernels}


@pytest.mark.parametrize("byte", range(0, 256, 17))
@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_sparse_mla_decode_decodes_every_code_of_each_cache(
    form: str, extra: bool, byte: int, target: str, device: torch.device
) -> None:
    lens = (9,) * 17
    case = for_target(SparseCase(form, 3, lens=lens, extra_lens=lens, extra_block_size=64), target)
    inputs = make_sparse_inputs(case)
    cache = inputs["extra_cache" if extra else "cache"]
    assert cache is not None
    slots = inputs["extra_indices" if extra else "indices"]
    assert slots is not None
    stride = 656 if form == "v32" else 576
    for token in range(17):  # one code in the first key of each token
        block, position = divmod(int(slots[9 * token]), 64)
        start = block * cache.stride(0) + position * stride + 7
        cache.as_strided((1,), (1,), start).fill_((byte + token) % 256)
    placed = to_device(inputs, device)
    out, lse = hipdecode.sparse_mla_decode(**placed, return_lse=True)
    assert_sparse_matches(inputs, out, lse, target, f"{case} codes from {byte} on")
