# SPDX-License-Identifier: MIT
"""The registered ops as torch sees them: schemas, fake kernels, compile, allocations, threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import hipdecode
from hipdecode import registry
from hipdecode import target as targets
from hipdecode.errors import WorkspaceError
from hipdecode.testing import cases, compare
from hipdecode.testing.calls import decode, prepared
from hipdecode.testing.cases import Case, MlaInputs
from hipdecode.testing.recorder import Recorder

CASE = Case(nhead=12, q_lens=(2, 1), kv_lens=(300, 70), page_size=16)
ROUTES = ("hk-1", "hk-3", "persistent")


def _plan(inputs: MlaInputs) -> hipdecode.MlaPlan:
    return hipdecode.plan_mla_decode(
        inputs["qo_indptr"],
        inputs["kv_indptr"],
        nhead=CASE.nhead,
        max_seqlen_q=inputs["max_seqlen_q"],
        page_size=CASE.page_size,
        kv_last_page_lens=inputs["kv_last_page_lens"],
        compute_units=5,
    )


def _op_arguments(name: str) -> tuple[object, ...]:
    """Positional arguments of one registered op."""
    i = cases.make_inputs(CASE)
    plan = _plan(i)
    out, lse = torch.zeros(3, 12, 512, dtype=torch.bfloat16), torch.zeros(3, 12)
    common = (i["q"], i["kv_buffer"], out, lse, i["qo_indptr"], i["kv_indptr"], i["kv_indices"])
    last = i["kv_last_page_lens"]
    if name == "mla_decode_hk":
        scratch = (torch.zeros(9, 12, 512), torch.zeros(9, 12), torch.zeros(8, dtype=torch.int32))
        return (*common, last, *scratch, None, None, 2, 3, 0.1, True, 0)
    if name == "mla_decode_persistent":
        plan.partial_output.zero_()
        plan.partial_lse.zero_()
        works = (plan.work_indptr, plan.work_info_set, plan.partial_output, plan.partial_lse)
        return (*common, last, *works, None, None, 2, 0.1, True)
    maps = (plan.reduce_indptr, plan.reduce_final_map, plan.reduce_partial_map)
    if name == "mla_reduce":
        partials = (torch.randn_like(plan.partial_output), torch.randn_like(plan.partial_lse))
        return (*partials, *maps, out, lse, 2, 5)
    lists = (plan.work_metadata_ptrs, plan.work_info_set, plan.work_indptr, *maps)
    for tensor in lists:
        tensor.zero_()
    return (i["qo_indptr"], i["kv_indptr"], last, *lists, 12, 16, 4, 2, -1, -1, -1, True, False, 32)


OPS = ("mla_decode_hk", "mla_decode_persistent", "mla_reduce", "mla_plan")


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (1, torch.zeros(4, 24, 1, 576, dtype=torch.bfloat16), "page size that is a power of two"),
        (13, 1 << 30, "max_seqlen_q: expected 1 to 89478485"),
    ],
    ids=["page-size", "packed-rows"],
)
def test_op_refuses_what_its_kernels_cannot_count(at: int, value: object, message: str) -> None:
    arguments = list(_op_arguments("mla_decode_hk"))
    arguments[at] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.hipdecode.mla_decode_hk(*arguments)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", OPS)
def test_op_passes_opcheck(name: str) -> None:
    op = getattr(torch.ops.hipdecode, name).default
    torch.library.opcheck(op, _op_arguments(name))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", OPS)
def test_op_runs_on_fake_tensors(name: str) -> None:
    arguments = _op_arguments(name)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments]
        assert getattr(torch.ops.hipdecode, name)(*fakes) is None


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_mla_decode_compiles_without_graph_breaks(
    route: str, backend: str, device: torch.device
) -> None:
    inputs = cases.to_device(prepared(CASE)[0], device)
    torch.compiler.reset()
    compiled = torch.compile(decode, fullgraph=True, backend=backend)
    want, want_lse = decode(inputs, route)
    for _ in range(2):
        out, lse = compiled(inputs, route)
        assert torch.equal(out, want)
        assert torch.equal(lse, want_lse)


def test_compiled_mla_decode_follows_new_lengths(target: str, device: torch.device) -> None:
    compiled = torch.compile(hipdecode.mla_decode, fullgraph=True, backend="aot_eager")
    for seed, kv_lens in enumerate(((300, 70), (1, 0), (290, 80))):
        case = Case(nhead=12, q_lens=(2, 1), kv_lens=kv_lens, page_size=16, seed=seed)
        inputs, want = prepared(case)
        out, lse = compiled(**cases.to_device(inputs, device), return_lse=True)
        compare.assert_decode_matches(
            case, inputs, out, lse, target=target, want=want, call="compiled"
        )


_FRESH = """
import torch, hipdecode
from hipdecode.testing import compare, cases
from hipdecode.testing.calls import prepared
case = cases.Case(nhead=12, q_lens=(2, 1), kv_lens=(300, 70), page_size=16)
inputs, want = prepared(case)
compiled = torch.compile(hipdecode.mla_decode, fullgraph=True, backend="eager")
out, lse = compiled(**inputs, return_lse=True)
compare.assert_decode_matches(case, inputs, out, lse, target="TARGET", want=want)
"""


def test_mla_decode_compiles_as_the_first_call_of_a_fresh_process(target: str) -> None:
    script = _FRESH.replace("TARGET", target)
    env = {**os.environ, "PYTHONPATH": str(Path(hipdecode.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]


def test_warmup_loads_all_that_a_decode_may_launch(target: str, device: torch.device) -> None:
    names = hipdecode.warmup(device=device)
    assert {"mla_plan", "mla_reduce"} < set(names) <= set(hipdecode.ops.loaded_kernels())
    for packed in (1, 16, 40, 128, 512):
        rows = registry.wanted_rows(targets.resolve(target).family, packed)
        for route in ("hk", "persistent"):
            assert f"mla_decode_{route}/576-512-bf16-bf16-{rows}" in names


def _outputs(device: torch.device) -> dict[str, Tensor]:
    out = torch.empty(3, 12, 512, dtype=torch.bfloat16, device=device)
    return {"out": out, "lse": torch.empty(3, 12, device=device)}


@pytest.mark.parametrize("route", ROUTES)
def test_mla_decode_runs_nothing_but_its_ops_in_steady_state(
    route: str, device: torch.device
) -> None:
    inputs = cases.to_device(prepared(CASE)[0], device)
    more: dict[str, Any] = dict(_outputs(device))
    if route == "persistent":
        more["plan"] = _plan(inputs)
    decode(inputs, route, **more)
    with Recorder() as recorder:
        decode(inputs, route, **more)
    foreign = [name for name in recorder.ops if not name.startswith("hipdecode")]
    assert not foreign, f"expected no op but hipdecode's, got {foreign}"


@pytest.mark.parametrize("route", ROUTES)
def test_mla_decode_reuses_its_default_workspace(route: str, device: torch.device) -> None:
    inputs = cases.to_device(prepared(CASE)[0], device)
    more = _outputs(device)
    decode(inputs, route, **more)
    with Recorder() as recorder:
        decode(inputs, route, **more)
        decode(inputs, route, **more)
    half = len(recorder.addresses) // 2
    assert half > 0
    assert recorder.addresses[:half] == recorder.addresses[half:]


def test_mla_decode_uses_the_workspace_of_the_caller(target: str, device: torch.device) -> None:
    inputs, want = prepared(CASE)
    placed = cases.to_device(inputs, device)
    workspace = hipdecode.Workspace(device)
    for route in ROUTES:
        out, lse = decode(placed, route, workspace=workspace)
        compare.assert_decode_matches(CASE, inputs, out, lse, target=target, want=want, call=route)
    assert workspace.nbytes > 0
    held = workspace.nbytes
    for route in ROUTES:
        decode(placed, route, workspace=workspace)
    assert workspace.nbytes == held
    with pytest.raises(WorkspaceError, match="max_bytes"):
        decode(placed, "hk-3", workspace=hipdecode.Workspace(device, max_bytes=1000))


def test_plans_of_a_workspace_share_their_partial_results(device: torch.device) -> None:
    workspace = hipdecode.Workspace(device)
    plans = []
    for q_len in (2, 1):
        qo_indptr, kv_indptr = (
            torch.tensor([0, end], dtype=torch.int32, device=device) for end in (q_len, 70)
        )
        plans.append(
            hipdecode.plan_mla_decode(
                qo_indptr, kv_indptr, nhead=16, max_seqlen_q=q_len, workspace=workspace
            )
        )
    first, second = (plan.partial_output.untyped_storage().data_ptr() for plan in plans)
    assert first == second


@pytest.mark.parametrize("kv_len", [None, 1, 100, 1_000_000])
def test_mla_decode_takes_the_average_length_as_a_hint_only(
    kv_len: int | None, target: str, device: torch.device
) -> None:
    inputs, want = prepared(CASE)
    out = hipdecode.mla_decode(**cases.to_device(inputs, device), kv_len=kv_len)
    compare.assert_decode_matches(CASE, inputs, out, None, target=target, want=want)


def test_mla_decode_is_right_on_two_threads_at_once(target: str, device: torch.device) -> None:
    work = [
        (Case(nhead=16, q_lens=(1, 2), kv_lens=(700, 300), seed=1), "hk-4"),
        (Case(nhead=12, q_lens=(3, 1), kv_lens=(260, 800), seed=2), "hk-8"),
        (Case(nhead=32, q_lens=(1, 1), kv_lens=(900, 100), seed=3), "persistent"),
    ]
    failures: list[BaseException] = []
    start = threading.Barrier(len(work))

    def loop(case: Case, route: str) -> None:
        inputs, want = cases.make_inputs(case), prepared(case)[1]
        placed = cases.to_device(inputs, device)
        start.wait()
        try:
            for _ in range(15):
                out, lse = decode(placed, route)
                compare.assert_decode_matches(
                    case, inputs, out, lse, target=target, want=want, call=route
                )
        except BaseException as error:
            failures.append(error)

    for case, _ in work:
        prepared(case)
    threads = [threading.Thread(target=loop, args=item) for item in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_mla_decode_is_right_for_any_number_of_threads(
    threads: int, target: str, device: torch.device
) -> None:
    inputs, want = prepared(CASE)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for route in ROUTES:
            out, lse = decode(cases.to_device(inputs, device), route)
            compare.assert_decode_matches(
                CASE, inputs, out, lse, target=target, want=want, call=route
            )
    finally:
        torch.set_num_threads(before)


def test_mla_decode_gives_no_gradient_silently(device: torch.device) -> None:
    inputs = cases.to_device(prepared(CASE)[0], device).copy()
    inputs["q"] = inputs["q"].clone().requires_grad_()
    out, _ = decode(inputs, "hk-1")
    assert not out.requires_grad
