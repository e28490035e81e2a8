# SPDX-License-Identifier: MIT
"""Paged attention as torch and its callers see it: schema, compile, replay, refusals, garbage."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import hipdecode
from hipdecode.errors import BadArgument, UnsupportedShape, WorkspaceError
from hipdecode.paged import PagedOptions, paged_attention, warmup_paged
from hipdecode.paged_route import PagedShape
from hipdecode.testing.calls import captured
from hipdecode.testing.paged_cases import (
    PagedCase,
    PagedInputs,
    for_target,
    make_paged_inputs,
    to_device,
)
from hipdecode.testing.recorder import Recorder

pytestmark = pytest.mark.usefixtures("paged_kernels")

CASE = PagedCase(lens=(300, 70), mtp=2)
TWO = PagedOptions(max_seqlen_q=2)


@pytest.fixture
def inputs(target: str, device: torch.device) -> PagedInputs:
    """The tensors of CASE in the flavour of the target."""
    return to_device(make_paged_inputs(for_target(CASE, target)), device)


def _op_arguments(i: PagedInputs, *, fnuz: bool = False) -> tuple[object, ...]:
    """Positional arguments of the registered op, three splits; `fnuz`: of a cache of bytes."""
    out, lse = torch.zeros_like(i["q"]), torch.zeros(i["q"].shape[:2])
    rows, nhead, head_dim = i["q"].shape
    scratch = (
        torch.zeros(3 * rows, nhead, head_dim),
        torch.zeros(3 * rows, nhead),
        torch.zeros(4, dtype=torch.int32),
    )
    first = (i["q"], i["key_cache"], i["value_cache"], out, lse)
    lists = (i["block_tables"], i["context_lens"], None)
    fnuz = fnuz or i["key_cache"].dtype == torch.float8_e4m3fnuz
    return (*first, *lists, i["k_scale"], i["v_scale"], None, *scratch, 2, 3, 0.1, True, fnuz)


def test_paged_op_passes_opcheck(inputs: PagedInputs, device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("opcheck of host tensors: runs on any CPU machine")
    fnuz = inputs["key_cache"].dtype == torch.float8_e4m3fnuz
    # it multiplies copies of the inputs, which torch cannot do with fp8, and compares NaN with NaN
    for name in ("key_cache", "value_cache"):
        bits = inputs[name].view(torch.uint8)  # type: ignore[literal-required]
        inputs[name] = torch.zeros_like(bits)  # type: ignore[literal-required]
    for name in ("k_scale", "v_scale"):
        inputs[name] = torch.ones_like(inputs[name])  # type: ignore[literal-required]
    op = torch.ops.hipdecode.paged_attention.default
    torch.library.opcheck(op, _op_arguments(inputs, fnuz=fnuz))


@pytest.mark.usefixtures("device")
def test_paged_op_runs_on_fake_tensors() -> None:
    arguments = _op_arguments(make_paged_inputs(CASE))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments]
        assert torch.ops.hipdecode.paged_attention(*fakes) is None


@pytest.mark.parametrize("splits", [None, 3])
def test_paged_attention_compiles_without_graph_breaks(
    splits: int | None, inputs: PagedInputs
) -> None:
    options = PagedOptions(max_seqlen_q=2, num_splits=splits)

    def call(inputs: PagedInputs) -> Tensor:
        return paged_attention(**inputs, options=options)

    want = call(inputs)
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert torch.equal(compiled(inputs), want)


# An allocation, a copy to the host and .item() would each be an op of torch's own.
@pytest.mark.parametrize("splits", [None, 1, 3])
def test_paged_attention_runs_nothing_but_its_op_in_steady_state(
    splits: int | None, inputs: PagedInputs
) -> None:
    options = PagedOptions(max_seqlen_q=2, num_splits=splits)
    out = torch.empty_like(inputs["q"])
    paged_attention(**inputs, options=options, out=out)  # the workspace grows in the first call
    with Recorder() as recorder:
        environment = dict(os.environ)  # here: entering it loads modules of torch that write to it
        paged_attention(**inputs, options=options, out=out)
    assert recorder.ops == ["hipdecode.paged_attention.default"]
    assert dict(os.environ) == environment


def test_a_captured_step_follows_lengths_tables_and_queries(
    inputs: PagedInputs, device: torch.device
) -> None:
    options = PagedOptions(max_seqlen_q=2, num_splits=3)
    out = torch.empty_like(inputs["q"])
    replay = captured(lambda: paged_attention(**inputs, options=options, out=out), device)
    for lens in ([300, 70], [0, 64], [17, 1], [299, 2]):
        inputs["context_lens"].copy_(torch.tensor(lens, dtype=torch.int32))
        inputs["q"].mul_(-1)
        out.fill_(float("nan"))
        replay()
        got = out.clone()
        assert torch.equal(got, paged_attention(**inputs, options=options))


def test_paged_attention_uses_the_workspace_of_the_caller(
    inputs: PagedInputs, device: torch.device
) -> None:
    options = PagedOptions(max_seqlen_q=2, num_splits=3)
    workspace = hipdecode.Workspace(device)
    want = paged_attention(**inputs, options=options)
    assert torch.equal(want, paged_attention(**inputs, options=options, workspace=workspace))
    assert workspace.nbytes >= 4 * 3 * 16 * 129 * 4
    small = hipdecode.Workspace(device, max_bytes=1000)
    with pytest.raises(WorkspaceError, match="max_bytes"):
        paged_attention(**inputs, options=options, workspace=small)


def test_warmup_loads_both_kernels_of_a_shape(target: str, device: torch.device) -> None:
    case = for_target(CASE, target)
    family, units = hipdecode.ops.family_and_units(device)
    shape = PagedShape(
        family=family, compute_units=units, batch=2, nhead_kv=2, gqa=8, mtp=2, kv_len=300,
        kv_dtype=case.kv_dtype,
    )  # fmt: skip
    names = warmup_paged(shape, device=device)
    assert len(names) == 2
    assert set(names) <= set(hipdecode.ops.loaded_kernels())


I32 = torch.int32
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"q": torch.zeros(4, 16)}, "q"),
    ({"q": torch.zeros(4, 15, 128, dtype=torch.bfloat16)}, "q"),
    (
        {
            "q": torch.zeros(5, 16, 128, dtype=torch.bfloat16),
            "out": torch.zeros(5, 16, 128, dtype=torch.bfloat16),
        },
        "q",
    ),
    ({"q": torch.zeros(4, 128, 16, dtype=torch.bfloat16).transpose(1, 2)}, "q"),
    ({"q": None}, "q"),
    ({"key_cache": torch.zeros(2, 2, 8, 16)}, "key_cache"),
    ({"key_cache": torch.zeros(2, 2, 8, 20, 16, dtype=torch.uint8)}, "key_cache"),
    ({"key_cache": torch.zeros(2, 2, 7, 16, 16, dtype=torch.uint8)}, "key_cache"),
    ({"value_cache": torch.zeros(2, 2, 1, 128, 16, dtype=torch.uint8)}, "value_cache"),
    ({"value_cache": torch.zeros(30, 2, 128, 16, dtype=torch.bfloat16)}, "value_cache"),
    ({"block_tables": torch.zeros(2, dtype=I32)}, "block_tables"),
    ({"block_tables": torch.zeros(2, 9, dtype=torch.int64)}, "block_tables"),
    ({"context_lens": torch.zeros(1, dtype=I32)}, "context_lens"),
    ({"context_lens": torch.zeros(2, dtype=torch.int64)}, "context_lens"),
    ({"qo_indptr": torch.zeros(2, dtype=I32)}, "qo_indptr"),
    ({"k_scale": torch.ones(1)}, "k_scale, v_scale"),
    ({"k_scale": torch.ones(5, 2, 16)}, "k_scale"),
    ({"v_scale": torch.ones(1, dtype=torch.float64)}, "v_scale"),
    ({"sm_scale": -1.0}, "sm_scale"),
    ({"out": torch.zeros(4, 16, 64, dtype=torch.bfloat16)}, "out"),
    ({"out": torch.zeros(4, 16, 128)}, "out"),
    ({"out_scale": torch.ones(2)}, "out_scale"),
    ({"lse": torch.zeros(4, 15)}, "lse"),
    ({"options": PagedOptions(max_seqlen_q=0)}, "mtp"),
    ({"options": PagedOptions(max_seqlen_q=2, num_splits=0)}, "num_splits"),
    ({"options": PagedOptions(max_seqlen_q=2, route="asm")}, "route"),
]


@pytest.mark.parametrize(("changed", "name"), REFUSED)
def test_a_wrong_argument_is_refused_by_name_before_anything_is_written(
    changed: dict[str, Any], name: str, inputs: PagedInputs, device: torch.device
) -> None:
    out = torch.full_like(inputs["q"], 7.0)
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in changed.items()}
    given: dict[str, Any] = {**inputs, "options": TWO, "out": out, **moved}
    with pytest.raises(BadArgument, match=rf"^{name}: expected"):
        paged_attention(**given)
    assert bool((out == 7.0).all())


def test_a_refusal_says_what_was_given(inputs: PagedInputs) -> None:
    with pytest.raises(BadArgument, match=r"block_tables: .*it is torch.float32 \[2, 9\]"):
        paged_attention(**(inputs | {"block_tables": torch.zeros(2, 9)}), options=TWO)


def test_caches_of_another_type_than_any_kernels_are_refused(inputs: PagedInputs) -> None:
    with pytest.raises(UnsupportedShape, match="expected head_dim 128 or 64"):
        paged_attention(**(inputs | {"q": inputs["q"].float()}), options=TWO)


def test_contents_of_lists_are_not_trusted(inputs: PagedInputs, device: torch.device) -> None:
    gen = torch.Generator().manual_seed(3)
    for _ in range(20):
        for name in ("block_tables", "context_lens"):
            held = inputs[name]  # type: ignore[literal-required]
            wild = torch.randint(-(2**31), 2**31 - 1, held.shape, generator=gen).to(I32)
            held.copy_(torch.where(torch.rand(held.shape, generator=gen) < 0.7, wild, held.cpu()))
        starts = torch.randint(-5, 9, (3,), generator=gen).to(I32).to(device)
        for splits in (1, 3):
            options = PagedOptions(max_seqlen_q=2, num_splits=splits)
            paged_attention(**(inputs | {"qo_indptr": starts}), options=options)
            paged_attention(**inputs, options=options)
