# SPDX-License-Identifier: MIT
"""vLLM's and FlashMLA's entries of sparse decode against the oracle, and what they refuse."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from hipdecode.errors import BadArgument
from hipdecode.integrations import flash_mla, vllm
from hipdecode.testing import compare, sparse_reference
from hipdecode.testing.sparse_cases import (
    SparseCase,
    SparseInputs,
    for_target,
    make_sparse_inputs,
    to_device,
)

pytestmark = pytest.mark.usefixtures("sparse_kernels")

# A window of 128 tokens, 512 compressed ones; several tokens of a request are more rows.
CASE = SparseCase(
    "v4", 64, lens=(128, 128, 60), extra_lens=(512, 7, 0), extra_block_size=64, sink="normal"
)


def _assert_output(inputs: SparseInputs, out: Tensor, target: str) -> None:
    want = sparse_reference.sparse_mla_decode(**to_device(inputs, "cpu"))
    allowed = compare.allowed_output(want, out.dtype, target, torch.bfloat16)
    names = compare.plain_names("token", "head", "column")
    compare.assert_close(out, want.o, allowed, what="o", names=names)


def _decode_arguments(i: SparseInputs, *, ragged: bool, swa_only: bool) -> dict[str, Any]:
    """Keyword arguments of rocm_sparse_attn_decode."""
    table = None if ragged else i["indices"][:, None]
    extra = None if ragged or i["extra_indices"] is None else i["extra_indices"][:, None]
    return {
        "q": i["q"],
        "kv_cache": i["extra_cache"],
        "swa_k_cache": i["cache"],
        "swa_only": swa_only,
        "topk_indices": extra,
        "topk_lens": i["extra_lengths"],
        "swa_indices": table,
        "swa_lens": i["lengths"],
        "swa_ragged_indices": i["indices"] if ragged else None,
        "swa_ragged_indptr": i["indptr"],
        "topk_ragged_indices": i["extra_indices"] if ragged else None,
        "topk_ragged_indptr": i["extra_indptr"],
        "attn_sink": i["attn_sink"],
        "scale": 512**-0.5,
        "head_dim": 512,
        "nope_head_dim": 448,
        "rope_head_dim": 64,
        "output": i["q"].new_full((3, 64, 512), float("nan")),
    }


@pytest.mark.parametrize("swa_only", [False, True])
@pytest.mark.parametrize("layout", ["ragged", "lengths", "table"])
def test_rocm_sparse_attn_decode_matches_reference(
    layout: str, swa_only: bool, target: str, device: torch.device
) -> None:
    case = dataclasses.replace(CASE, layout=layout)
    inputs = to_device(make_sparse_inputs(for_target(case, target)), device)
    call = _decode_arguments(inputs, ragged=layout == "ragged", swa_only=swa_only)
    assert vllm.rocm_sparse_attn_decode(**call) is None
    if swa_only:
        inputs.update(extra_cache=None, extra_indices=None, extra_indptr=None, extra_lengths=None)
    _assert_output(inputs, call["output"], target)


def _op_arguments(i: SparseInputs, out: Tensor) -> list[Any]:
    """Positional arguments of decode_single up to has_extra."""
    extra = i["extra_cache"]
    assert extra is not None
    return [
        i["q"], i["cache"], i["indices"], i["indptr"], extra, i["extra_indices"], i["extra_indptr"],
        i["attn_sink"], out, 64, 64, i["cache"].shape[0] * 64, extra.shape[0] * 64, 512**-0.5, True,
    ]  # fmt: skip


@pytest.mark.parametrize("split_k", [None, 2, 16])
def test_decode_single_and_split_match_reference(
    split_k: int | None, target: str, device: torch.device
) -> None:
    inputs = to_device(make_sparse_inputs(for_target(CASE, target)), device)
    out = torch.full((3, 64, 512), float("nan"), dtype=torch.bfloat16, device=device)
    arguments = _op_arguments(inputs, out)
    if split_k is None:
        vllm.decode_single(*arguments)
    else:
        scratch = [torch.empty(1, device=device) for _ in range(3)]
        vllm.decode_split(*arguments[:9], *scratch, *arguments[9:], split_k)
    _assert_output(inputs, out, target)


def test_decode_single_masks_slots_past_the_rows_it_is_told(
    target: str, device: torch.device
) -> None:
    inputs = to_device(make_sparse_inputs(for_target(CASE, target)), device)
    out = torch.empty(3, 64, 512, dtype=torch.bfloat16, device=device)
    arguments = _op_arguments(inputs, out)
    arguments[11] -= 64
    vllm.decode_single(*arguments)
    inputs["cache"] = inputs["cache"][:-1]
    _assert_output(inputs, out, target)


@pytest.mark.parametrize("with_extra", [True, False])
def test_decode_sparse_mla_hip_matches_reference(
    with_extra: bool, target: str, device: torch.device
) -> None:
    inputs = to_device(make_sparse_inputs(for_target(CASE, target)), device)
    extra = (inputs["extra_cache"], inputs["extra_indices"], inputs["extra_indptr"], 128, 512)
    if not with_extra:
        extra = (None, None, None, 128, None)
        inputs.update(extra_cache=None, extra_indices=None, extra_indptr=None)
    out = vllm._decode_sparse_mla_hip(
        inputs["q"], inputs["cache"], inputs["indices"], inputs["indptr"], 512**-0.5,
        inputs["attn_sink"], 448, 64, *extra,
    )  # fmt: skip
    _assert_output(inputs, out, target)


def test_vllm_entries_take_advice_and_what_asks_for_nothing(
    target: str, device: torch.device
) -> None:
    inputs = to_device(make_sparse_inputs(for_target(CASE, target)), device)
    call = _decode_arguments(inputs, ragged=True, swa_only=False)
    environment = dict(os.environ)
    vllm.rocm_sparse_attn_decode(
        **call,
        extra_cache_nan_free=True,
        adaptive_splits=True,
        return_softmax_stats=False,
        more=None,
    )
    assert dict(os.environ) == environment
    _assert_output(inputs, call["output"], target)


def test_vllm_entries_answer_unknown_keywords_by_name(target: str, device: torch.device) -> None:
    inputs = to_device(make_sparse_inputs(for_target(CASE, target)), device)
    call = _decode_arguments(inputs, ragged=True, swa_only=False)
    with pytest.raises(BadArgument, match=r"rocm_sparse_attn_decode: .*return_softmax_stats=True"):
        vllm.rocm_sparse_attn_decode(**call, return_softmax_stats=True)
    out = call["output"]
    arguments = _op_arguments(inputs, out)
    with pytest.raises(BadArgument, match=r"decode_single: .*sideways=3"):
        vllm.decode_single(*arguments, sideways=3)
    with pytest.raises(BadArgument, match=r"decode_split: .*sideways=3"):
        vllm.decode_split(*arguments[:9], out, out, out, *arguments[9:], 2, sideways=3)
    assert out.isnan().all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nope_head_dim": 512}, "nope_head_dim"),
        ({"kv_cache": None}, "kv_cache: expected a tensor where swa_only is False"),
        ({"swa_ragged_indices": None}, "indices: expected"),
        ({"q": torch.zeros(3, 64, 576, dtype=torch.bfloat16)}, "q: expected"),
        ({"output": torch.zeros(3, 64, 512)}, "out: expected"),
    ],
)
def test_rocm_sparse_attn_decode_names_the_argument_that_is_wrong(
    changed: dict[str, Any], message: str, target: str, device: torch.device
) -> None:
    inputs = to_device(make_sparse_inputs(for_target(CASE, target)), device)
    call = _decode_arguments(inputs, ragged=True, swa_only=False)
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in changed.items()}
    with pytest.raises(BadArgument, match=message):
        vllm.rocm_sparse_attn_decode(**{**call, **moved})


def test_decode_single_names_a_block_size_that_is_not_the_caches(
    target: str, device: torch.device
) -> None:
    inputs = to_device(make_sparse_inputs(for_target(CASE, target)), device)
    arguments = _op_arguments(inputs, torch.empty(3, 64, 512, dtype=torch.bfloat16, device=device))
    arguments[10] = 4
    with pytest.raises(BadArgument, match="extra_block_size"):
        vllm.decode_single(*arguments)


@pytest.mark.parametrize("with_lengths", [True, False])
@pytest.mark.parametrize("form", ["v32", "v4"])
def test_flash_mla_with_kvcache_matches_reference(
    form: str, with_lengths: bool, target: str, device: torch.device
) -> None:
    case = SparseCase(
        form, 64, lens=(300, 300, 9, 9, 0, 0), layout="lengths" if with_lengths else "table",
        tokens_per_length=2, sink="normal",
    )  # fmt: skip
    inputs = to_device(make_sparse_inputs(for_target(case, target)), device)
    out, lse = flash_mla.flash_mla_with_kvcache(
        inputs["q"].view(3, 2, 64, -1),
        inputs["cache"][:, :, None].view(inputs["kv_dtype"]),
        None,
        None,
        512,
        object(),
        is_fp8_kvcache=True,
        indices=inputs["indices"].view(3, 2, -1),
        attn_sink=inputs["attn_sink"],
        topk_length=inputs["lengths"],
    )
    assert out.shape == (3, 2, 64, 512)
    assert lse.shape == (3, 64, 2)
    want = sparse_reference.sparse_mla_decode(**to_device(inputs, "cpu"))
    _assert_output(inputs, out.flatten(0, 1), target)
    rows = lse.transpose(1, 2).flatten(0, 1)
    assert (rows[4:] == float("inf")).all(), "rows that see nothing: expected inf as FlashMLA"
    compare.assert_close(rows[:4], want.lse[:4], compare.allowed_lse(want)[:4], what="lse")


# V3.2: 2048 of the indexer; V4: a window of 128 and 512 compressed tokens in a cache of its own.
@pytest.mark.parametrize(
    "case",
    [
        SparseCase("v32", 128, lens=(2048,), layout="lengths"),
        SparseCase("v32", 64, lens=(2048, 2048), layout="table"),
        SparseCase("v4", 128, lens=(128,), extra_lens=(512,), layout="lengths", sink="normal"),
        SparseCase(
            "v4", 64, lens=(128, 77), extra_lens=(512, 0), layout="lengths", extra_block_size=64
        ),
    ],
    ids=str,
)
def test_flash_mla_with_kvcache_matches_reference_on_shapes_of_the_models(
    case: SparseCase, target: str, device: torch.device
) -> None:
    i = to_device(make_sparse_inputs(for_target(case, target)), device)
    extra = {}
    if i["extra_cache"] is not None and i["extra_indices"] is not None:
        extra = {
            "extra_k_cache": i["extra_cache"][:, :, None].view(i["extra_kv_dtype"]),
            "extra_indices_in_kvcache": i["extra_indices"][:, None],
            "extra_topk_length": i["extra_lengths"],
        }
    out, _ = flash_mla.flash_mla_with_kvcache(
        i["q"][:, None],
        i["cache"][:, :, None].view(i["kv_dtype"]),
        None,
        None,
        512,
        None,
        is_fp8_kvcache=True,
        indices=i["indices"][:, None],
        attn_sink=i["attn_sink"],
        topk_length=i["lengths"],
        **extra,
    )
    _assert_output(i, out[:, 0], target)


@pytest.mark.parametrize(
    "changed", [{"indices": None}, {"is_fp8_kvcache": False}, {"causal": True}, {"head_dim_v": 64}]
)
def test_flash_mla_with_kvcache_refuses_what_is_not_sparse_decode(changed: dict[str, Any]) -> None:
    inputs = make_sparse_inputs(SparseCase("v32", layout="lengths"))
    call = {
        "q": inputs["q"][:, None],
        "k_cache": inputs["cache"],
        "block_table": None,
        "cache_seqlens": None,
        "head_dim_v": 512,
        "tile_scheduler_metadata": None,
        "is_fp8_kvcache": True,
        "indices": inputs["indices"][:, None],
    }
    with pytest.raises(BadArgument, match="expected"):
        flash_mla.flash_mla_with_kvcache(**{**call, **changed})
