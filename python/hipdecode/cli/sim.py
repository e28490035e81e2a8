# SPDX-License-Identifier: MIT
"""`hipdecode sim`: run, read and list what the gfx942 and gfx950 simulator executes."""

from __future__ import annotations

import dataclasses
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from hipdecode import sim
from hipdecode.errors import BadArgument

if TYPE_CHECKING:
    from hipdecode.testing import sim_counts

_SCALARS = {"i32": "<i", "u32": "<I", "i64": "<q", "u64": "<Q", "f32": "<f", "f64": "<d"}


@dataclass(frozen=True, slots=True)
class Arguments:
    """A kernel's arguments.

    Attributes:
        kernarg: their bytes.
        buffers: the arrays that the pointers among them point to, by position.
    """

    kernarg: bytes
    buffers: dict[int, np.ndarray]


@click.group()
def command() -> None:
    """Execute AMDGPU code objects on this machine's memory, checked and counted."""


@command.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--kernel", help="Symbol; may be left out where the file has one kernel.")
@click.option("--blocks", default="1,1,1", show_default=True, help="Workgroups in x,y,z.")
@click.option("--threads", type=int, required=True, help="Work items of a workgroup.")
@click.option("--lds", type=int, default=0, help="Dynamic bytes of LDS.")
@click.option(
    "--arg",
    "words",
    multiple=True,
    help="npy:FILE, zeros:BYTES, i32|u32|i64|u64|f32|f64:VALUE, or at:OFFSET for where the next "
    "one lies; in order, naturally aligned otherwise.",
)
@click.option(
    "--save",
    "saves",
    multiple=True,
    help="INDEX:FILE writes buffer INDEX (counted among all --arg but at:) as .npy afterwards.",
)
@click.option("--seed", type=int, default=0, help="For the order in which waves run.")
@click.option("--quantum", type=int, default=0, help="Instructions of a turn; 0 draws 1 to 32.")
@click.option("--host-threads", type=int, default=0, help="0: all of this machine's.")
@click.option("--limit", type=int, default=0, help="Instructions of a workgroup; 0: 10^9.")
@click.option(
    "--checks", default="all", show_default=True, help=f"all, none, or of: {', '.join(sim.CHECKS)}."
)
def run(
    file: Path,
    kernel: str | None,
    blocks: str,
    threads: int,
    lds: int,
    words: tuple[str, ...],
    saves: tuple[str, ...],
    seed: int,
    quantum: int,
    host_threads: int,
    limit: int,
    checks: str,
) -> None:
    """Run a kernel and print its counts as JSON.

    With `bounds` among the checks only the buffers given here may be touched.
    """
    program = sim.Program(file)
    name = kernel or _only_kernel(file, program)
    arguments = parse_arguments(words)
    options = sim.SimOptions(
        seed=seed, quantum=quantum, threads=host_threads, instruction_limit=limit,
        checks=_checks(checks),
        extents=tuple((b.ctypes.data, b.nbytes) for b in arguments.buffers.values() if b.nbytes),
    )  # fmt: skip
    counts = program.launch(
        name, arguments.kernarg, blocks=_blocks(blocks), threads=threads, dynamic_lds=lds,
        options=options,
    )  # fmt: skip
    for save in saves:
        index, _, path = save.partition(":")
        if not index.isdecimal() or int(index) not in arguments.buffers or not path:
            raise BadArgument(
                f"--save: expected INDEX:FILE with one of {sorted(arguments.buffers)}, got "
                f"{save!r}; name a buffer"
            )
        np.save(path, arguments.buffers[int(index)])
    click.echo(json.dumps(counts, indent=1))


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def opcodes(as_json: bool) -> None:
    """List the opcodes that the simulator executes.

    Each with its section of the ISA guide.
    """
    table = sim.opcodes()
    if as_json:
        click.echo(json.dumps(table, indent=1))
        return
    printed = Table("opcode", "class", "section", title=f"{len(table)} opcodes")
    for row in table:
        printed.add_row(row["name"], row["class"], row["section"])
    Console().print(printed)


@command.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def disasm(file: Path) -> None:
    """Print the instructions of a code object.

    `?` marks those that the simulator lacks.
    """
    for row in sim.Program(file).disassembly():
        mark = " " if row["known"] else "?"
        click.echo(f"{row['address']:8x} {mark} {row['text']:<60} // {row['encoding']}")


@command.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def info(file: Path) -> None:
    """Print the kernels of a code object as JSON.

    Their descriptors and metadata.
    """
    click.echo(json.dumps(sim.Program(file).kernels(), indent=1))


@command.command("per-token")
@click.option("--target", default="sim:gfx950", show_default=True, help="sim:gfx950, sim:gfx942.")
@click.option("--nhead", default=32, show_default=True, help="Query heads.")
@click.option("--q-len", default=4, show_default=True, help="Query tokens.")
@click.option("--dtype", default="fp8", show_default=True, help="bf16, fp8, or q/kv: bf16/fp8.")
@click.option("--kv-lens", default="1024,3072", show_default=True, help="Two context lengths.")
@click.option(
    "--object",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="One of AITER's persistent kernels, hsa/gfx950/mla/*_ps.co, beside ours.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, opcodes included.")
def per_token(
    target: str, nhead: int, q_len: int, dtype: str, kv_lens: str, file: Path | None, as_json: bool
) -> None:
    """Count what a workgroup executes per KV token.

    Checked against float64. No time is meant.
    """
    from hipdecode import target as targets
    from hipdecode.testing import sim_counts
    from hipdecode.testing.cases import Case

    words = [targets.resolve(target).dtype(word) for word in dtype.split("/")]
    case = Case(
        nhead=nhead, q_lens=(q_len,), q_dtype=words[0], kv_dtype=words[-1], poison=False,
        q_scale=0.5 if "fp8" in words[0] else None, kv_scale=0.5 if "fp8" in words[-1] else None,
    )  # fmt: skip
    short, long = (int(word) for word in kv_lens.split(","))
    columns = [sim_counts.own(target, case, (short, long))]
    if file:
        columns.append(sim_counts.aiter_object(file, case, (short, long)))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(column) for column in columns], indent=1))
        return
    Console().print(_compared(columns))


def _compared(columns: list[sim_counts.Costs]) -> Table:
    printed = Table("per KV token (and fixed)", title="counted by execution, one workgroup")
    for column in columns:
        printed.add_column(column.kernel, justify="right", overflow="fold")
    names = dict.fromkeys(row.name for column in columns for row in column.rows)
    for name in (name for name in names if not name.startswith("opcode ")):
        rows = [next((r for r in column.rows if r.name == name), None) for column in columns]
        cells = [f"{r.per_token:.4g} ({r.fixed:.0f})" if r else "" for r in rows]
        if any(cell not in ("", "0 (0)") for cell in cells):
            printed.add_row(name, *cells)
    printed.add_row("largest error / maximum", *(f"{column.error:.1e}" for column in columns))
    return printed


def parse_arguments(words: tuple[str, ...]) -> Arguments:
    """Lays out arguments as the words of --arg describe them.

    Raises:
        BadArgument: a word means nothing, or its file cannot be read.
    """
    kernarg = bytearray()
    buffers: dict[int, np.ndarray] = {}
    position = 0
    for word in words:
        kind, _, text = word.partition(":")
        try:
            if kind == "at":
                _grow(kernarg, int(text, 0))
                continue
            packed = _pack(kind, text, buffers, position)
        except (ValueError, KeyError, OSError, struct.error) as error:
            raise BadArgument(
                f"--arg: expected npy:FILE, zeros:BYTES, at:OFFSET or one of "
                f"{', '.join(_SCALARS)} with a value, got {word!r} ({error}); correct it"
            ) from error
        _grow(kernarg, -(-len(kernarg) // len(packed)) * len(packed))
        kernarg += packed
        position += 1
    return Arguments(bytes(kernarg), buffers)


def _grow(kernarg: bytearray, size: int) -> None:
    if size < len(kernarg):
        raise ValueError(f"{len(kernarg)} bytes are laid out already")
    kernarg.extend(bytes(size - len(kernarg)))


def _pack(kind: str, text: str, buffers: dict[int, np.ndarray], position: int) -> bytes:
    if kind in ("npy", "zeros"):
        array = np.load(text) if kind == "npy" else np.zeros(int(text, 0), np.uint8)
        buffers[position] = np.ascontiguousarray(array)
        return struct.pack("<Q", buffers[position].ctypes.data)
    value: Any = float(text) if kind.startswith("f") else int(text, 0)
    return struct.pack(_SCALARS[kind], value)


def _only_kernel(file: Path, program: sim.Program) -> str:
    names = [str(kernel["kernel"]) for kernel in program.kernels()]
    if len(names) != 1:
        raise BadArgument(f"{file}: expected --kernel, got none; choose one of {', '.join(names)}")
    return names[0]


def _blocks(text: str) -> tuple[int, int, int]:
    try:
        x, y, z = (int(word) for word in [*text.split(","), "1", "1"][:3])
    except ValueError as error:
        raise BadArgument(f"--blocks: expected x,y,z, got {text!r}; give integers") from error
    return x, y, z


def _checks(text: str) -> tuple[str, ...]:
    if text in ("all", "none"):
        return sim.CHECKS if text == "all" else ()
    return tuple(text.split(","))
