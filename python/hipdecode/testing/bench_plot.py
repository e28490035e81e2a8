# SPDX-License-Identifier: MIT
"""Draws where the hk and the persistent kernel cross, by context and batch."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from hipdecode.errors import BadArgument

Curve = dict[int, dict[str, float]]
"""Context in tokens to the time in us of `hk` and of `persistent`."""
Panels = dict[str, dict[int, Curve]]
"""Title to batch to curve."""

_COLUMNS = 3


def read(path: Path) -> Panels:
    """Reads both routes' times out of a result file.

    Args:
        path: a CSV of `hipdecode bench --routes hk,persistent` or of bench_hk_mla_decode.py.

    Raises:
        BadArgument: no case of it has both routes.
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
    if not whole:
        raise BadArgument(
            f"{path}: expected times of hk and of persistent, got no case with both; "
            "run `hipdecode bench --routes hk,persistent --csv`"
        )
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


def crossover(curve: Curve) -> float | None:
    """The context from which persistent is faster, interpolated on log scales; None: nowhere.

    Args:
        curve: contexts in rising order.
    """
    before: tuple[float, float] | None = None
    for context, both in curve.items():
        here = (math.log(context), math.log(both["hk"] / both["persistent"]))
        if here[1] > 0:
            if before is None:
                return float(context)
            share = before[1] / (before[1] - here[1])
            return math.exp(before[0] + share * (here[0] - before[0]))
        before = here
    return None


def draw(panels: Panels, out: Path) -> None:
    """Writes a PNG: time by context, hk solid, persistent dashed, a thin line where they meet.

    Raises:
        BadArgument: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadArgument(f"plot: expected matplotlib, got {error}; pip install it") from error
    columns = min(_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5.5 * columns, 4.2 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (title, batches) in zip(axes, panels.items(), strict=False):
        for index, (batch, curve) in enumerate(batches.items()):
            contexts = list(curve)
            for route, style in (("hk", "-"), ("persistent", "--")):
                us = [curve[context][route] for context in contexts]
                label = f"batch {batch}" if route == "hk" else None
                axis.plot(contexts, us, style, color=f"C{index % 10}", label=label, marker=".")
            meets = crossover(curve)
            if meets is not None:
                axis.axvline(meets, color=f"C{index % 10}", linewidth=0.6, alpha=0.6)
        axis.set(title=title, xlabel="context, tokens", ylabel="us", xscale="log", yscale="log")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small", title="hk solid, persistent dashed")
    figure.savefig(out, format="png", dpi=130)
