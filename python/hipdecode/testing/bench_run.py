# SPDX-License-Identifier: MIT
"""Times one decode case on every contender, interleaved and checked."""

from __future__ import annotations

from dataclasses import dataclass

import click
import torch

from hipdecode import target
from hipdecode.testing import device_clock, timing
from hipdecode.testing.bench_case import DecodeCase, Peer
from hipdecode.testing.bench_report import Checked, Oracle
from hipdecode.testing.peers import Hipdecode, route_of

_GPU_GEMM = 8192
_GPU_GEMM_REPEATS = 50


@dataclass(frozen=True, slots=True)
class Roof:
    """What the machine can do at most, which results are held against.

    Attributes:
        gflops: matrix rate, GFLOP/s, with the threads of the run.
        source: where that number is from.
        read_gbs: GB/s at which memory is read; None on a CPU, whose caches serve some cases.
        empty_us: microseconds of a launch with nothing to do; None on a CPU.
    """

    gflops: float
    source: str
    read_gbs: float | None = None
    empty_us: float | None = None

    @staticmethod
    def find(given: float | None, clock: timing.Clock, device_type: str) -> Roof:
        """Measures it; the matrix rate is the user's if given, else what torch reaches here."""
        if device_type == "cpu":
            if given is not None:
                return Roof(given, "--peak-gflops")
            fp32 = timing.gemm_gflops(torch.float32)
            bf16 = timing.gemm_gflops(torch.bfloat16)
            name, best = ("bf16", bf16) if bf16 > fp32 else ("fp32", fp32)
            return Roof(best, f"torch.mm {name}, a lower bound")
        source = "--peak-gflops" if given else f"torch.mm bf16 {_GPU_GEMM}"
        gflops = given or timing.gemm_gflops(
            torch.bfloat16, _GPU_GEMM, _GPU_GEMM_REPEATS, clock=clock, device=device_type
        )
        return Roof(gflops, source, device_clock.read_gbs(clock), device_clock.empty_us(clock))

    def limit_us(self, case: DecodeCase) -> float:
        """The least time of a case: its matrix work or its KV bytes, whichever takes longer."""
        work = case.flops * 1e-3 / self.gflops
        return max(work, case.kv_bytes * 1e-3 / self.read_gbs) if self.read_gbs else work


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
        cold: rotate copies of the buffers so that none is found in a cache; on a GPU the clock
            sees to that.
        clock: what a time is.
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
    clock: timing.Clock
    machine: timing.Machine
    roof: Roof


def time_case(case: DecodeCase, plan: Plan) -> list[dict[str, object]]:
    """Times every contender that supports a case.

    Returns:
        One row per contender, ours first; a row is a line of the CSV file.
    """
    rotate = plan.cold and case.device.type == "cpu"
    copies = timing.copies_for_cold(case.kv_bytes, plan.machine.llc_bytes) if rotate else 1
    cases = [case, *(case.twin() for _ in range(copies - 1))]
    oracle = Oracle(case)
    everyone: list[Peer] = [*plan.ours, *plan.peers]
    able: dict[str, Peer] = {}
    thunks: dict[str, list[timing.Thunk]] = {}
    checks: dict[str, Checked] = {}
    for peer in everyone:
        if peer.supports(case) is not None:
            continue
        try:
            mine = [peer.prepare(one) for one in cases]
            checks[peer.name] = oracle.check(mine[0](), plan.target.name)
            thunks[peer.name] = [plan.clock.ready(thunk) for thunk in mine]
        except Exception as error:
            # A foreign kernel may refuse this machine in any way, and only when it is called.
            if isinstance(peer, Hipdecode):
                raise
            why = next(iter(str(error).splitlines()), type(error).__name__)
            click.echo(f"left out: {peer.name} ({why})", err=True)
            continue
        able[peer.name] = peer
    times = timing.measure(
        thunks, rounds=plan.rounds, warmup=plan.warmup, budget_s=plan.budget_s, clock=plan.clock
    )
    base = next(iter(times.values()))
    return [
        _case_columns(case, plan)
        | _result_columns(case, plan, times[name], checks[name], base)
        | plan.machine.columns()
        | {
            "contender": name,
            "version": getattr(peer, "version", ""),
            "route": _route_name(case, plan, peer),
        }
        for name, peer in able.items()
    ]


def _route_name(case: DecodeCase, plan: Plan, peer: Peer) -> str:
    """`persistent`, `hk` and its splits, or nothing for a peer."""
    if not isinstance(peer, Hipdecode):
        return ""
    route = route_of(case, plan.target, peer.route, peer.num_splits, peer.tile_rows)
    splits = "" if (route.num_splits or 1) == 1 else f"/{route.num_splits}"
    return route.route + splits + (f"/{route.tile_rows} rows" if route.tile_rows else "")


def _result_columns(
    case: DecodeCase, plan: Plan, took: timing.Timing, checked: Checked, base: timing.Timing
) -> dict[str, object]:
    gflops = case.flops * 1e-6 / took.p50
    limit_us = plan.roof.limit_us(case)
    return {
        "contender": "",
        "version": "",
        "route": "",
        "ms_p50": f"{took.p50:.4f}",
        "ms_p10": f"{took.quantile(0.1):.4f}",
        "ms_p90": f"{took.quantile(0.9):.4f}",
        "ms_min": f"{took.best:.4f}",
        "gflops": f"{gflops:.1f}",
        "roof_pct": f"{100 * gflops / plan.roof.gflops:.1f}",
        "roof_gflops": f"{plan.roof.gflops:.0f}",
        "roof_source": plan.roof.source,
        "us_p50": f"{1e3 * took.p50:.2f}",
        "us_min": f"{1e3 * took.best:.2f}",
        "limit_us": f"{limit_us:.2f}",
        "over_limit": f"{1e3 * took.p50 / limit_us:.3f}",
        "read_gbs": _number(plan.roof.read_gbs, ".0f"),
        "empty_us": _number(plan.roof.empty_us, ".2f"),
        "ratio": f"{took.ratio_to(base):.3f}",
        "max_err": f"{checked.max_err:.2e}",
        "within_tolerance": checked.within,
        "rounds": len(took.ms),
        "clock": took.clock,
        "threads": torch.get_num_threads(),
        "cold": plan.cold or took.clock == "device",
    }


def _number(value: float | None, digits: str) -> str:
    return "" if value is None else format(value, digits)


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
        "context": round(case.tokens / case.batch),
        "context_max": max(case.spec.kv_lens),
    }
