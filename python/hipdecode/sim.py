# SPDX-License-Identifier: MIT
"""The gfx942 and gfx950 simulator (csrc/sim): code objects executed on this machine's memory."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from . import settings
from .errors import SimulatorError
from .jit import ensure_simulator

CHECKS = settings.SIM_CHECKS
_MESSAGE_BYTES = 8192


class _Extent(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint64), ("bytes", ctypes.c_uint64))


class _Options(ctypes.Structure):
    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("instruction_limit", ctypes.c_uint64),
        ("quantum", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("checks", ctypes.c_uint32),
        ("extent_count", ctypes.c_uint32),
        ("extents", ctypes.POINTER(_Extent)),
    )


@dataclass(frozen=True, slots=True)
class SimOptions:
    """How a launch is simulated.

    Attributes:
        seed: of the order in which waves run.
        quantum: instructions of a turn, waves taking turns in order; 0 draws 1 to 32 and who is
            next.
        threads: host threads, workgroups being spread over them; 0 takes all of the machine's.
        checks: some of CHECKS.
        instruction_limit: of one workgroup; 0 is 10^9.
        extents: (address, bytes) ranges that the kernel may touch; empty allows whatever the
            process has mapped.
    """

    seed: int = 0
    quantum: int = 0
    threads: int = 0
    checks: tuple[str, ...] = CHECKS
    instruction_limit: int = 0
    extents: tuple[tuple[int, int], ...] = field(default=())

    def _pack(self) -> _Options:
        unknown = set(self.checks) - set(CHECKS)
        if unknown:
            raise SimulatorError(
                f"checks: expected some of {', '.join(CHECKS)}, got {', '.join(sorted(unknown))}; "
                "correct them"
            )
        extents = (_Extent * len(self.extents))(*(_Extent(*one) for one in self.extents))
        return _Options(
            seed=self.seed,
            instruction_limit=self.instruction_limit,
            quantum=self.quantum,
            threads=self.threads or len(os.sched_getaffinity(0)),
            checks=sum(1 << CHECKS.index(name) for name in self.checks),
            extent_count=len(self.extents),
            extents=ctypes.cast(extents, ctypes.POINTER(_Extent)),
        )


class Program:
    """A loaded code object."""

    def __init__(self, path: Path | str, arch: str = "") -> None:
        """Reads and decodes a file.

        Args:
            path: a linked AMDGPU ELF.
            arch: `gfx942` or `gfx950`; empty takes what the ELF says.

        Raises:
            SimulatorError: the file is no code object of that architecture.
            ToolchainError: the simulator cannot be built here.
        """
        self._library = _library()
        self._handle = ctypes.c_void_p()
        self._checked(
            self._library.hipdecode_sim_load,
            os.fsencode(path), arch.encode(), ctypes.byref(self._handle),
        )  # fmt: skip

    def __del__(self) -> None:
        """Frees what was loaded."""
        if getattr(self, "_handle", None):
            self._library.hipdecode_sim_unload(self._handle)

    def launch(
        self,
        kernel: str,
        kernarg: bytes,
        *,
        blocks: tuple[int, int, int] = (1, 1, 1),
        threads: int,
        dynamic_lds: int = 0,
        options: SimOptions | None = None,
    ) -> dict[str, Any]:
        """Runs a kernel to its end.

        Args:
            kernel: its symbol.
            kernarg: the explicit arguments; hidden ones are added.
            blocks: workgroups in x, y and z.
            threads: work items of a workgroup.
            dynamic_lds: bytes of LDS beyond what the kernel declares.
            options: seed, checks and limits.

        Returns:
            What was counted: `sum` over and `max` of the workgroups, `by_mnemonic`.

        Raises:
            SimulatorError: a check failed, or the launch is not allowed.
        """
        packed = (options or SimOptions())._pack()
        self._checked(
            self._library.hipdecode_sim_launch,
            self._handle, kernel.encode(), kernarg, ctypes.c_int64(len(kernarg)),
            *(ctypes.c_int64(n) for n in blocks), ctypes.c_int32(threads),
            ctypes.c_int64(dynamic_lds), ctypes.byref(packed),
        )  # fmt: skip
        counts = _json(lambda *to: self._library.hipdecode_sim_counts(self._handle, *to))
        assert isinstance(counts, dict)
        return counts

    def kernels(self) -> list[dict[str, Any]]:
        """Descriptor and metadata of each kernel."""
        return _list(lambda *to: self._library.hipdecode_sim_info(self._handle, b"", *to))

    def disassembly(self) -> list[dict[str, Any]]:
        """Address, encoding, text and whether the opcode is known, of each instruction."""
        return _list(lambda *to: self._library.hipdecode_sim_disassembly(self._handle, *to))

    def _checked(self, function: Callable[..., int], *arguments: object) -> None:
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        if function(*arguments, message, ctypes.c_int64(_MESSAGE_BYTES)):
            raise SimulatorError(message.value.decode(errors="replace"))


def opcodes() -> list[dict[str, Any]]:
    """The table of opcodes: name, class, section of the ISA guide."""
    return _list(_library().hipdecode_sim_opcodes)


def journal(*, clear: bool = False) -> list[dict[str, Any]]:
    """The last launches of this process, the ops' included: kernel, blocks, threads, counts."""
    entries = _list(_library().hipdecode_sim_journal)
    if clear:
        _library().hipdecode_sim_clear_journal()
    return entries


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(ensure_simulator()))
    for name in ("counts", "journal", "info", "disassembly", "opcodes"):
        getattr(library, f"hipdecode_sim_{name}").restype = ctypes.c_int64
    for name in ("unload", "clear_journal"):
        getattr(library, f"hipdecode_sim_{name}").restype = None
    return library


def _json(ask: Callable[..., int]) -> object:
    """Calls a function that writes JSON, with room for what it says that it needs."""
    size = ask(None, ctypes.c_int64(0))
    while True:
        buffer = ctypes.create_string_buffer(size)
        needed = ask(buffer, ctypes.c_int64(size))
        if needed <= size:
            break
        size = needed
    answer: object = json.loads(buffer.value)
    if isinstance(answer, dict) and "error" in answer:
        raise SimulatorError(str(answer["error"]))
    return answer


def _list(ask: Callable[..., int]) -> list[dict[str, Any]]:
    answer = _json(ask)
    assert isinstance(answer, list)
    return answer
