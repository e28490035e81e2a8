# SPDX-License-Identifier: MIT
"""Tables of code-object facts, for `hipdecode build --report` and `hipdecode doctor --kernel`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from hipdecode.disassembly import CLASSES, Loop
from hipdecode.facts import ARCHS, KernelFacts

_MOST_MNEMONICS = 24
_MOST_LOOPS = 5
_WIDTH = 240
"""Of reports that go to a file or a pipe, where nobody can widen the window."""


def report_console() -> Console:
    """Where reports are printed."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def facts_table(target: str, facts: Sequence[KernelFacts]) -> Table:
    """One row per kernel. Counts are of the code as it lies in the file; none is a time."""
    table = Table(title=f"code objects for {target}", title_justify="left", box=box.SIMPLE)
    table.add_column("kernel", no_wrap=True)
    columns = (
        "VGPR", "AGPR", "SGPR", "spills", "scratch", "LDS", "kernarg", "threads", "waves/SIMD",
        "groups/CU", "code", "MFMA", "VALU", "memory", "LDS ops",
    )  # fmt: skip
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for kernel in facts:
        mix = kernel.code.mix
        numbers = (
            kernel.vgprs, kernel.agprs, kernel.sgprs, kernel.spills, kernel.scratch_bytes,
            kernel.lds_bytes, kernel.kernarg_bytes, kernel.threads, f"{kernel.waves_per_simd:g}",
            kernel.workgroups_per_cu, kernel.code_bytes, _of(mix, "mfma"),
            _of(mix, "valu", "transcendental"), _of(mix, "vmem", "vmem_to_lds", "atomic"),
            _of(mix, "lds", "lds_transpose"),
        )  # fmt: skip
        table.add_row(kernel.name, *map(str, numbers))
    return table


def print_in_depth(console: Console, kernel: KernelFacts) -> None:
    """All that is known about one kernel."""
    arch = ARCHS[kernel.arch]
    table = Table("fact", title=f"{kernel.name} for {kernel.arch}", title_justify="left")
    table.add_column("value", justify="right")
    table.add_column("of")
    rows = (
        ("VGPRs", kernel.vgprs, ""),
        ("AGPRs", kernel.agprs, ""),
        ("vector registers, allocated", kernel.registers, f"{arch.registers} of a lane"),
        ("SGPRs", kernel.sgprs, ""),
        ("spilled registers", kernel.spills, ""),
        ("scratch of a lane, bytes", kernel.scratch_bytes, ""),
        ("LDS of a workgroup, bytes", kernel.lds_bytes, f"{arch.lds_of_workgroup}"),
        ("kernarg, bytes", kernel.kernarg_bytes, ""),
        ("threads of a workgroup", kernel.threads, f"{kernel.waves} waves of {arch.lanes}"),
        ("query rows of a tile", kernel.rows or "none", ""),
        ("workgroups of a compute unit", kernel.workgroups_per_cu, ""),
        ("waves of a SIMD", f"{kernel.waves_per_simd:g}", f"{arch.waves}"),
        ("code, bytes", kernel.code_bytes, ""),
    )
    for name, value, of in rows:
        table.add_row(name, str(value), of)
    console.print(table)
    if not kernel.code.mix:
        console.print("no disassembler for it here (gfx: llvm-objdump of LLVM 22 or newer)")
        return
    _print_mix(console, kernel)
    names = list(kernel.code.mnemonics.items())[:_MOST_MNEMONICS]
    console.print("most frequent: " + ", ".join(f"{name} {n}" for name, n in names))


def _print_mix(console: Console, kernel: KernelFacts) -> None:
    by_weight = sorted(kernel.code.loops, key=_weight)[-_MOST_LOOPS:]
    loops = sorted(by_weight, key=lambda loop: loop.start)
    table = Table("instructions", title="by class, as they lie in the file", title_justify="left")
    for column in ("all", *(f"loop {loop.start:#x}..{loop.end:#x}" for loop in loops)):
        table.add_column(column, justify="right")
    mixes = (kernel.code.mix, *(loop.mix for loop in loops))
    for name in CLASSES:
        if name in kernel.code.mix:
            table.add_row(name, *(str(mix.get(name, "")) for mix in mixes))
    table.add_row("sum", *(str(sum(mix.values())) for mix in mixes))
    console.print(table)
    if len(loops) < len(kernel.code.loops):
        console.print(f"the {len(loops)} weightiest of {len(kernel.code.loops)} loops are shown")


def _weight(loop: Loop) -> tuple[int, int]:
    return loop.mix.get("mfma", 0), sum(loop.mix.values())


def _of(mix: Mapping[str, int], *names: str) -> str:
    return str(sum(mix.get(name, 0) for name in names)) if mix else ""
