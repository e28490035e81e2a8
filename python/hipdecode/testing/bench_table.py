# SPDX-License-Identifier: MIT
"""Draws result files as Markdown, alone or into the marked blocks of a page."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from hipdecode.errors import BadArgument

Row = dict[str, str]

_CASE = ("q_dtype", "kv_dtype", "nhead", "q_len", "page_size", "batch", "context")
_BLOCK = re.compile(
    r"(<!-- hipdecode bench table (?P<words>.*?) -->\n).*?(<!-- table:end -->)", re.DOTALL
)
_OURS = "hipdecode"
OUTSIDE = "*"
"""Marks a peer whose error exceeds the tolerance."""


def read_cases(path: Path) -> list[list[Row]]:
    """The rows of a result file of `hipdecode bench`, case by case; ours come first."""
    cases: dict[tuple[str, ...], list[Row]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            cases.setdefault(tuple(row[name] for name in _CASE), []).append(row)
    if not cases:
        raise BadArgument(f"{path}: expected rows of `hipdecode bench`, got none; run it")
    return list(cases.values())


def nearest_peer(rows: Sequence[Row]) -> str:
    """The fastest contender that is not ours, as `1.25 x name`: its time over ours."""
    peers = [row for row in rows if not row["contender"].startswith(_OURS)]
    if not peers:
        return "-"
    nearest = min(peers, key=lambda row: float(row["ratio"]))
    return f"{float(nearest['ratio']):.2f} x {nearest['contender']}"


def host_line(rows: Sequence[Row]) -> str:
    """One case on a CPU: time, rate, share of the roof, nearest peer."""
    ours = rows[0]
    return _line(
        f"{ours['q_dtype']}/{ours['kv_dtype']}",
        ours["nhead"],
        ours["q_len"],
        f"{ours['batch']} x {ours['context']}",
        ours["route"],
        f"{float(ours['ms_p50']):.3g}",
        f"{float(ours['gflops']):.0f}",
        f"{float(ours['roof_pct']):.0f} %",
        nearest_peer(rows),
    )


def device_table(
    cases: Iterable[Sequence[Row]], nhead: Sequence[int] = (), q_len: Sequence[int] = ()
) -> list[str]:
    """A shape a line, its dtypes side by side: us, over the limit, nearest peer.

    Args:
        cases: of `read_cases`, timed on a device.
        nhead: which to show; all when empty.
        q_len: likewise.
    """
    shapes: dict[tuple[str, ...], dict[str, Sequence[Row]]] = {}
    for rows in cases:
        first = rows[0]
        if _wanted(first["nhead"], nhead) and _wanted(first["q_len"], q_len):
            sizes = f"{first['batch']} x {first['context']}"
            shapes.setdefault((first["nhead"], first["q_len"], sizes), {})[first["kv_dtype"]] = rows
    dtypes = list(dict.fromkeys(dtype for found in shapes.values() for dtype in found))
    head = ["nhead", "q_len", "batch x context"]
    for dtype in dtypes:
        head += [f"{dtype} KV: us", "limit", "nearest peer"]
    lines = [_line(*head), "|" + "---:|" * len(head)]
    for shape, found in shapes.items():
        cells = list(shape)
        for dtype in dtypes:
            cells += _device_cells(found[dtype]) if dtype in found else ["-"] * 3
        lines.append(_line(*cells))
    return lines


def _device_cells(rows: Sequence[Row]) -> list[str]:
    ours = rows[0]
    peer = nearest_peer(rows)
    name = peer.rpartition(" ")[2]
    if any(row["contender"] == name and row["within_tolerance"] != "True" for row in rows):
        peer += OUTSIDE
    return [f"{float(ours['us_p50']):.1f}", f"{float(ours['limit_us']):.1f}", peer]


def _wanted(value: str, among: Sequence[int]) -> bool:
    return not among or int(value) in among


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def facts(cases: Sequence[Sequence[Row]]) -> list[str]:
    """What the numbers of a device depend on, in two lines of text."""
    row = cases[0][0]
    peers = dict.fromkeys(row["version"] for rows in cases for row in rows if row["version"])
    return [
        f"{row['machine']}; torch {row['torch']}, commit {row['commit']}, {row['date'][:10]}; "
        f"reads {row['read_gbs']} GB/s, bf16 products {int(row['roof_gflops']) / 1e3:.0f} TFLOP/s, "
        f"an empty launch {row['empty_us']} us.",
        f"Peers: {', '.join(peers) or 'none'}; `{OUTSIDE}`: its error exceeds our tolerance.",
    ]


def draw(path: Path, nhead: Sequence[int] = (), q_len: Sequence[int] = ()) -> list[str]:
    """The lines for one result file: facts and table of a device, or the lines of a CPU."""
    cases = read_cases(path)
    if cases[0][0]["clock"] != "device":
        return [host_line(rows) for rows in cases]
    return [*facts(cases), "", *device_table(cases, nhead, q_len)]


def redrawn(page: Path) -> tuple[str, int]:
    """The text of a page with every block drawn anew, and how many it has.

    A block is what lies between `<!-- hipdecode bench table FILE [--nhead N,...] [--q-len N,...]
    -->` and `<!-- table:end -->`; FILE is relative to the page.
    """

    def redraw(block: re.Match[str]) -> str:
        path, *words = shlex.split(block["words"])
        options = dict(zip(words[::2], words[1::2], strict=True))
        picked = (
            [int(number) for number in options.get(name, "").split(",") if number]
            for name in ("--nhead", "--q-len")
        )
        lines = draw(page.parent / path, *picked)
        return "\n".join([block[1] + lines[0], *lines[1:], block[3]])

    return _BLOCK.subn(redraw, page.read_text(encoding="utf-8"))
