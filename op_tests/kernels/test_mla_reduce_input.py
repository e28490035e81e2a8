# SPDX-License-Identifier: MIT
"""Bad arguments of mla_reduce: an exception that names the argument, before anything is written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hipdecode
from hipdecode.errors import BadArgument


def _int32(values: list[int] | list[list[int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _arguments() -> dict[str, object]:
    """One good reduce: two tiles of two rows with two and three partials."""
    return {
        "partial_output": torch.randn(10, 1, 4, 128),
        "partial_lse": torch.randn(10, 1, 4, 1),
        "reduce_indptr": _int32([0, 2, 5]),
        "reduce_final_map": _int32([[0, 2], [2, 4]]),
        "reduce_partial_map": _int32([0, 2, 4, 6, 8]),
        "max_seqlen_q": 2,
        "num_kv_splits": 3,
        "final_output": torch.full((4, 4, 128), 7.0, dtype=torch.bfloat16),
        "final_lse": torch.full((4, 4), 7.0),
    }


BAD: dict[str, tuple[str, object]] = {
    "partial_output-2d": ("partial_output", torch.zeros(10, 512)),
    "partial_output-bf16": ("partial_output", torch.zeros(10, 1, 4, 128, dtype=torch.bfloat16)),
    "partial_output-strided": ("partial_output", torch.zeros(10, 1, 4, 256)[..., ::2]),
    "partial_output-width": ("partial_output", torch.zeros(10, 1, 4, 64)),
    "partial_output-heads": ("partial_output", torch.zeros(10, 1, 8, 128)),
    "partial_output-other-device": ("partial_output", torch.zeros(10, 1, 4, 128, device="meta")),
    "partial_lse-short": ("partial_lse", torch.zeros(9, 1, 4, 1)),
    "partial_lse-fp64": ("partial_lse", torch.zeros(10, 1, 4, 1, dtype=torch.float64)),
    "partial_lse-list": ("partial_lse", [0.0]),
    "reduce_indptr-int64": ("reduce_indptr", torch.tensor([0, 2, 5])),
    "reduce_indptr-empty": ("reduce_indptr", _int32([])),
    "reduce_final_map-int64": ("reduce_final_map", torch.tensor([[0, 2], [2, 4]])),
    "reduce_final_map-short": ("reduce_final_map", _int32([[0, 2]])),
    "reduce_partial_map-float": ("reduce_partial_map", torch.zeros(5)),
    "reduce_partial_map-strided": ("reduce_partial_map", _int32([0] * 10)[::2]),
    "max_seqlen_q-0": ("max_seqlen_q", 0),
    "max_seqlen_q-string": ("max_seqlen_q", "2"),
    "num_kv_splits-negative": ("num_kv_splits", -1),
    "final_output-fp32": ("final_output", torch.zeros(4, 4, 128)),
    "final_output-heads": ("final_output", torch.zeros(4, 5, 128, dtype=torch.bfloat16)),
    "final_output-strided": (
        "final_output",
        torch.zeros(4, 4, 256, dtype=torch.bfloat16)[..., ::2],
    ),
    "final_output-2d": ("final_output", torch.zeros(4, 512, dtype=torch.bfloat16)),
    "final_lse-fp16": ("final_lse", torch.zeros(4, 4, dtype=torch.float16)),
    "final_lse-short": ("final_lse", torch.zeros(2, 4)),
}


@pytest.mark.parametrize("name", BAD)
def test_mla_reduce_refuses_bad_arguments(name: str) -> None:
    argument, value = BAD[name]
    arguments = _arguments()
    out, lse = arguments["final_output"], arguments["final_lse"]
    arguments[argument] = value
    # A partial_output of another shape may as well be reported against what it must fit.
    named = f"{argument}|partial_lse|final_output" if argument == "partial_output" else argument
    with pytest.raises(BadArgument, match=rf"({named})[\s\S]*expected"):
        hipdecode.mla_reduce(**arguments)
    for tensor in (out, lse):
        assert isinstance(tensor, Tensor)
        assert (tensor == 7).all(), "expected the outputs to be untouched"


def test_mla_reduce_takes_arguments_by_position() -> None:
    arguments = _arguments()
    hipdecode.mla_reduce(*arguments.values())
    out = arguments["final_output"]
    assert isinstance(out, Tensor)
    assert (out != 7).any()
    assert out.isfinite().all()


@pytest.mark.parametrize("where", ["reduce_partial_map", "reduce_final_map", "reduce_indptr"])
@pytest.mark.parametrize("value", [-(2**31), -3, 11, 2**31 - 1])
def test_mla_reduce_survives_corrupt_maps(where: str, value: int) -> None:
    arguments = _arguments()
    tensor = arguments[where]
    assert isinstance(tensor, Tensor)
    for position in range(tensor.numel()):
        damaged = tensor.clone()
        damaged.view(-1)[position] = value
        hipdecode.mla_reduce(**{**arguments, where: damaged})
