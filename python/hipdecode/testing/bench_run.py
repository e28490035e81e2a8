# SPDX-License-Identifier: MIT
"""Times one decode case on every contender, interleaved and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import click
import torch
from torch import Tensor

from hipdecode import target
from hipdecode.testing import timing
from hipdecode.testing.bench_case import DecodeCase, Peer
from hipdecode.testing.bench_report import Checked, Oracle
from hipdecode.testing.peers import Hipdecode, route_of


@dataclass(frozen=True, slots=True)
class Roof:
    """The matrix rate that results are given as a share of.

    Attributes:
        gflops: GFLOP/s with the threads of the run.
        source: where the number is from.
    """

    gflops: float
    source: str

    @staticmethod
    def find(given: float | None) -> Roof:
        """The number given by the user, or the faster of torch's fp32 and bf16 products here."""
        if given is not None:
            return Roof(given, "--peak-gflops")
        fp32 = timing.gemm_gflops(torch.float32)
        bf16 = timing.gemm_gflops(torch.bfloat16)
        name, best = ("bf16", bf16) if bf16 > fp32 else ("fp32", fp32)
        return Roof(best, f"torch.mm {name}, a lower bound")


@dataclass(frozen=True, slots=True)
class Plan:
    """How each case is timed.

    Attributes:
        ours: forms of this package, the first is what ratios are taken to.
        peers: everything else.
        target: whose kernels run.
        rounds: most rounds of a case.
        warmup: most untimed turns.
        budget_s: seconds of a case, about.
        cold: rotate copies of the buffers so that none is found in a cache.
        machine: the facts of this machine.
        roof: see Roof.
    """

    ours: tuple[Hipdecode, ...]
    peers: tuple[Peer, ...]
    target: target.Target
    rounds: int
    warmup: int
    budget_s: float
    cold: bool
    machine: timing.Machine
    roof: Roof


def time_case(case: DecodeCase, plan: Plan) -> list[dict[str, object]]:
    """Times every contender that supports a case.

    Returns:
        One row per contender, ours first; a row is a line of the CSV file.
    """
    copies = timing.copies_for_cold(case.kv_bytes, plan.machine.llc_bytes) if plan.cold else 1
    cases = [case, *(case.twin() for _ in range(copies - 1))]
    oracle = Oracle(case)
    everyone: list[Peer] = [*plan.ours, *plan.peers]
    able: dict[str, Peer] = {}
    thunks: dict[str, list[Callable[[], Tensor]]] = {}
    checks: dict[str, Checked] = {}
    for peer in everyone:
        if peer.supports(case) is not None:
            continue
        mine = [peer.prepare(one) for one in cases]
        try:
            checks[peer.name] = oracle.check(mine[0](), plan.target.name)
        except RuntimeError as error:
            # A foreign kernel may refuse this CPU only when it is called.
            if isinstance(peer, Hipdecode):
                raise
            click.echo(f"left out: {peer.name} ({str(error).splitlines()[0]})", err=True)
            continue
        able[peer.name], thunks[peer.name] = peer, mine
    times = timing.measure(thunks, rounds=plan.rounds, warmup=plan.warmup, budget_s=plan.budget_s)
    base = next(iter(times.values()))
    return [
        _case_columns(case, plan)
        | _result_columns(case, plan, times[name], checks[name], base)
        | plan.machine.columns()
        | {"contender": name, "route": _route_name(case, plan, peer)}
        for name, peer in able.items()
    ]


def _route_name(case: DecodeCase, plan: Plan, peer: Peer) -> str:
    return route_of(case, plan.target, peer.route).route if isinstance(peer, Hipdecode) else ""


def _result_columns(
    case: DecodeCase, plan: Plan, took: timing.Timing, checked: Checked, base: timing.Timing
) -> dict[str, object]:
    gflops = case.flops * 1e-6 / took.p50
    return {
        "contender": "",
        "route": "",
        "ms_p50": f"{took.p50:.4f}",
        "ms_p10": f"{took.quantile(0.1):.4f}",
        "ms_p90": f"{took.quantile(0.9):.4f}",
        "ms_min": f"{took.best:.4f}",
        "gflops": f"{gflops:.1f}",
        "roof_pct": f"{100 * gflops / plan.roof.gflops:.1f}",
        "roof_gflops": f"{plan.roof.gflops:.0f}",
        "roof_source": plan.roof.source,
        "ratio": f"{took.ratio_to(base):.3f}",
        "max_err": f"{checked.max_err:.2e}",
        "within_tolerance": checked.within,
        "rounds": len(took.ms),
        "clock": took.clock,
        "threads": took.threads,
        "cold": plan.cold,
    }


def _case_columns(case: DecodeCase, plan: Plan) -> dict[str, object]:
    return {
        "op": "mla_decode",
        "target": plan.target.name,
        "q_dtype": case.spec.q_dtype,
        "kv_dtype": case.spec.kv_dtype,
        "nhead": case.spec.nhead,
        "q_len": case.q_len,
        "page_size": case.spec.page_size,
        "batch": case.batch,
        "context": case.spec.kv_lens[0],
    }
