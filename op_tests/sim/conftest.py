# SPDX-License-Identifier: MIT
"""Snippets of assembly, run on the simulator with registers and memory of the test's choice."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from hipdecode import ops, sim
from hipdecode.errors import ToolchainError

ARCHS = ("gfx942", "gfx950")
_TOOLS = ("llvm-mc-22", "ld.lld-22", "llvm-config-22")
# The frame's own registers; a snippet may use all others.
_LANE, _TEMPORARY = "v254", "v255"
_ALL, _POINTERS, _EXEC, _SCC = "s[90:91]", "s[92:95]", "s[96:97]", "s98"

_FRAME = """
.amdgcn_target "amdgcn-amd-amdhsa--{arch}"
.text
.globl kernel
.p2align 8
.type kernel,@function
kernel:
{code}
  s_endpgm
.rodata
.p2align 6
.amdhsa_kernel kernel
  .amdhsa_group_segment_fixed_size {lds}
  .amdhsa_private_segment_fixed_size {scratch}
  .amdhsa_kernarg_size 24
  .amdhsa_next_free_vgpr 512
  .amdhsa_next_free_sgpr 100
  .amdhsa_accum_offset 256
  .amdhsa_user_sgpr_kernarg_segment_ptr 1
  .amdhsa_system_sgpr_workgroup_id_x 1
  {directives}
.end_amdhsa_kernel
"""


@dataclass(frozen=True)
class Result:
    """What a snippet left.

    Attributes:
        registers: by name; vector registers are arrays of one uint32 per work item, scalars ints.
        counts: what the simulator counted, the frame's own instructions included.
    """

    registers: dict[str, np.ndarray | int]
    counts: dict = field(repr=False)

    def __getitem__(self, name: str) -> np.ndarray:
        value = self.registers[name]
        assert isinstance(value, np.ndarray), f"{name} is a scalar; use scalar()"
        return value

    def scalar(self, name: str) -> int:
        value = self.registers[name]
        assert isinstance(value, int), f"{name} is a vector"
        return value


def _as_lanes(value: object, threads: int) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.itemsize != 4:
        array = array.astype(np.uint32)
    return np.ascontiguousarray(np.broadcast_to(array.view(np.uint32), (threads,)))


@dataclass(frozen=True)
class Snippets:
    """Assembles and runs snippets: see run()."""

    folder: Path

    def build(
        self,
        code: str,
        *,
        arch: str = "gfx950",
        lds: int = 0,
        scratch: int = 0,
        directives: str = "",
    ) -> Path:
        """A code object of one kernel called `kernel`; `code` is all but s_endpgm."""
        source, built = self.folder / "kernel.s", self.folder / "kernel.o"
        linked = self.folder / "kernel.hsaco"
        source.write_text(
            _FRAME.format(arch=arch, code=code, lds=lds, scratch=scratch, directives=directives)
        )
        triple = ("-triple=amdgcn-amd-amdhsa", f"-mcpu={arch}")
        _tool("llvm-mc-22", *triple, "-filetype=obj", str(source), "-o", str(built))
        _tool("ld.lld-22", "-shared", str(built), "-o", str(linked))
        return linked

    def run(
        self,
        code: str,
        *,
        out: Sequence[str],
        v: Mapping[int, object] | None = None,
        a: Mapping[int, object] | None = None,
        s: Mapping[int, int] | None = None,
        memory: np.ndarray | None = None,
        arch: str = "gfx950",
        threads: int = 64,
        lds: int = 0,
        scratch: int = 0,
        blocks: tuple[int, int, int] = (1, 1, 1),
        options: sim.SimOptions | None = None,
    ) -> Result:
        """Runs `code` and returns the registers of `out`, read at its end.

        Args:
            code: assembly; v0 is the work item's number, s2 the workgroup's, s[0:1] the address of
                `memory`. v254, v255 and s90 to s98 are taken.
            out: "v7", "a3", "s5", "s[6:7]", "vcc", "exec", "scc"; scalars are wave 0's.
            v: vector registers before: anything that broadcasts to one 32-bit value per work item
                (bit patterns of floats are kept; 64-bit integers are cut).
            a: the same for accumulation registers.
            s: scalar registers before.
            memory: an array that the kernel may read and write.
            arch: gfx942 or gfx950.
            threads: work items of a workgroup.
            lds: bytes of LDS.
            scratch: bytes of each work item's private segment.
            blocks: the grid; registers are those of whichever workgroup stored last.
            options: checks, seed, limits; extents are filled in.
        """
        inputs = [_as_lanes(x, threads) for x in (*(v or {}).values(), *(a or {}).values())]
        given = np.concatenate([np.zeros(0, np.uint32), *inputs])
        results = np.zeros((len(out) * 2, threads), np.uint32)
        extra = np.zeros(1, np.uint32) if memory is None else memory
        buffers = [(b.ctypes.data, b.nbytes) for b in (given, results, extra) if b.nbytes]
        chosen = options or sim.SimOptions()
        options = sim.SimOptions(
            seed=chosen.seed, quantum=chosen.quantum, threads=chosen.threads or 1,
            checks=chosen.checks, instruction_limit=chosen.instruction_limit or 10_000_000,
            extents=chosen.extents or tuple(buffers),
        )  # fmt: skip
        text = _prologue(v or {}, a or {}, s or {}, threads) + code + _epilogue(out, threads)
        program = sim.Program(self.build(text, arch=arch, lds=lds, scratch=scratch), arch)
        addresses = (given.ctypes.data, results.ctypes.data, extra.ctypes.data)
        counts = program.launch(
            "kernel", struct.pack("<3Q", *addresses), threads=threads, blocks=blocks,
            options=options,
        )  # fmt: skip
        return Result(dict(_collect(out, results)), counts)


def _tool(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _prologue(
    v: Mapping[int, object], a: Mapping[int, object], s: Mapping[int, int], threads: int
) -> str:
    lines = [
        f"s_mov_b64 {_ALL}, exec",
        f"s_load_dwordx4 {_POINTERS}, s[0:1], 0",
        "s_load_dwordx2 s[0:1], s[0:1], 16",
        f"v_lshlrev_b32 {_LANE}, 2, v0",
        "s_waitcnt lgkmcnt(0)",
    ]
    for name in (*(f"v{n}" for n in v), *(f"a{n}" for n in a)):
        lines += [f"global_load_dword {name}, {_LANE}, s[92:93]", *_advance(92, threads)]
    lines.append("s_waitcnt vmcnt(0)")
    lines += [f"s_mov_b32 s{n}, {hex(value & 0xFFFFFFFF)}" for n, value in s.items()]
    return "".join(f"  {line}\n" for line in lines)


def _epilogue(out: Sequence[str], threads: int) -> str:
    lines = [
        "s_waitcnt vmcnt(0) lgkmcnt(0)",
        f"s_cselect_b32 {_SCC}, 1, 0",
        f"s_mov_b64 {_EXEC}, exec",
        f"s_mov_b64 exec, {_ALL}",
        "s_nop 15",
        "s_nop 15",
    ]
    for name in out:
        for dword in _dwords(name):
            move = "v_accvgpr_read_b32" if dword.startswith("a") else "v_mov_b32"
            lines += [
                f"{move} {_TEMPORARY}, {dword}",
                "s_nop 1",
                f"global_store_dword {_LANE}, {_TEMPORARY}, s[94:95]",
                *_advance(94, threads),
                "s_waitcnt vmcnt(0)",
            ]
    return "\n" + "".join(f"  {line}\n" for line in lines)


def _advance(pointer: int, threads: int) -> tuple[str, str]:
    return (
        f"s_add_u32 s{pointer}, s{pointer}, {threads * 4}",
        f"s_addc_u32 s{pointer + 1}, s{pointer + 1}, 0",
    )


def _dwords(name: str) -> tuple[str, ...]:
    pairs = {"vcc": ("vcc_lo", "vcc_hi"), "exec": ("s96", "s97"), "scc": (_SCC,)}
    if name in pairs:
        return pairs[name]
    found = re.fullmatch(r"s\[(\d+):(\d+)\]", name)
    return tuple(f"s{n}" for n in range(int(found[1]), int(found[2]) + 1)) if found else (name,)


def _collect(out: Sequence[str], results: np.ndarray) -> list[tuple[str, np.ndarray | int]]:
    collected: list[tuple[str, np.ndarray | int]] = []
    row = 0
    for name in out:
        count = len(_dwords(name))
        rows = results[row : row + count]
        row += count
        scalar = not re.fullmatch(r"[va]\d+", name)
        bits = sum(int(dword[0]) << 32 * i for i, dword in enumerate(rows))
        collected.append((name, bits if scalar else rows[0].copy()))
    return collected


@pytest.fixture(scope="session")
def simulator() -> None:
    """Skips where the simulator or the assembler is missing."""
    missing = [name for name in _TOOLS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: install llvm-22, lld-22 and llvm-22-dev")
    try:
        sim.opcodes()
    except ToolchainError as error:
        pytest.skip(f"needs a C++ compiler and llvm-22-dev: {error}")


@pytest.fixture
def simulated(simulator: None, target: str) -> Iterator[None]:
    """Skips where the kernels cannot be built; gives the target under test back afterwards."""
    if shutil.which("clang++-22") is None and shutil.which("hipcc") is None:
        pytest.skip("needs clang++-22 (install clang-22 and lld-22) or ROCm's hipcc")
    yield
    ops.use_target(target)


@pytest.fixture
def snippets(simulator: None, tmp_path: Path) -> Snippets:
    """Builds and runs snippets of assembly."""
    return Snippets(tmp_path)


@pytest.fixture
def asm(snippets: Snippets) -> Callable[..., Result]:
    """Snippets.run."""
    return snippets.run
