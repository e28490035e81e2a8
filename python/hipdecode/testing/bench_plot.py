# SPDX-License-Identifier: MIT
"""Draws result files: where hk and persistent cross, or the package beside its peers."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hipdecode.errors import BadArgument

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = dict[int, dict[str, float]]
"""Context in tokens to the time in us of `hk` and of `persistent`."""
Panels = dict[str, dict[int, Curve]]
"""Title to batch to curve."""

Bars = dict[str, dict[str, dict[str, float]]]
"""Title to case to GFLOP/s of the package (`hipdecode`) and of the fastest form of each peer."""

Times = dict[str, dict[str, dict[str, float]]]
"""Title to case to microseconds of the package, of the fastest form of each peer, of `limit`."""

_FAMILIES = {"sdpa": "torch"}
_COLUMNS = 3


def read_routes(path: Path) -> Panels:
    """Reads both routes' times out of a result file.

    Args:
        path: a CSV of `hipdecode bench --routes hk,persistent` or of bench_hk_mla_decode.py.

    Returns:
        The cases with both routes; empty when there is none.
    """
    panels: Panels = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            title = "{q_dtype}/{kv_dtype}, nhead {nhead}, q_len {q_len}".format(**row)
            for context, route, us in _times(row):
                panels[title][int(row["batch"])][context][route] = us
    whole: Panels = {}
    for title, batches in panels.items():
        curves = {
            batch: {context: both for context, both in sorted(curve.items()) if len(both) == 2}
            for batch, curve in sorted(batches.items())
        }
        curves = {batch: curve for batch, curve in curves.items() if curve}
        if curves:
            whole[title] = curves
    return whole


def _times(row: Mapping[str, str]) -> Iterator[tuple[int, str, float]]:
    context = round(float(row.get("context") or row["ctx"]))
    if "hk_us" in row:
        yield context, "hk", float(row["hk_us"])
        yield context, "persistent", float(row["persistent_us"])
        return
    route = row["contender"].removeprefix("hipdecode_")
    if route in ("hk", "persistent"):
        yield context, route, 1e3 * float(row["ms_p50"])


def gains(curve: Curve) -> dict[int, float]:
    """Percent by which hk undercuts persistent at each context; negative: persistent is faster."""
    return {context: 100 * (1 - both["hk"] / both["persistent"]) for context, both in curve.items()}


def draw_routes(panels: Panels, out: Path) -> None:
    """Writes a PNG: per key the times by context, and below them the gain, which crosses zero.

    Raises:
        BadArgument: matplotlib is not installed.
    """
    figure = _figure(5.5 * len(panels), 6.5)
    axes = figure.subplots(2, len(panels), squeeze=False, sharex="col", height_ratios=(3, 2))
    for index, (title, batches) in enumerate(panels.items()):
        times, gain = axes[0, index], axes[1, index]
        for line, (batch, curve) in enumerate(batches.items()):
            color, contexts = f"C{line % 10}", list(curve)
            for route, style in (("hk", "-"), ("persistent", "--")):
                us = [curve[context][route] for context in contexts]
                label = f"batch {batch}" if route == "hk" else None
                times.plot(contexts, us, style, color=color, label=label, marker=".")
            gain.plot(contexts, list(gains(curve).values()), color=color, marker=".")
        times.set(title=title, ylabel="us (hk solid, persistent dashed)", yscale="log")
        gain.set(xlabel="context, tokens", ylabel="gain of hk, %", xscale="log")
        gain.axhline(0, color="black", linewidth=0.8)
        times.legend(fontsize="small")
        times.grid(alpha=0.3)
        gain.grid(alpha=0.3)
    figure.savefig(out, format="png", dpi=110)


def read_peers(path: Path) -> Bars:
    """Reads everyone's rates out of a CSV of `hipdecode bench --peers`.

    Contenders count by family, the word before the first underscore: of the forms of plain torch
    the fastest is shown at each case.
    """
    bars: Bars = defaultdict(lambda: defaultdict(dict))
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            title = "{q_dtype}/{kv_dtype}, q_len {q_len}".format(**row)
            case = "nhead {nhead}\n{batch} x {context}".format(**row)
            word = row["contender"].split("_")[0]
            rates = bars[title][case]
            family = _FAMILIES.get(word, word)
            rates[family] = max(float(row["gflops"]), rates.get(family, 0.0))
    return bars


def draw_peers(bars: Bars, out: Path) -> None:
    """Writes a PNG: one panel per dtypes and q_len, bars of GFLOP/s by case.

    Raises:
        BadArgument: matplotlib is not installed.
    """
    cases = max(len(panel) for panel in bars.values())
    figure = _figure(2.5 + 0.75 * cases, 2.6 * len(bars))
    families = sorted(
        {name for panel in bars.values() for rates in panel.values() for name in rates}
    )
    families.sort(key=lambda name: name != "hipdecode")
    width, drawn = 0.8 / len(families), {}
    for axis, (title, panel) in zip(
        figure.subplots(len(bars), 1, squeeze=False).flatten(), bars.items(), strict=True
    ):
        for index, family in enumerate(families):
            at = [
                (place + (index - (len(families) - 1) / 2) * width, rates[family])
                for place, rates in enumerate(panel.values())
                if family in rates
            ]
            if at:
                drawn[family] = axis.bar(*zip(*at, strict=True), width, color=f"C{index}")
        axis.set_xticks(range(len(panel)), list(panel), fontsize="x-small")
        axis.set(title=title, ylabel="GFLOP/s")
        axis.grid(axis="y", alpha=0.3)
    figure.legend(drawn.values(), drawn, loc="outside upper center", ncols=len(families))
    figure.savefig(out, format="png", dpi=110)


def read_device(path: Path) -> Times:
    """Reads everyone's times out of a CSV whose clock is a device's; empty for other clocks.

    The limit is never below an empty launch.
    """
    times: Times = defaultdict(lambda: defaultdict(dict))
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row.get("clock") != "device" or row["contender"].startswith("hipdecode_"):
                continue
            title = "{kv_dtype} KV, nhead {nhead}, q_len {q_len}".format(**row)
            found = times[title]["{batch} x {context}".format(**row)]
            found["limit"] = max(float(row["limit_us"]), float(row["empty_us"] or 0))
            family = row["contender"].split("_")[0]
            found[family] = min(float(row["us_p50"]), found.get(family, math.inf))
    return times


def draw_device(times: Times, out: Path) -> None:
    """Writes a PNG: one panel per dtype, nhead and q_len, times by case on a logarithmic axis.

    Raises:
        BadArgument: matplotlib is not installed.
    """
    rows = -(-len(times) // _COLUMNS)
    figure = _figure(4.6 * min(len(times), _COLUMNS), 3.2 * rows)
    axes = figure.subplots(rows, min(len(times), _COLUMNS), squeeze=False).flatten()
    names = {name for panel in times.values() for case in panel.values() for name in case}
    peers = sorted(names - {"limit", "hipdecode"})
    drawn = {}
    for axis, (title, panel) in zip(axes, times.items(), strict=False):
        for name in ("limit", *peers, "hipdecode"):
            points = [(case, found[name]) for case, found in panel.items() if name in found]
            if points:
                look = _look(name, peers)
                drawn[name] = axis.plot(*zip(*points, strict=True), **look)[0]
        axis.set(title=title, ylabel="us", yscale="log")
        axis.tick_params(axis="x", labelrotation=45, labelsize="x-small")
        axis.grid(alpha=0.3)
    for axis in axes[len(times) :]:
        axis.remove()
    figure.legend(drawn.values(), drawn, loc="outside upper center", ncols=len(drawn))
    figure.savefig(out, format="png", dpi=110)


def _look(name: str, peers: list[str]) -> dict[str, Any]:
    if name == "limit":
        return {"color": "black", "linestyle": ":"}
    if name == "hipdecode":
        return {"color": "C3", "marker": "o", "linewidth": 2.2}
    return {"color": f"C{(0, 1, 2, 4, 5, 6)[peers.index(name) % 6]}", "marker": "."}


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadArgument(f"plot: expected matplotlib, got {error}; pip install it") from error
    return Figure(figsize=(width, height), layout="constrained")
