# SPDX-License-Identifier: MIT
"""A warm step returns at once: it allocates nothing, waits for nothing, stays on its device."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import hipdecode
from hipdecode.errors import BadArgument
from hipdecode.testing import cases
from hipdecode.testing.asynchrony import assert_asynchronous
from hipdecode.testing.calls import decode
from hipdecode.testing.cases import Case, MlaInputs

CASE = Case(nhead=12, q_lens=(2, 1), kv_lens=(300, 70), page_size=16)
STEPS = ("hk-1", "hk-3", "persistent", "planned", "plan", "reduce")

RUNTIME = Path(__file__).resolve().parents[2] / "csrc" / "runtime"
WAITING_OR_ALLOCATING = r"Synchronize|MemAlloc|Malloc|MemFree|Memcpy|StreamWait|EventQuery"


def warm_step(name: str, inputs: MlaInputs, device: torch.device) -> Callable[[], object]:
    """One of STEPS with all it needs given, run once."""
    lengths = {key: inputs[key] for key in ("qo_indptr", "kv_indptr", "kv_last_page_lens")}
    sizes = {"nhead": CASE.nhead, "max_seqlen_q": 2, "page_size": CASE.page_size}
    plan = hipdecode.plan_mla_decode(**lengths, **sizes)
    more = {
        "out": torch.empty(3, 12, 512, dtype=torch.bfloat16, device=device),
        "lse": torch.empty(3, 12, device=device),
        "workspace": hipdecode.Workspace(device),
    }
    partials = (plan.partial_output, plan.partial_lse)
    maps = (plan.reduce_indptr, plan.reduce_final_map, plan.reduce_partial_map)
    steps: dict[str, Callable[[], object]] = {
        "planned": lambda: decode(inputs, "persistent", **more, plan=plan),
        "plan": lambda: hipdecode.plan_mla_decode(**lengths, **sizes, out=plan),
        "reduce": lambda: hipdecode.mla_reduce(*partials, *maps, 2, 0, more["out"], more["lse"]),
    }
    step = steps.get(name, lambda: decode(inputs, name, **more))
    steps["planned"]()
    step()
    step()
    return step


@pytest.mark.gpu
@pytest.mark.parametrize("name", STEPS)
def test_a_warm_step_allocates_nothing_and_waits_for_nothing(gpu: torch.device, name: str) -> None:
    step = warm_step(name, cases.to_device(cases.make_inputs(CASE), gpu), gpu)
    assert_asynchronous(step)


@pytest.mark.parametrize("driver", ["driver_cuda.cpp", "driver_hip.cpp"])
def test_a_gpu_driver_has_no_entry_that_waits_or_allocates(driver: str) -> None:
    entries = set(re.findall(r'"((?:cu|hip)[A-Z]\w+)"', (RUNTIME / driver).read_text()))
    assert {"cuLaunchKernelEx", "hipModuleLaunchKernel"} & entries
    assert not [entry for entry in entries if re.search(WAITING_OR_ALLOCATING, entry)]


TENSORS = ("kv_buffer", "qo_indptr", "kv_indptr", "kv_indices", "kv_last_page_lens", "kv_scale")


def _elsewhere(tensor: Tensor) -> Tensor:
    return tensor.to("cpu" if tensor.is_cuda else "meta")


@pytest.mark.parametrize("route", ["hk-1", "hk-3", "persistent"])
@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_on_another_device_is_refused_by_name(
    device: torch.device, route: str, name: str
) -> None:
    inputs = cases.to_device(cases.make_inputs(CASE), device).copy()
    inputs["kv_scale"] = torch.ones(1, device=device)
    out = torch.full((3, 12, 512), 7.0, dtype=torch.bfloat16, device=device)
    decode(inputs, route, out=out)
    out.fill_(7.0)
    inputs[name] = _elsewhere(inputs[name])  # type: ignore[literal-required]
    with pytest.raises(BadArgument, match=name):
        decode(inputs, route, out=out)
    assert (out == 7.0).all()


@pytest.mark.parametrize("route", ["hk-1", "persistent"])
@pytest.mark.parametrize("name", ["out", "lse"])
def test_a_result_on_another_device_is_refused_by_name(
    device: torch.device, route: str, name: str
) -> None:
    inputs = cases.to_device(cases.make_inputs(CASE), device)
    results = {
        "out": torch.empty(3, 12, 512, dtype=torch.bfloat16, device=device),
        "lse": torch.empty(3, 12, device=device),
    }
    decode(inputs, route, **results)
    results[name] = _elsewhere(results[name])
    with pytest.raises(BadArgument, match=name):
        decode(inputs, route, **results)


@pytest.mark.parametrize("calls_before", [0, 2])
@pytest.mark.parametrize("name", ["workspace", "plan"])
def test_memory_on_another_device_is_refused_by_name(
    device: torch.device, name: str, calls_before: int
) -> None:
    inputs = cases.to_device(cases.make_inputs(CASE), device)
    lengths = {key: inputs[key] for key in ("qo_indptr", "kv_indptr", "kv_last_page_lens")}
    sizes = {"nhead": CASE.nhead, "max_seqlen_q": 2, "page_size": CASE.page_size}
    plan = hipdecode.plan_mla_decode(**lengths, **sizes)
    tensors = {key: getattr(plan, key) for key in plan.__slots__ if key != "_kept"}
    moved = {k: _elsewhere(v) for k, v in tensors.items() if isinstance(v, Tensor)}
    route = "hk-3" if name == "workspace" else "persistent"
    good = {"workspace": hipdecode.Workspace(device), "plan": plan}
    bad = {
        "workspace": hipdecode.Workspace(moved["work_indptr"].device),
        "plan": dataclasses.replace(plan, **moved),
    }
    for _ in range(calls_before):
        decode(inputs, route, **{name: good[name]})
    with pytest.raises(BadArgument, match=name):
        decode(inputs, route, **{name: bad[name]})


@pytest.mark.gpu
@pytest.mark.parametrize("route", ["hk-3", "persistent"])
def test_a_call_runs_on_the_device_of_its_tensors_and_leaves_the_current_one(
    device: torch.device, route: str
) -> None:
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        pytest.skip("devices: a machine with two GPUs runs it, --target sm_90")
    inputs = cases.make_inputs(CASE)
    want, _ = decode(cases.to_device(inputs, "cuda:0"), route)
    with torch.cuda.device(0):
        out, _ = decode(cases.to_device(inputs, "cuda:1"), route)
        assert torch.cuda.current_device() == 0
    assert out.device.index == 1
    assert torch.equal(out.cpu(), want.cpu())
