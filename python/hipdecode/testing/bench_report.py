# SPDX-License-Identifier: MIT
"""What the benchmark commands share: list options, result files, the check against the oracle."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hipdecode.errors import BadArgument
from hipdecode.testing import compare, reference
from hipdecode.testing.bench_case import DecodeCase

Row = Mapping[str, object]

_PIPE_WIDTH = 240


class IntList(click.ParamType[tuple[int, ...]]):
    """A comma-separated list of integers of at least 1, such as `16,32,128`."""

    name = "INT,..."

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """See click.ParamType."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(word) for word in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or min(numbers) < 1:
            self.fail(f"expected integers of at least 1 such as 16,32, got {value!r}", param, ctx)
        return numbers


class ShapeList(click.ParamType[tuple[tuple[int, int], ...]]):
    """A comma-separated list of BATCHxCONTEXT, such as `1x512,8x4096`."""

    name = "BxC,..."

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[int, int], ...]:
        """See click.ParamType."""
        if isinstance(value, tuple):
            return value
        shapes: list[tuple[int, int]] = []
        for word in str(value).split(","):
            batch, _, context = word.partition("x")
            if not (batch.isdigit() and context.isdigit() and int(batch) and int(context)):
                self.fail(f"expected BATCHxCONTEXT such as 8x4096, got {word!r}", param, ctx)
            shapes.append((int(batch), int(context)))
        return tuple(shapes)


@dataclass(frozen=True, slots=True)
class Checked:
    """A result held against the fp64 oracle.

    Attributes:
        max_err: largest absolute difference.
        within: whether every element is within the tolerance derived for the target.
    """

    max_err: float
    within: bool


class Oracle:
    """The fp64 result of the first and the last request of a case."""

    def __init__(self, case: DecodeCase) -> None:
        """Computes it."""
        requests = sorted({0, case.batch - 1})
        self._rows = case.rows_of(requests)
        self._q_dtype = case.inputs["q"].dtype
        with case.device:
            self._want = reference.mla_decode(**case.pick(requests))

    def check(self, out: Tensor, target: str) -> Checked:
        """Compares an output of the whole case, [batch * q_len, nhead, head_dim_v]."""
        got = out[self._rows]
        difference = (got.double() - self._want.o).abs()
        allowed = compare.allowed_output(self._want, got.dtype, target, self._q_dtype)
        # NaN must fail: `not (difference <= allowed)`, never `difference > allowed`.
        within = bool((difference <= allowed).all())
        return Checked(float(difference.max()), within)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Writes rows of equal columns, header first, `\\n` line ends.

    Raises:
        BadArgument: there are no rows.
    """
    if not rows:
        raise BadArgument(f"{path}: expected at least one row, got none; widen the bounds")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def print_rows(
    rows: Sequence[Row], *, caption: str = "", columns: Sequence[str] | None = None
) -> None:
    """Prints rows of equal columns as a table.

    Args:
        rows: nothing is printed where there are none.
        caption: what the numbers are.
        columns: which, in order; all of the first row's by default.
    """
    if not rows:
        return
    columns = list(rows[0]) if columns is None else columns
    table = Table(caption=caption)
    for title in columns:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*(str(row[title]) for title in columns))
    console().print(table)


def console(stderr: bool = False) -> Console:
    """A console whose tables are not folded to 80 columns when the output is a file."""
    plain = Console(stderr=stderr)
    return plain if plain.is_terminal else Console(stderr=stderr, width=_PIPE_WIDTH)
