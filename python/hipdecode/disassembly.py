# SPDX-License-Identifier: MIT
"""The instructions of a code object, by class and by loop, as LLVM's objdump prints them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import FactsError

# Newest first; plain names come last, since they may be too old for the target.
_OBJDUMPS = (
    "/opt/rocm/llvm/bin/llvm-objdump",
    *(f"llvm-objdump-{version}" for version in range(30, 21, -1)),
)
_LINE = re.compile(r"^\t(\S+)(.*?)\s*// ([0-9A-F]{12}): ")
_TARGET = re.compile(r"<[^>+]+(?:\+0x([0-9a-f]+))?>\s*$")
_ENCODING = re.compile(r"_(e32|e64|dpp|sdwa|e64_dpp)$")

# First match wins. The names are those of the simulator's counts.
_CLASSES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("mfma", r"v_s?mfma"),
        ("transcendental", r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_"),
        ("valu", r"v_"),
        ("wait", r"s_wait"),
        ("barrier", r"s_barrier"),
        ("nop", r"s_nop"),
        ("branch", r"s_c?branch|s_endpgm|s_setpc|s_swappc"),
        ("smem", r"s_(load|store|buffer|scratch|dcache|atomic)"),
        ("salu", r"s_"),
        ("lds_transpose", r"ds_read_b\d+_tr_"),
        ("lds", r"ds_"),
        ("scratch", r"scratch_"),
        ("vmem_to_lds", r"(global_load_lds|buffer_load_\w+ .* lds\b)"),
        ("atomic", r"(global|flat|buffer)_atomic"),
        ("vmem", r"(global|flat|buffer)_"),
    )
)
CLASSES = (*(name for name, _ in _CLASSES), "other")


@dataclass(frozen=True, slots=True)
class Loop:
    """Instructions between a backward branch and where it goes, both included.

    Attributes:
        start: offset of the first in the kernel, bytes.
        end: offset of the branch.
        mix: instructions by class.
    """

    start: int
    end: int
    mix: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Code:
    """A kernel's instructions, counted as they lie in the file (not as they run).

    Attributes:
        mix: by class, see CLASSES.
        mnemonics: by mnemonic, without its encoding suffix.
        loops: in order; a loop's mix holds that of the loops inside it.
    """

    mix: Mapping[str, int] = field(default_factory=dict)
    mnemonics: Mapping[str, int] = field(default_factory=dict)
    loops: tuple[Loop, ...] = ()


@dataclass(frozen=True, slots=True)
class _Line:
    address: int
    mnemonic: str
    kind: str
    target: int | None  # of a branch, an offset in the kernel


def disassemble(path: Path, arch: str, symbol: str, code_bytes: int) -> Code:
    """Counts the instructions of a kernel; nothing where no objdump knows the architecture.

    Raises:
        FactsError: objdump failed on the file.
    """
    program = _objdump() if arch.startswith("gfx") else None
    if program is None:
        return Code()
    command = (program, "-d", f"--mcpu={arch}", f"--disassemble-symbols={symbol}", str(path))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FactsError(
            f"{path}: expected {program} to disassemble it, got {done.stderr.strip()}; delete the "
            "file and build it again"
        )
    return count(done.stdout.splitlines(), code_bytes)


def count(lines: Iterable[str], code_bytes: int) -> Code:
    """Counts what objdump printed of one kernel, but not the padding behind it."""
    parsed = [line for line in map(_parse, lines) if line is not None]
    if parsed:
        end = parsed[0].address + code_bytes
        parsed = [line for line in parsed if line.address < end]
    edges = [
        (line.target, line.address - parsed[0].address)
        for line in parsed
        if line.target is not None and line.target <= line.address - parsed[0].address
    ]
    ends = dict(sorted(edges))  # the longest way back to a place closes its loop
    loops = tuple(
        Loop(first, last, _mix(x for x in parsed if first <= x.address - parsed[0].address <= last))
        for first, last in ends.items()
    )
    names = Counter(line.mnemonic for line in parsed)
    return Code(_mix(parsed), dict(names.most_common()), loops)


def classify(text: str) -> str:
    """The class of an instruction as objdump prints it, operands included."""
    return next((name for name, pattern in _CLASSES if pattern.match(text)), "other")


def _parse(line: str) -> _Line | None:
    found = _LINE.match(line)
    if found is None:
        return None
    mnemonic = _ENCODING.sub("", found[1])
    target = _TARGET.search(line) if found[1].startswith(("s_branch", "s_cbranch")) else None
    return _Line(
        address=int(found[3], 16),
        mnemonic=mnemonic,
        kind=classify(mnemonic + found[2]),
        target=int(target[1] or "0", 16) if target else None,
    )


def _mix(lines: Iterable[_Line]) -> dict[str, int]:
    counts = Counter(line.kind for line in lines)
    return {name: counts[name] for name in CLASSES if counts[name]}


def _objdump() -> str | None:
    return next(filter(None, map(shutil.which, _OBJDUMPS)), None)
