# SPDX-License-Identifier: MIT
"""One step captured once and replayed on new contents; on a CPU, which has no graphs, called again.

The capture sees one set of lengths and the capacity of every buffer. Each replay has other lengths
within it, requests without rows or without tokens, and a tail of -1 behind the page ids in use.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import hipdecode
from hipdecode import settings
from hipdecode.errors import NotWarmed
from hipdecode.testing import cases, compare
from hipdecode.testing.calls import assert_alone_or_at_once, bits, captured
from hipdecode.testing.cases import Case
from hipdecode.workspace import default_workspace

BATCH, PAGE, PAGES_EACH, MOST_ROWS = 6, 16, 20, 4
FIRST = Case(nhead=16, q_lens=(1, 2, 4, 1, 3, 1), kv_lens=(300, 5, 64, 17, 4, 129), page_size=PAGE)
ROUTES = ("hk-1", "hk-3", "persistent", "planned")
DTYPES = (("bf16", "bf16"), ("bf16", "fp8_e4m3fn"), ("fp8_e4m3fn", "fp8_e4m3fn"))
Call = Callable[[], object]


class Buffers:
    """A step's tensors at full capacity; `fill` gives them the contents of a case."""

    def __init__(self, case: Case, device: torch.device) -> None:
        rows, i32 = BATCH * MOST_ROWS, {"dtype": torch.int32, "device": device}
        pool = torch.zeros(BATCH * PAGES_EACH + 3, PAGE, 1, 576).to(cases.DTYPES[case.kv_dtype])
        shape = (rows, case.nhead, 512)
        self.inputs: dict[str, Any] = {
            "q": torch.zeros(rows, case.nhead, 576).to(cases.DTYPES[case.q_dtype]).to(device),
            "kv_buffer": pool.to(device),
            "qo_indptr": torch.zeros(BATCH + 1, **i32),
            "kv_indptr": torch.zeros(BATCH + 1, **i32),
            "kv_indices": torch.zeros(BATCH * PAGES_EACH, **i32),
            "kv_last_page_lens": torch.zeros(BATCH, **i32),
            "max_seqlen_q": MOST_ROWS,
            "sm_scale": case.sm_scale,
            "causal": case.causal,
            "q_scale": None,
            "kv_scale": None,
        }
        self.out = torch.empty(shape, dtype=case.out_dtype, device=device)
        self.lse = torch.empty(shape[:2], device=device)

    def fill(self, case: Case) -> None:
        """Writes a case; what it leaves of the capacity cannot pass for data."""
        new = cases.make_inputs(case)
        self.inputs["kv_indices"].fill_(-1)
        self.inputs["q"].zero_()
        for name in ("q", "kv_buffer", "kv_indices", "qo_indptr", "kv_indptr", "kv_last_page_lens"):
            source, target = new[name], self.inputs[name]
            as_bytes = (
                t.view(torch.uint8) if t.dtype.itemsize == 1 else t for t in (source, target)
            )
            source, target = as_bytes
            target[: source.shape[0]].copy_(source)
        for result in (self.out, self.lse):
            result.fill_(float("nan"))


def step(buffers: Buffers, route: str, workspace: hipdecode.Workspace | None) -> Call:
    """The call under test: `planned` makes the plan and decodes by it, as an engine's step does."""
    name, _, splits = route.partition("-")
    inputs = buffers.inputs
    options = {"out": buffers.out, "lse": buffers.lse, "return_lse": True, "workspace": workspace}
    if name != "planned":
        options |= {"route": name, "num_splits": int(splits) if splits else None}
        return lambda: hipdecode.mla_decode(**inputs, **options)
    lengths = {key: inputs[key] for key in ("qo_indptr", "kv_indptr", "kv_last_page_lens")}
    sizes = {"nhead": buffers.out.shape[1], "max_seqlen_q": MOST_ROWS, "page_size": PAGE}
    kept = hipdecode.plan_mla_decode(**lengths, **sizes)

    def planned() -> None:
        hipdecode.plan_mla_decode(**lengths, **sizes, out=kept)
        hipdecode.mla_decode(**inputs, **options, plan=kept)

    return planned


def variants(case: Case, count: int) -> list[Case]:
    """Cases that fit the same buffers, every one with padded requests: no rows, or no tokens."""
    rng = random.Random(1)
    drawn = []
    for seed in range(1, count + 1):
        rows = [rng.randint(0, MOST_ROWS) for _ in range(BATCH)]
        rows[seed % BATCH] = 0
        tokens = [rng.randint(1, PAGE * PAGES_EACH) for _ in range(BATCH)]
        tokens[(seed + 1) % BATCH] = 0
        drawn.append(
            Case(
                nhead=case.nhead, q_lens=tuple(rows), kv_lens=tuple(tokens), page_size=PAGE,
                q_dtype=case.q_dtype, kv_dtype=case.kv_dtype, seed=seed,
            )
        )  # fmt: skip
    return drawn


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("nhead", [16, 128])
@pytest.mark.parametrize("dtypes", DTYPES, ids="-".join)
def test_replays_follow_new_contents_bit_for_bit(
    target: str, device: torch.device, dtypes: tuple[str, str], nhead: int, route: str
) -> None:
    first = Case(
        nhead=nhead, q_lens=FIRST.q_lens, kv_lens=FIRST.kv_lens, page_size=PAGE,
        q_dtype=dtypes[0], kv_dtype=dtypes[1],
    )  # fmt: skip
    buffers = Buffers(first, device)
    call = step(buffers, route, hipdecode.Workspace(device))
    buffers.fill(first)
    replay = captured(call, device)
    turns = 20 if device.type == "cuda" else 1 if target.startswith("sim:") else 5
    for turn, case in enumerate(variants(first, turns)):
        buffers.fill(case)
        replay()
        replayed = bits(buffers.out, buffers.lse)
        if turn == 0:
            inputs: Any = {**buffers.inputs}
            compare.assert_decode_matches(
                case, inputs, buffers.out, buffers.lse, target=target, call=route
            )
        for result in (buffers.out, buffers.lse):
            result.fill_(float("nan"))
        call()
        eager = bits(buffers.out, buffers.lse)
        assert all(map(torch.equal, replayed, eager)), f"turn {turn}, {case}"


@pytest.mark.gpu
@pytest.mark.parametrize("routes", [("hk-3", "hk-3"), ("hk-1", "persistent"), ("persistent",) * 2])
def test_two_streams_decode_at_once_in_their_own_workspaces(
    gpu: torch.device, routes: tuple[str, str]
) -> None:
    both = []
    for case, route in zip(variants(FIRST, 2), routes, strict=True):
        buffers = Buffers(case, gpu)
        buffers.fill(case)
        call = step(buffers, route, hipdecode.Workspace(gpu))
        both.append((call, buffers.out, buffers.lse))
    assert_alone_or_at_once(both)


@pytest.mark.gpu
def test_threads_on_streams_of_their_own_get_workspaces_of_their_own(gpu: torch.device) -> None:
    held = []
    for stream in (torch.cuda.Stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            held.append(default_workspace(gpu))
    assert held[0] is not held[1]


_COLD = """
import torch, hipdecode
from hipdecode import errors, ops
from hipdecode.testing import cases
inputs = cases.to_device(cases.make_inputs(cases.Case(kv_lens=(70,))), "cuda")
out = torch.empty(1, 16, 512, dtype=torch.bfloat16, device="cuda")
ops.load_binding()
graph = torch.cuda.CUDAGraph()
try:
    with torch.cuda.graph(graph):
        hipdecode.mla_decode(**inputs, out=out, route="hk", num_splits=1)
except errors.NotWarmed as error:
    print("refused:", error)
"""


@pytest.mark.gpu
def test_capture_without_a_warm_up_names_the_call_to_make(gpu: torch.device) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _COLD],
        capture_output=True,
        text=True,
        env=settings.child_environment(PYTHONPATH=":".join(sys.path)),
    )
    assert "refused: " in done.stdout, done.stderr[-3000:]
    assert "hipdecode.warmup()" in done.stdout


@pytest.mark.gpu
def test_capture_with_a_workspace_too_small_is_refused(gpu: torch.device) -> None:
    buffers = Buffers(FIRST, gpu)
    buffers.fill(FIRST)
    step(buffers, "hk-3", hipdecode.Workspace(gpu))()
    torch.cuda.synchronize()
    cold = step(buffers, "hk-3", hipdecode.Workspace(gpu))
    refused = pytest.raises(NotWarmed, match="run the largest step once")
    with refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
        cold()


@pytest.mark.gpu
@pytest.mark.parametrize("route", ["hk-3", "persistent"])
def test_a_graph_replays_after_its_workspace_has_grown(gpu: torch.device, route: str) -> None:
    workspace = hipdecode.Workspace(gpu)
    buffers = Buffers(FIRST, gpu)
    buffers.fill(FIRST)
    call = step(buffers, route, workspace)
    call()
    want = bits(buffers.out, buffers.lse)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    before = workspace.nbytes
    workspace.splits(64, 128, 512, 16, 4096)
    assert workspace.nbytes > before
    taken = [torch.full((1 << 20,), float("nan"), device=gpu) for _ in range(32)]
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, bits(buffers.out, buffers.lse), want))
    assert all(bool(part.isnan().all()) for part in taken)


@pytest.mark.gpu
@pytest.mark.parametrize("route", ["hk-3", "persistent"])
def test_graphs_captured_on_a_stream_that_was_never_warm_replay(
    gpu: torch.device, route: str
) -> None:
    graphs = []
    for case in variants(FIRST, 2):
        buffers = Buffers(FIRST, gpu)
        buffers.fill(case)
        call = step(buffers, route, None)
        call()
        want = bits(buffers.out, buffers.lse)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        graphs.append((buffers, graph, want))
    for buffers, graph, want in reversed(graphs * 3):
        for result in (buffers.out, buffers.lse):
            result.fill_(float("nan"))
        graph.replay()
        assert all(map(torch.equal, bits(buffers.out, buffers.lse), want))
