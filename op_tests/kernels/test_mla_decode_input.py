# SPDX-License-Identifier: MIT
"""Bad arguments of mla_decode: an exception that names the argument, before anything is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import hipdecode
from hipdecode.errors import BadArgument, UnsupportedShape
from hipdecode.testing import cases
from hipdecode.testing.cases import Case, MlaInputs

CASE = Case(nhead=16, q_lens=(2, 1), kv_lens=(70, 33), page_size=16, q_dtype="bf16")
Change = Callable[[MlaInputs], dict[str, object]]


def _strided(x: Tensor) -> Tensor:
    """The same values with every second element skipped in memory."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def _unaligned(pool: Tensor) -> Tensor:
    """The same pool with rows that start at odd multiples of two bytes."""
    wide = torch.zeros(*pool.shape[:-1], 577, dtype=pool.dtype)
    wide[..., :576] = pool
    return wide[..., :576]


def _out(rows: int = 3, nhead: int = 16, width: int = 512, dtype=torch.bfloat16) -> Tensor:
    return torch.full((rows, nhead, width), 7.0, dtype=dtype)


BAD: dict[str, tuple[str, Change]] = {
    "nhead-129": ("nhead", lambda i: {"q": i["q"].repeat(1, 9, 1)[:, :129]}),
    "nhead-0": ("nhead", lambda i: {"q": i["q"][:, :0]}),
    "page_size-0": ("page_size", lambda i: {"kv_buffer": i["kv_buffer"][:, :0]}),
    "q-2d": ("q", lambda i: {"q": i["q"][0]}),
    "q-4d": ("q", lambda i: {"q": i["q"][None]}),
    "q-fp32": ("q", lambda i: {"q": i["q"].float()}),
    "q-int8": ("q", lambda i: {"q": i["q"].to(torch.int8)}),
    "q-not-tensor": ("q", lambda i: {"q": 3.0}),
    "q-strided-columns": ("q", lambda i: {"q": _strided(i["q"])}),
    "q-narrow": ("kv_buffer|q", lambda i: {"q": i["q"][..., :512]}),
    "q-other-device": ("q", lambda i: {"q": i["q"].to("meta")}),
    "kv_buffer-3d": ("kv_buffer", lambda i: {"kv_buffer": i["kv_buffer"][:, :, 0]}),
    "kv_buffer-2-heads": ("kv_buffer", lambda i: {"kv_buffer": i["kv_buffer"].repeat(1, 1, 2, 1)}),
    "kv_buffer-fp32": ("kv_buffer|dtypes", lambda i: {"kv_buffer": i["kv_buffer"].float()}),
    "kv_buffer-uint8": (
        "kv_buffer|dtypes",
        lambda i: {"kv_buffer": i["kv_buffer"].to(torch.uint8)},
    ),
    "kv_buffer-strided-columns": (
        "kv_buffer",
        lambda i: {"kv_buffer": _strided(i["kv_buffer"])},
    ),
    "kv_buffer-unaligned": ("kv_buffer", lambda i: {"kv_buffer": _unaligned(i["kv_buffer"])}),
    "kv_buffer-other-device": ("kv_buffer", lambda i: {"kv_buffer": i["kv_buffer"].to("meta")}),
    "qo_indptr-int64": ("qo_indptr", lambda i: {"qo_indptr": i["qo_indptr"].long()}),
    "qo_indptr-2d": ("qo_indptr", lambda i: {"qo_indptr": i["qo_indptr"][None]}),
    "qo_indptr-empty": ("qo_indptr", lambda i: {"qo_indptr": i["qo_indptr"][:0]}),
    "qo_indptr-strided": ("qo_indptr", lambda i: {"qo_indptr": _strided(i["qo_indptr"])}),
    "qo_indptr-list": ("qo_indptr", lambda i: {"qo_indptr": [0, 2, 3]}),
    "kv_indptr-int64": ("kv_indptr", lambda i: {"kv_indptr": i["kv_indptr"].long()}),
    "kv_indptr-shorter": ("kv_indptr", lambda i: {"kv_indptr": i["kv_indptr"][:-1]}),
    "kv_indptr-strided": ("kv_indptr", lambda i: {"kv_indptr": _strided(i["kv_indptr"])}),
    "kv_indices-int64": ("kv_indices", lambda i: {"kv_indices": i["kv_indices"].long()}),
    "kv_indices-strided": ("kv_indices", lambda i: {"kv_indices": _strided(i["kv_indices"])}),
    "max_seqlen_q-0": ("max_seqlen_q", lambda i: {"max_seqlen_q": 0}),
    "max_seqlen_q-negative": ("max_seqlen_q", lambda i: {"max_seqlen_q": -1}),
    "max_seqlen_q-float": ("max_seqlen_q", lambda i: {"max_seqlen_q": 2.5}),
    "max_seqlen_q-tensor": ("max_seqlen_q", lambda i: {"max_seqlen_q": torch.tensor(2)}),
    "kv_last_page_lens-int64": (
        "kv_last_page_lens",
        lambda i: {"kv_last_page_lens": torch.ones(2, dtype=torch.int64)},
    ),
    "kv_last_page_lens-short": (
        "kv_last_page_lens",
        lambda i: {"kv_last_page_lens": torch.ones(1, dtype=torch.int32)},
    ),
    "sm_scale-string": ("sm_scale", lambda i: {"sm_scale": "1"}),
    "sm_scale-nan": ("sm_scale", lambda i: {"sm_scale": float("nan")}),
    "sm_scale-negative": ("sm_scale", lambda i: {"sm_scale": -0.1}),
    "sm_scale-tensor": ("sm_scale", lambda i: {"sm_scale": torch.tensor(0.1)}),
    "q_scale-fp64": ("q_scale", lambda i: {"q_scale": torch.ones(1, dtype=torch.float64)}),
    "q_scale-two": ("q_scale", lambda i: {"q_scale": torch.ones(2)}),
    "q_scale-float": ("q_scale", lambda i: {"q_scale": 1.0}),
    "kv_scale-bf16": ("kv_scale", lambda i: {"kv_scale": torch.ones(1, dtype=torch.bfloat16)}),
    "kv_scale-empty": ("kv_scale", lambda i: {"kv_scale": torch.ones(0)}),
    "out-rows": ("out", lambda i: {"out": _out(rows=2)}),
    "out-heads": ("out", lambda i: {"out": _out(nhead=15)}),
    "out-width": ("out", lambda i: {"out": _out(width=576)}),
    "out-fp32": ("out", lambda i: {"out": _out(dtype=torch.float32)}),
    "out-strided-columns": ("out", lambda i: {"out": _out(width=1024)[..., ::2]}),
    "out-2d": ("out", lambda i: {"out": _out().flatten(1)}),
    "out-other-device": ("out", lambda i: {"out": _out().to("meta")}),
    "lse-fp64": ("lse", lambda i: {"lse": torch.zeros(3, 16, dtype=torch.float64)}),
    "lse-shape": ("lse", lambda i: {"lse": torch.zeros(3, 15)}),
    "lse-strided": ("lse", lambda i: {"lse": torch.zeros(3, 32)[:, ::2]}),
    "route-unknown": ("route", lambda i: {"route": "asm"}),
    "num_splits-0": ("num_splits", lambda i: {"route": "hk", "num_splits": 0}),
    "num_splits-negative": ("num_splits", lambda i: {"route": "hk", "num_splits": -2}),
    "num_splits-huge": ("num_splits", lambda i: {"route": "hk", "num_splits": 100000}),
    "tile_rows-48": ("tile_rows", lambda i: {"tile_rows": 48}),
    "tile_rows-tensor": ("tile_rows", lambda i: {"tile_rows": torch.tensor(16)}),
    "kv_len-negative": ("kv_len", lambda i: {"kv_len": -1}),
    "plan-other-type": ("plan", lambda i: {"plan": (1, 2)}),
    "workspace-other-type": ("workspace", lambda i: {"workspace": torch.zeros(4)}),
}

UNSUPPORTED: dict[str, tuple[str, Change]] = {
    "max_seqlen_q-17": ("q_len|max_seqlen_q", lambda i: {"max_seqlen_q": 17}),
    "page_size-3": ("page_size", lambda i: {"kv_buffer": i["kv_buffer"][:, :3]}),
    "head_dim_qk-570": (
        "head_dim",
        lambda i: {"q": i["q"][..., :568], "kv_buffer": i["kv_buffer"][..., :568]},
    ),
    "bf16-fp16": ("dtype", lambda i: {"kv_buffer": i["kv_buffer"].half()}),
    "fp8-bf16": ("dtype", lambda i: {"q": i["q"].to(torch.float8_e4m3fn)}),
    "fn-fnuz": (
        "dtype",
        lambda i: {
            "q": i["q"].to(torch.float8_e4m3fn),
            "kv_buffer": i["kv_buffer"].to(torch.float8_e4m3fnuz),
        },
    ),
}


def _refused(change: Change, error: type[BadArgument], name: str, calls_before: int = 0) -> None:
    """Calls with one argument changed and expects `error`, its name and an untouched out."""
    inputs = cases.make_inputs(CASE)
    for _ in range(calls_before):
        hipdecode.mla_decode(**inputs)
        hipdecode.mla_decode(**inputs, route="hk", num_splits=1)
    changed = change(inputs)
    arguments: dict[str, object] = {**inputs, "out": _out(), "lse": torch.full((3, 16), 7.0)}
    arguments |= {"return_lse": True, **changed}
    with pytest.raises(error, match=rf"({name})[\s\S]*expected|expected[\s\S]*({name})"):
        hipdecode.mla_decode(**arguments)
    for key in ("out", "lse"):
        if key not in changed:
            assert (arguments[key] == 7).all(), f"{key}: expected to be untouched"


@pytest.mark.parametrize("calls_before", [0, 2])
@pytest.mark.parametrize("name", BAD)
def test_mla_decode_refuses_bad_arguments(name: str, calls_before: int) -> None:
    argument, change = BAD[name]
    _refused(change, BadArgument, argument, calls_before)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_mla_decode_refuses_unsupported_shapes(name: str) -> None:
    argument, change = UNSUPPORTED[name]
    _refused(change, UnsupportedShape, argument)


def test_mla_decode_refuses_an_unknown_keyword_by_name() -> None:
    with pytest.raises(TypeError, match="logit_caps"):
        hipdecode.mla_decode(**cases.make_inputs(CASE), logit_caps=1.0)


@pytest.mark.parametrize("change", ["nhead", "max_seqlen_q", "batch"])
def test_mla_decode_refuses_a_plan_of_another_shape(change: str) -> None:
    inputs = cases.make_inputs(CASE)
    shape = {"nhead": 16, "max_seqlen_q": 2, "page_size": 16}
    qo_indptr, kv_indptr = inputs["qo_indptr"], inputs["kv_indptr"]
    if change == "batch":
        qo_indptr, kv_indptr = qo_indptr[:2].contiguous(), kv_indptr[:2].contiguous()
    else:
        shape[change] = 1
    plan = hipdecode.plan_mla_decode(qo_indptr, kv_indptr, **shape)
    out = _out()
    with pytest.raises(BadArgument, match="plan"):
        hipdecode.mla_decode(**inputs, route="persistent", plan=plan, out=out)
    assert (out == 7).all()


OP_CHANGES: dict[str, tuple[int, object]] = {
    "q-2d": (0, torch.zeros(3, 576, dtype=torch.bfloat16)),
    "q-fp32": (0, torch.zeros(3, 16, 576)),
    "kv-3d": (1, torch.zeros(9, 16, 576, dtype=torch.bfloat16)),
    "kv-narrow": (1, torch.zeros(9, 16, 1, 512, dtype=torch.bfloat16)),
    "o-rows": (2, torch.zeros(1, 16, 512, dtype=torch.bfloat16)),
    "o-fp32": (2, torch.zeros(3, 16, 512)),
    "lse-short": (3, torch.zeros(1)),
    "qo_indptr-int64": (4, torch.tensor([0, 2, 3])),
    "qo_indptr-empty": (4, torch.zeros(0, dtype=torch.int32)),
    "kv_indptr-short": (5, torch.zeros(1, dtype=torch.int32)),
    "kv_indices-float": (6, torch.zeros(9)),
    "last-short": (7, torch.zeros(1, dtype=torch.int32)),
    "q_scale-two": (11, torch.ones(2)),
    "kv_scale-half": (12, torch.ones(1, dtype=torch.float16)),
    "max_seqlen_q-0": (13, 0),
    "num_splits-0": (14, 0),
    "num_splits-without-scratch": (14, 4),
    "tile_rows-48": (17, 48),
}


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", OP_CHANGES)
def test_mla_decode_hk_op_raises_instead_of_reading_wild(name: str) -> None:
    i = cases.make_inputs(CASE)
    index = (i["qo_indptr"], i["kv_indptr"], i["kv_indices"], i["kv_last_page_lens"])
    arguments = [i["q"], i["kv_buffer"], _out(), torch.zeros(3, 16), *index]
    arguments += [None, None, None, None, None, 2, 1, 0.1, True, 0]
    position, value = OP_CHANGES[name]
    arguments[position] = value
    with pytest.raises(RuntimeError, match="expected"):
        torch.ops.hipdecode.mla_decode_hk(*arguments)
