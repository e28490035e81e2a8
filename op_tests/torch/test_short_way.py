# SPDX-License-Identifier: MIT
"""The short way of a call: taken from the second of a shape on, with the long way's results."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hipdecode
from hipdecode import ops, short_way
from hipdecode.errors import BadArgument
from hipdecode.testing import cases
from hipdecode.testing.calls import decode
from hipdecode.testing.cases import Case, MlaInputs
from hipdecode.testing.sparse_cases import SparseCase, for_target, make_sparse_inputs, to_device

CASE = Case(nhead=12, q_lens=(2, 1), kv_lens=(300, 70), page_size=16)
ROUTES = ("hk-1", "hk-3", "persistent", "planned")


class Outcomes(list[int]):
    """What became of the calls that tried the short way."""

    def watch(self, function: Any) -> Any:
        def watched(*arguments: object) -> int:
            self.append(function(*arguments))
            return self[-1]

        return watched


@pytest.fixture
def outcomes(target: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Outcomes:
    del device
    if ops.short_way is None or target.startswith("sim:"):
        pytest.skip("short way: torch 2.11 or newer on a CPU or a GPU has it")
    noted, real = Outcomes(), ops.short_way
    watched = {name: noted.watch(getattr(real, name)) for name in ("decode", "plan", "sparse")}
    monkeypatch.setattr(ops, "short_way", dataclasses.replace(real, **watched))
    return noted


def plan_of(inputs: MlaInputs, **more: Any) -> hipdecode.MlaPlan:
    lengths = {key: inputs[key] for key in ("qo_indptr", "kv_indptr", "kv_last_page_lens")}
    sizes = {"nhead": CASE.nhead, "max_seqlen_q": 2, "page_size": CASE.page_size}
    return hipdecode.plan_mla_decode(**lengths, **{**sizes, "compute_units": 5, **more})


def run(inputs: MlaInputs, route: str, **more: Any) -> tuple[Tensor, Tensor]:
    if route == "planned":
        return decode(inputs, "persistent", plan=plan_of(inputs), **more)
    return decode(inputs, route, **more)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtypes", [("bf16", "bf16"), ("fp8_e4m3fn", "fp8_e4m3fn")], ids="-".join)
def test_second_call_goes_the_short_way_and_gives_the_same_bits(
    device: torch.device,
    outcomes: Outcomes,
    monkeypatch: pytest.MonkeyPatch,
    dtypes: tuple[str, str],
    route: str,
) -> None:
    case = dataclasses.replace(CASE, q_dtype=dtypes[0], kv_dtype=dtypes[1], kv_scale=0.5)
    inputs = cases.to_device(cases.make_inputs(case), device)
    with monkeypatch.context() as patch:
        patch.setattr(ops, "short_way", None)
        want = run(inputs, route)
    for _ in range(3):
        got = run(inputs, route)
        assert all(map(torch.equal, got, want))
    assert outcomes[-1] == short_way.SERVED


def test_calls_without_an_lse_or_a_scale_go_the_short_way(
    device: torch.device, outcomes: Outcomes
) -> None:
    inputs = cases.to_device(cases.make_inputs(CASE), device)
    plain = {key: inputs[key] for key in ("q", "kv_buffer", "qo_indptr", "kv_indptr", "kv_indices")}
    more = {"max_seqlen_q": 2, "kv_last_page_lens": inputs["kv_last_page_lens"]}
    want = hipdecode.mla_decode(**plain, **more, sm_scale=576**-0.5)
    for _ in range(2):
        got = hipdecode.mla_decode(**plain, **more)
    assert torch.equal(got, want)
    assert outcomes[-1] == short_way.SERVED


def test_a_call_of_no_rows_is_served(device: torch.device, outcomes: Outcomes) -> None:
    inputs = cases.to_device(cases.make_inputs(CASE), device).copy()
    inputs["q"] = inputs["q"][:0]
    for _ in range(3):
        out, lse = decode(inputs, "hk-1")
    assert (out.shape, lse.shape) == ((0, 12, 512), (0, 12))
    assert outcomes


class _Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("route", ROUTES)
def test_whoever_watches_sees_operators(device: torch.device, route: str) -> None:
    inputs = cases.to_device(cases.make_inputs(CASE), device)
    for _ in range(2):
        run(inputs, route)
    with _Seen() as seen:
        run(inputs, route)
    assert any(name.startswith("hipdecode.mla_decode") for name in seen.names)
    with torch.profiler.profile() as profile:
        run(inputs, route)
    assert any("mla_decode" in event.key for event in profile.key_averages())


def test_subclasses_of_tensors_go_the_long_way(device: torch.device, outcomes: Outcomes) -> None:
    class Wrapped(Tensor):
        pass

    inputs = cases.to_device(cases.make_inputs(CASE), device).copy()
    want, _ = decode(inputs, "hk-1")
    decode(inputs, "hk-1")
    assert outcomes[-1] == short_way.SERVED
    inputs["q"] = inputs["q"].as_subclass(Wrapped)
    got, _ = decode(inputs, "hk-1", out=torch.empty_like(want))
    assert outcomes[-1] == short_way.LONG_WAY
    assert torch.equal(got, want)


def test_a_plan_of_replaced_buffers_is_read_anew(device: torch.device, outcomes: Outcomes) -> None:
    inputs = cases.to_device(cases.make_inputs(CASE), device)
    plan = plan_of(inputs)
    want = [decode(inputs, "persistent", plan=plan) for _ in range(2)][1]
    other = dataclasses.replace(plan, partial_output=torch.full_like(plan.partial_output, 9.0))
    plan.partial_output.fill_(float("nan"))
    before = plan.partial_output.clone()
    got = decode(inputs, "persistent", plan=other)
    assert all(map(torch.equal, got, want))
    assert outcomes[-1] == short_way.SERVED
    assert torch.equal(plan.partial_output.isnan(), before.isnan())


def test_a_workspace_that_has_grown_is_read_anew(device: torch.device, outcomes: Outcomes) -> None:
    workspace = hipdecode.Workspace(device)
    small = cases.to_device(cases.make_inputs(CASE), device)
    large = cases.to_device(
        cases.make_inputs(dataclasses.replace(CASE, q_lens=(2, 2, 2), kv_lens=(9, 70, 300))), device
    )
    want = [decode(inputs, "hk-4") for inputs in (small, large)]
    for _ in range(3):
        for inputs, (out, lse) in zip((small, large), want, strict=True):
            got, got_lse = decode(inputs, "hk-4", workspace=workspace)
            assert torch.equal(got, out)
            assert torch.equal(got_lse, lse)
    assert outcomes[-2:] == [short_way.SERVED] * 2


def test_planning_into_a_plan_goes_the_short_way(device: torch.device, outcomes: Outcomes) -> None:
    inputs = cases.to_device(cases.make_inputs(CASE), device)
    plan, fresh = plan_of(inputs), plan_of(inputs)
    for _ in range(3):
        plan.work_indptr.zero_()
        assert plan_of(inputs, out=plan) is plan
        assert torch.equal(plan.work_indptr, fresh.work_indptr)
    assert outcomes[-1] == short_way.SERVED
    longer = cases.to_device(
        cases.make_inputs(dataclasses.replace(CASE, kv_lens=(40, 290))), device
    )
    plan_of(longer, out=plan)
    assert outcomes[-1] == short_way.SERVED
    assert torch.equal(plan.work_indptr, plan_of(longer).work_indptr)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("qo_indptr", torch.zeros(9, dtype=torch.int32)),
        ("qo_indptr", torch.zeros(3, dtype=torch.int64)),
        ("kv_indptr", torch.zeros(2, dtype=torch.int32)),
        ("kv_last_page_lens", torch.zeros(1, dtype=torch.int32)),
        ("kv_last_page_lens", [1, 2]),
    ],
)
def test_planning_checks_new_lengths_of_a_known_shape(
    device: torch.device, outcomes: Outcomes, name: str, value: Any
) -> None:
    inputs: Any = cases.to_device(cases.make_inputs(CASE), device).copy()
    plan = plan_of(inputs)
    for _ in range(2):
        plan_of(inputs, out=plan)
    assert outcomes[-1] == short_way.SERVED
    inputs[name] = value.to(device) if isinstance(value, Tensor) else value
    with pytest.raises(hipdecode.BadArgument):
        plan_of(inputs, out=plan)


@pytest.mark.usefixtures("sparse_kernels")
@pytest.mark.parametrize("splits", [None, 1, 3])
@pytest.mark.parametrize("layout", ["ragged", "lengths", "table"])
@pytest.mark.parametrize("form", ["v32", "v4"])
def test_sparse_calls_go_the_short_way_and_give_the_same_bits(
    form: str,
    layout: str,
    splits: int | None,
    target: str,
    device: torch.device,
    outcomes: Outcomes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = SparseCase(form, 12, lens=(300, 70), extra_lens=(0, 90), layout=layout, sink="normal")
    inputs = to_device(make_sparse_inputs(for_target(case, target)), device)

    def run_sparse() -> tuple[Tensor, Tensor]:
        out, lse = hipdecode.sparse_mla_decode(**inputs, num_splits=splits, return_lse=True)
        return out, lse

    with monkeypatch.context() as patch:
        patch.setattr(ops, "short_way", None)
        want = run_sparse()
    assert not outcomes
    assert all(map(torch.equal, run_sparse(), want))
    assert outcomes == [short_way.SERVED]


@pytest.mark.usefixtures("sparse_kernels")
def test_unusual_sparse_calls_go_the_long_way(
    target: str, device: torch.device, outcomes: Outcomes
) -> None:
    class Wrapped(Tensor):
        pass

    case = for_target(SparseCase("v4", 12, layout="lengths"), target)
    inputs = to_device(make_sparse_inputs(case), device)
    want = hipdecode.sparse_mla_decode(**inputs)
    wrapped = inputs.copy()
    wrapped["cache"] = inputs["cache"].as_subclass(Wrapped)
    got = hipdecode.sparse_mla_decode(**wrapped)
    assert torch.equal(got, want)
    inputs["lengths"] = torch.zeros(5, dtype=torch.int32, device=device)
    with pytest.raises(BadArgument, match="lengths: expected"):
        hipdecode.sparse_mla_decode(**inputs)
    assert outcomes == [short_way.SERVED, short_way.LONG_WAY, short_way.LONG_WAY]


@pytest.mark.parametrize("route", ROUTES)
def test_a_share_of_the_cache_goes_the_short_way(
    device: torch.device, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    inputs = cases.to_device(cases.make_inputs(CASE), device)
    lengths = torch.tensor([0, 599, 739], dtype=torch.int32, device=device)
    shard = hipdecode.KvShard(lengths, 2, 1)
    plan = {"plan": plan_of(inputs, causal=False)} if route == "planned" else {}
    name = "persistent" if route == "planned" else route
    with monkeypatch.context() as patch:
        patch.setattr(ops, "short_way", None)
        want = decode(inputs, name, shard=shard, **plan)
    for _ in range(3):
        got = decode(inputs, name, shard=shard, **plan)
        assert all(map(torch.equal, got, want))
    assert outcomes[-1] == short_way.SERVED
