# SPDX-License-Identifier: MIT
"""Paged attention reads what it is given and nothing else, and its bits depend on that alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hipdecode.paged import PagedOptions, paged_attention
from hipdecode.testing.paged_cases import (
    PagedCase,
    check_paged,
    for_target,
    make_paged_inputs,
    to_device,
)
from hipdecode.workspace import Workspace

pytestmark = pytest.mark.usefixtures("paged_kernels")

BF16 = {"kv_dtype": "bf16", "scales": "none"}


@pytest.mark.parametrize("form", [{}, BF16], ids=["fp8", "bf16"])
@pytest.mark.parametrize("value_dims", [4, 5])
def test_strides_of_blocks_and_heads_are_honoured(
    value_dims: int, form: dict[str, str], target: str, device: torch.device
) -> None:
    case = PagedCase(lens=(100, 40), gap=3, value_dims=value_dims, mtp=2, **form)
    check_paged(case, target, device)


def test_sliced_tables_are_read_by_their_stride(target: str, device: torch.device) -> None:
    check_paged(PagedCase(lens=(100, 40, 17), spare_columns=9), target, device)


@pytest.mark.parametrize("route", ["mtp", "general"])
def test_blocks_that_do_not_exist_are_skipped(
    route: str, target: str, device: torch.device
) -> None:
    case = PagedCase(lens=(100, 40, 160, 33), holes=3, mtp=2)
    check_paged(case, target, device, route=route)
    check_paged(dataclasses.replace(case, holes=1), target, device, route=route)


@pytest.mark.parametrize("form", [{}, BF16], ids=["fp8", "bf16"])
def test_a_pool_without_blocks_gives_zeros(
    form: dict[str, str], target: str, device: torch.device
) -> None:
    inputs = make_paged_inputs(for_target(PagedCase(lens=(40,), **form), target))
    for name in ("key_cache", "value_cache"):
        inputs[name] = torch.empty((0, *inputs[name].shape[1:]), dtype=inputs[name].dtype)
    for name in ("k_scale", "v_scale"):
        inputs[name] = None
    out = paged_attention(**to_device(inputs, device))
    assert bool((out == 0).all())


def test_requests_that_share_blocks_match(target: str, device: torch.device) -> None:
    check_paged(PagedCase(lens=(130, 130, 77), repeat=True, mtp=2), target, device)


@pytest.mark.parametrize("form", [{}, BF16], ids=["fp8", "bf16"])
def test_a_value_that_a_row_may_not_see_never_enters_it(
    form: dict[str, str], target: str, device: torch.device
) -> None:
    case = for_target(PagedCase(lens=(70,), mtp=3, gqa=4, nhead_kv=1, **form), target)
    inputs = make_paged_inputs(case)
    options = PagedOptions(max_seqlen_q=3)
    clean = paged_attention(**to_device(inputs, device), options=options)
    block = int(inputs["block_tables"][0, 4])
    values = inputs["value_cache"].view(torch.uint8 if not form else torch.int16)
    nan = {"fp8_e4m3fn": 0x7F, "fp8_e4m3fnuz": 0x80, "bf16": 0x7FC0}[case.kv_dtype]
    values[block, 0, 5 // case.x, :, 5 % case.x] = nan  # token 69: the last, seen by one row
    got = paged_attention(**to_device(inputs, device), options=options)
    torch.testing.assert_close(got[:2], clean[:2], atol=0.01, rtol=0.01)
    assert bool(got[2].isnan().all())


def test_partial_results_of_earlier_calls_do_not_matter(target: str, device: torch.device) -> None:
    case = for_target(PagedCase(lens=(65, 513, 0), mtp=2), target)
    inputs = to_device(make_paged_inputs(case), device)
    workspace = Workspace(device)
    options = PagedOptions(max_seqlen_q=2, num_splits=8)
    first = paged_attention(**inputs, options=options, workspace=workspace)
    shape = (*inputs["q"].shape,)
    scratch = workspace.splits(shape[0], shape[1], shape[2], 8, 3 * 2)
    scratch.partial_output.fill_(float("nan"))
    scratch.partial_lse.fill_(float("nan"))
    again = paged_attention(**inputs, options=options, workspace=workspace)
    assert torch.equal(first, again)
    assert not bool(scratch.arrivals.any())


def test_bits_depend_on_neither_neighbours_nor_block_ids(target: str, device: torch.device) -> None:
    case = for_target(PagedCase(lens=(200, 45), mtp=2), target)
    inputs = make_paged_inputs(case)
    options = PagedOptions(max_seqlen_q=2, num_splits=2)
    both = paged_attention(**to_device(inputs, device), options=options)
    alone = dict(inputs)
    alone["q"] = inputs["q"][2:]
    order = torch.randperm(inputs["key_cache"].shape[0], generator=torch.Generator().manual_seed(1))
    back = torch.argsort(order)
    for name in ("key_cache", "value_cache"):
        cache = inputs[name]
        alone[name] = cache.view(torch.uint8)[order].view(cache.dtype)
    for name in ("k_scale", "v_scale"):
        alone[name] = inputs[name][order]
    table = inputs["block_tables"][1:].long().clamp(0, len(order) - 1)
    alone["block_tables"] = back[table].to(torch.int32)
    alone["context_lens"] = inputs["context_lens"][1:]
    got = paged_attention(**to_device(alone, device), options=options)
    assert torch.equal(both[2:].cpu(), got.cpu())


def test_replayed_buffers_with_other_lengths_give_the_other_result(
    target: str, device: torch.device
) -> None:
    case = for_target(PagedCase(lens=(300, 200), mtp=2), target)
    inputs = to_device(make_paged_inputs(case), device)
    options = PagedOptions(max_seqlen_q=2, num_splits=3)
    out = torch.empty_like(inputs["q"])
    paged_attention(**inputs, options=options, out=out)
    inputs["context_lens"].copy_(torch.tensor([63, 0], dtype=torch.int32))
    paged_attention(**inputs, options=options, out=out)
    fresh = paged_attention(**inputs, options=PagedOptions(max_seqlen_q=2, num_splits=1))
    torch.testing.assert_close(out, fresh, atol=0.01, rtol=0.01)
    assert bool((out[2:] == 0).all())


def test_a_cache_of_more_than_2_to_the_31_elements_is_addressed_in_64_bits(
    target: str, device: torch.device
) -> None:
    if target.startswith("sim:") or device.type != "cpu":
        pytest.skip(f"{target}: needs memory that is mapped when it is touched, as a CPU's is")
    case = PagedCase(lens=(40,), gqa=2, nhead_kv=1, **BF16)
    inputs = make_paged_inputs(case)
    far = dict(inputs)
    blocks = 2**31 // (128 * 16) + 64
    table = inputs["block_tables"][0, :3].long()
    moved = torch.arange(3) + blocks - 3
    for name in ("key_cache", "value_cache"):
        small = inputs[name]
        pool = torch.empty((blocks, *small.shape[1:]), dtype=small.dtype)
        pool[moved] = small[table]
        far[name] = pool
    far["block_tables"] = moved.to(torch.int32)[None]
    want = paged_attention(**inputs)
    assert torch.equal(paged_attention(**far), want)


def test_fp8_output_is_the_result_over_its_scale(target: str, device: torch.device) -> None:
    case = for_target(PagedCase(lens=(100, 300), mtp=2), target)
    inputs = to_device(make_paged_inputs(case), device)
    kind = inputs["key_cache"].dtype
    scale = torch.tensor([0.01], device=device)
    for splits in (1, 3):
        out = torch.empty(inputs["q"].shape, dtype=kind, device=device)
        options = PagedOptions(max_seqlen_q=2, num_splits=splits)
        paged_attention(**inputs, options=options, out=out, out_scale=scale)
        exact = paged_attention(**inputs, options=options).float()
        most = torch.finfo(kind).max
        want = (exact / 0.01).clamp(-most, most)
        torch.testing.assert_close(out.float(), want, atol=2.0**-6, rtol=2.0**-3)
