# SPDX-License-Identifier: MIT
"""Holds paged attention against the fp64 oracle, over layouts, dtypes and contexts."""

from __future__ import annotations

import pytest
import torch

from hipdecode.testing.paged_cases import PagedCase, check_paged

pytestmark = pytest.mark.usefixtures("paged_kernels")

# ROCm/aiter#3302: gqa 8 and 16 on the routed kernel, gqa 10 on the general one.
SEED = [
    *((gqa, q_len, ctx) for gqa in (8, 16) for q_len in (2, 3, 4) for ctx in (128, 4097, 16384)),
    *((10, q_len, ctx) for q_len in (2, 3, 4) for ctx in (128, 4097)),
]
FORMS = {
    "fp8 token": {"scales": "token"},
    "fp8 tensor": {"scales": "tensor"},
    "fp8 none": {"scales": "none"},
    "fp8 of fp16": {"q_dtype": "fp16"},
    "bf16": {"kv_dtype": "bf16", "scales": "none"},
    "fp16": {"q_dtype": "fp16", "kv_dtype": "fp16", "scales": "none"},
}


def slow(target: str) -> bool:
    """Whether a simulator runs the kernels: few tokens are enough there."""
    return target.startswith("sim:")


@pytest.mark.parametrize(("gqa", "q_len", "ctx"), SEED)
def test_multi_token_decode_is_within_two_percent_of_the_reference(
    gqa: int, q_len: int, ctx: int, target: str, device: torch.device
) -> None:
    ctx = min(ctx, 161) if slow(target) else ctx
    lens = (ctx,) if slow(target) else (ctx, max(ctx - 3, 1))
    case = PagedCase(lens=lens, mtp=q_len, gqa=gqa, nhead_kv=1 if slow(target) else 2)
    out, _, want = check_paged(case, target, device)
    torch.testing.assert_close(out.cpu().double(), want.o, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("block_size", [16, 32, 48, 128])
@pytest.mark.parametrize("value_dims", [4, 5])
@pytest.mark.parametrize("form", FORMS)
def test_every_layout_and_dtype_matches(
    form: str, value_dims: int, block_size: int, target: str, device: torch.device
) -> None:
    case = PagedCase(
        lens=(block_size * 2 + 5, 17),
        mtp=2,
        gqa=4,
        block_size=block_size,
        value_dims=value_dims,
        **FORMS[form],
    )
    check_paged(case, target, device)


@pytest.mark.parametrize("form", FORMS)
def test_heads_of_64_columns_match(form: str, target: str, device: torch.device) -> None:
    check_paged(PagedCase(head_dim=64, block_size=64, **FORMS[form]), target, device)


@pytest.mark.parametrize("route", ["mtp", "general"])
@pytest.mark.parametrize("first", [241, 246, 251])
def test_contexts_around_256_match(
    first: int, route: str, target: str, device: torch.device
) -> None:
    lens = tuple(range(first, first + 5))
    check_paged(PagedCase(lens=lens, gqa=16, mtp=2), target, device, route=route)


@pytest.mark.parametrize("edge", [16, 64, 128])
def test_contexts_around_a_tile_match(edge: int, target: str, device: torch.device) -> None:
    check_paged(PagedCase(lens=(edge - 1, edge, edge + 1), mtp=3), target, device)


@pytest.mark.parametrize("gqa", [1, 2, 3, 5, 7, 10, 12, 16, 17, 40])
def test_any_number_of_heads_in_a_group_matches(
    gqa: int, target: str, device: torch.device
) -> None:
    check_paged(PagedCase(lens=(90, 31), gqa=gqa, mtp=2), target, device)


@pytest.mark.parametrize("mtp", range(1, 9))
def test_one_to_eight_tokens_of_a_step_match(mtp: int, target: str, device: torch.device) -> None:
    check_paged(PagedCase(lens=(70, 129), mtp=mtp, gqa=5), target, device)


@pytest.mark.parametrize("num_splits", [1, 2, 3, 5, 16])
def test_any_number_of_splits_matches(num_splits: int, target: str, device: torch.device) -> None:
    case = PagedCase(lens=(65, 300, 0, 513), mtp=2)
    check_paged(case, target, device, num_splits=num_splits)


def test_rows_before_a_context_and_empty_contexts_are_zeros(
    target: str, device: torch.device
) -> None:
    case = PagedCase(lens=(0, 1, 2, 3, 4, 5), mtp=4)
    out, lse, _ = check_paged(case, target, device)
    assert bool((out[:4] == 0).all())
    assert bool((out[4:7] == 0).all())
    assert bool((lse[:7] == -torch.inf).all())


def test_requests_of_different_query_lengths_match(target: str, device: torch.device) -> None:
    case = PagedCase(lens=(7, 90, 65, 129, 4), mtp=4, q_lens=(4, 0, 1, 2, 3), padding=3)
    out, lse, _ = check_paged(case, target, device, num_splits=2)
    assert bool((out[-3:] == 0).all())
    assert bool((lse[-3:] == -torch.inf).all())


def test_a_request_longer_than_said_takes_several_passes(target: str, device: torch.device) -> None:
    case = PagedCase(lens=(150, 40), mtp=1, q_lens=(9, 2), gqa=16)
    check_paged(case, target, device, num_splits=2)


def test_large_logits_match(target: str, device: torch.device) -> None:
    check_paged(PagedCase(lens=(300, 200), mtp=2, content="large"), target, device)
