# SPDX-License-Identifier: MIT
"""Random calls: all options of a case drawn at once, to show what two of them do together."""

from __future__ import annotations

import random

import pytest

from hipdecode.testing.calls import Checker
from hipdecode.testing.cases import Case, dtype_pairs


def draw(seed: int, target: str) -> tuple[Case, str]:
    """A case and a call, both determined by the seed and by the dtypes that the target has."""
    rng = random.Random(seed)
    q_dtype, kv_dtype = rng.choice(dtype_pairs(target))
    batch = rng.choice((1, 1, 2, 3, 5, 9))
    most = rng.choice((1, 1, 2, 4, 8, 16))
    longest = rng.choice((3, 40, 130, 300, 700))
    page_size = rng.choice((1, 1, 2, 16, 64, 128))
    case = Case(
        nhead=rng.choice((rng.randint(1, 128), rng.randint(1, 16), 16, 128)),
        q_lens=tuple(rng.choice((most, rng.randint(0, most))) for _ in range(batch)),
        kv_lens=tuple(rng.choice((0, longest, rng.randint(1, longest))) for _ in range(batch)),
        page_size=page_size,
        q_dtype=q_dtype,
        kv_dtype=kv_dtype,
        head_dim_qk=96,
        head_dim_v=64,
        causal=rng.random() < 0.8,
        q_scale=rng.choice((None, 0.3, 2.0)),
        kv_scale=rng.choice((None, 0.3, 2.0)),
        scale_shape=rng.choice(((), (1,))),
        tail=rng.choice(("none", "minus_one", "stale", "capacity")),
        holes=rng.choice((0, 0, 0, 2, 7)),
        repeat_pages=rng.random() < 0.2,
        last_page_lens="garbage" if page_size == 1 and rng.random() < 0.3 else "given",
        padding_rows=rng.choice((0, 0, 3)),
        content=rng.choice(("normal", "normal", "large", "one_hot")),
        seed=seed,
    )
    call = rng.choice(("persistent", "persistent", f"hk-{rng.choice((1, 2, 3, 5, 8, 16))}"))
    return case, call


@pytest.mark.parametrize("block", range(8))
def test_mla_decode_matches_reference_for_random_calls(check: Checker, block: int) -> None:
    for seed in range(block * 25, (block + 1) * 25):
        check(*draw(seed, check.target))


@pytest.mark.slow
@pytest.mark.parametrize("block", range(40))
def test_mla_decode_matches_reference_for_many_random_calls(check: Checker, block: int) -> None:
    for seed in range(1000 + block * 50, 1000 + (block + 1) * 50):
        check(*draw(seed, check.target))
