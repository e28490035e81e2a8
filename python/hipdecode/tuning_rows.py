# SPDX-License-Identifier: MIT
"""From timed grid points to the rows of a dispatch table.

Each key is measured on a grid of (batch, kv_len). Its rectangles meet at the geometric mean of
neighbouring grid points, so they tile the plane by construction. Along the contexts of a batch a
rectangle reaches as far as one choice stays within the noise of each point's fastest; batches with
the same rectangles are merged. A batch without a measured point leaves its place to its neighbours,
a key without one gets no rows.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic

from .errors import TableError
from .table_files import Schema, parse_table
from .tables import Bound, K, Rect, Row, gain_pct
from .tuning import PERSISTENT, Choice, Measurement, other


@dataclass(frozen=True, slots=True)
class _Patch(Generic[K]):
    """A rectangle with what was chosen for it and the measurements inside."""

    rect: Rect
    choice: Choice
    inside: tuple[Measurement[K], ...]


def rows_from_grid(
    taken: Iterable[Measurement[K]],
    *,
    machine: str,
    date: str,
    point: tuple[str, str] = ("batch", "ctx"),
) -> list[Row[K]]:
    """Turn the measurements of complete grids into rows that tile the plane.

    A row's evidence is its decided point of least gain, since the others speak for the route more
    clearly; without a decided one, the point of least noise. `us` is the route's p50 there,
    `runner_up_us` is that times the paired ratio, so that the gain is that of the rounds.

    Args:
        taken: for each key, one measurement per (batch, kv_len) of its own grid.
        machine: goes into the rows.
        date: ISO date, goes into the rows.
        point: what rows call the two numbers of a point.

    Raises:
        TableError: a key lacks a point of its grid; names the first.
    """
    keys: dict[K, dict[tuple[int, int], Measurement[K]]] = {}
    for one in taken:
        keys.setdefault(one.point.key, {})[one.point.batch, one.point.kv_len] = one
    return [
        _row(key, patch, (machine, date), point)
        for key, cells in keys.items()
        for patch in _patches(key, cells)
    ]


def _patches(key: K, cells: dict[tuple[int, int], Measurement[K]]) -> list[_Patch[K]]:
    batches = sorted({batch for batch, _ in cells})
    kv_lens = sorted({kv_len for _, kv_len in cells})
    lacking = [(b, k) for b in batches for k in kv_lens if (b, k) not in cells]
    if lacking:
        batch, kv_len = lacking[0]
        raise TableError(
            f"{key}: expected a measurement of each point of its grid, got none for (batch "
            f"{batch}, kv_len {kv_len}); measure it"
        )
    batches = [b for b in batches if any(cells[b, k].rounds for k in kv_lens)]
    bands: list[list[_Patch[K]]] = []
    for batch, (batch_from, batch_to) in zip(batches, spans(batches, 1), strict=True):
        band: list[_Patch[K]] = []
        column = [cells[batch, kv_len] for kv_len in kv_lens]
        chosen = choose(column)
        for one, choice, (kv_from, kv_to) in zip(column, chosen, spans(kv_lens, 0), strict=True):
            patch = _Patch(Rect(batch_from, batch_to, kv_from, kv_to), choice, (one,))
            if band and band[-1].choice == choice:
                patch = _join(band.pop(), patch)
            band.append(patch)
        if bands and [_outline(p) for p in bands[-1]] == [_outline(p) for p in band]:
            band = [_join(low, high) for low, high in zip(bands.pop(), band, strict=True)]
        bands.append(band)
    return [patch for band in bands for patch in band]


def _outline(patch: _Patch[K]) -> tuple[int, Bound, Choice]:
    return patch.rect.kv_from, patch.rect.kv_to, patch.choice


def _join(low: _Patch[K], high: _Patch[K]) -> _Patch[K]:
    rect = Rect(low.rect.batch_from, high.rect.batch_to, low.rect.kv_from, high.rect.kv_to)
    return _Patch(rect, low.choice, low.inside + high.inside)


def spans(values: Sequence[int], lowest: int) -> list[tuple[int, Bound]]:
    """Return the half-open range that stands for each grid value.

    Neighbours meet just above their geometric mean; the first starts at `lowest`, the last never
    ends.

    Args:
        values: ascending, above 0.
        lowest: the smallest integer of the axis.
    """
    cuts: list[Bound] = [math.isqrt(a * b) + 1 for a, b in itertools.pairwise(values)]
    starts = [lowest, *(int(cut) for cut in cuts)]
    return list(zip(starts, [*cuts, math.inf], strict=True)) if values else []


def choose(column: Sequence[Measurement[K]]) -> list[Choice]:
    """Choose for each context of one batch, in ascending order of context.

    The fewest stretches of contexts such that one choice is acceptable at each point of a stretch;
    a point that was not measured accepts any.
    """
    stretches: list[tuple[list[Measurement[K]], frozenset[Choice]]] = []
    for one in column:
        accepted = one.acceptable if one.rounds else None
        if stretches and (accepted is None or accepted & stretches[-1][1]):
            inside, common = stretches[-1]
            stretches[-1] = ([*inside, one], common if accepted is None else common & accepted)
        elif accepted is not None:
            stretches.append(([one], accepted))
    chosen = [_pick(inside, common) for inside, common in stretches for _ in inside]
    # Points before the first measured one follow it.
    return chosen[:1] * (len(column) - len(chosen)) + chosen


def _pick(inside: Sequence[Measurement[K]], common: frozenset[Choice]) -> Choice:
    """One of several acceptable choices over a stretch: the splits of the rule, which
    follows the shape between grid points, else the fastest.

    Where the gain of hk over all of it is noise too, `persistent`, whose plan also evens out
    contexts more ragged than the measured ones.
    """
    measured = [one for one in inside if one.rounds]

    def mean(choice: Choice) -> float:
        return statistics.fmean(math.log(one.trials[choice].ratio) for one in measured)

    by_rule = [choice for choice in common if choice.num_splits == "auto"]
    found = min(by_rule or common, key=lambda choice: (mean(choice), str(choice)))
    if PERSISTENT in common:
        gain = 100 * (1 - math.exp(mean(found) - mean(PERSISTENT)))
        noise = math.hypot(*(one.noise_pct(found) for one in measured)) / len(measured)
        return found if gain > noise else PERSISTENT
    return found


def _row(key: K, patch: _Patch[K], origin: tuple[str, str], names: tuple[str, str]) -> Row[K]:
    choice = patch.choice
    # Never empty: a band has a measured point, and others join its stretches.
    measured = [one for one in patch.inside if choice in one.trials and one.rounds]
    decided = [one for one in measured if one.decided and one.faster == choice.route]
    if decided:
        shown = max(decided, key=lambda one: one.ratio(choice))
    else:
        shown = min(measured, key=lambda one: one.noise_pct(choice))
    us = round(shown.trials[choice].us, 3)
    runner_up_us = round(us / shown.ratio(choice), 3)
    point = f"{names[0]} {shown.point.batch} {names[1]} {shown.point.kv_len}"
    source = f"{point}, of {len(measured)} measured"
    if not decided:
        source += f"; gain within the noise of {shown.noise_pct(choice):.1f} %"
    return Row(
        key=key,
        rect=patch.rect,
        route=choice.route,
        num_splits=choice.num_splits,
        tile_rows=choice.tile_rows,
        us=us,
        runner_up=other(choice.route),
        runner_up_us=runner_up_us,
        gain_pct=gain_pct(us, runner_up_us),
        max_err=shown.trials[choice].max_err,
        machine=origin[0],
        date=origin[1],
        source=source,
    )


def format_table(rows: Iterable[Row[K]], schema: Schema[K], *, comments: Sequence[str] = ()) -> str:
    """Return the text of a table file, header included, after reading it back.

    Args:
        rows: rows of complete keys, in any order.
        schema: of the operator.
        comments: lines to write above the header, without the `# `.

    Raises:
        TableError: the rows would not read back (a gap, an overlap, a bad cell).
    """
    out = io.StringIO()
    for comment in comments:
        out.write(f"# {comment}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(schema.columns)
    ordered = sorted(rows, key=lambda row: (row.key, row.rect))
    writer.writerows(_cells(row, schema) for row in ordered)
    parse_table(out.getvalue(), schema, label="new table")
    return out.getvalue()


def _cells(row: Row[K], schema: Schema[K]) -> list[str | int]:
    def bound(value: Bound) -> str | int:
        return "" if value == math.inf else int(value)

    def number(value: float | None, digits: str) -> str:
        return "" if value is None else format(value, digits)

    rect = row.rect
    return [
        *row.key.cells(),
        *(rect.batch_from, bound(rect.batch_to), rect.kv_from, bound(rect.kv_to)),
        *(getattr(row, name) for name in schema.choice_columns),
        *(number(row.us, ".3f"), row.runner_up or ""),
        *(number(row.runner_up_us, ".3f"), number(row.gain_pct, ".2f"), number(row.max_err, ".2e")),
        *(row.machine, row.date, row.source),
    ]
