# SPDX-License-Identifier: MIT
"""Names of the machines that kernels are built for, and which of them this one is."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import settings
from .errors import TargetError

# CPU targets from best to plainest, with the /proc/cpuinfo flags that each needs.
_X86_V3 = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
_X86_V4 = _X86_V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_CPU_NEEDS: dict[str, frozenset[str]] = {
    "cpu-avx512bf16": _X86_V4 | {"avx512_bf16", "avx512vbmi"},
    "cpu-avx512": _X86_V4,
    "cpu-avx2": _X86_V3,
    "cpu-generic": frozenset(),
}
_GPU_COMPUTE_UNITS = {"gfx950": 256, "gfx942": 304, "sm_90": 132}


@dataclass(frozen=True, slots=True)
class Target:
    """One machine that kernels can be built for.

    Attributes:
        name: `cpu-avx512bf16`, `gfx950`, `sim:gfx950`, ...
        driver: what runs its artefacts: `cpu`, `hip`, `cuda` or `sim`.
        arch: the architecture behind the driver: `avx512bf16`, `gfx950`, `sm_90`, ...
        family: the dispatch tables that it reads: `cpu`, `gfx950`, `gfx942` or `sm_90`.
        fp8: the dtype that plain `fp8` means there.
    """

    name: str
    driver: str
    arch: str
    family: str
    fp8: str

    @property
    def artefact(self) -> str:
        """The target that its code objects are built for; the simulator runs gfx950's own."""
        return self.arch if self.driver == "sim" else self.name

    def compute_units(self) -> int:
        """Blocks that run at once: threads of torch's pool on the CPU, compute units on a GPU."""
        if self.driver == "cpu":
            import torch

            return torch.get_num_threads()
        return _GPU_COMPUTE_UNITS[self.arch]

    def dtype(self, name: str) -> str:
        """Spells out `fp8` as this target's own fp8 dtype; other names pass unchanged."""
        return self.fp8 if name == "fp8" else name

    def runs_here(self) -> bool:
        """Whether this machine can execute the target's artefacts (GPUs: never claimed yet)."""
        return self.driver == "cpu" and cpu_flags() >= _CPU_NEEDS[self.name]


def names() -> tuple[str, ...]:
    """Every target name, `cpu` first."""
    return ("cpu", *_CPU_NEEDS, "gfx950", "gfx942", "sm_90", "sim:gfx950")


def resolve(name: str | None = None) -> Target:
    """The target called `name`; `cpu` is the best CPU target of this machine.

    Args:
        name: one of names(); None means HIPDECODE_TARGET, or `cpu`.

    Raises:
        TargetError: no target has that name.
    """
    name = name or settings.current().target or "cpu"
    if name == "cpu":
        return _target(_best_cpu())
    if name not in names():
        raise TargetError(
            f"target: expected one of {', '.join(names())}, got {name!r}; choose one of them"
        )
    return _target(name)


def current() -> Target:
    """The target that calls on CPU tensors use: HIPDECODE_TARGET, or the best of this machine.

    Raises:
        TargetError: the named target is unknown or this machine cannot run it.
    """
    target = resolve()
    if not target.runs_here():
        raise TargetError(
            f"HIPDECODE_TARGET: expected a target that this machine runs "
            f"({', '.join(runnable())}), got {target.name}; unset it or name one of those"
        )
    return target


def runnable() -> tuple[str, ...]:
    """The names of the concrete targets that this machine can execute, best first."""
    return tuple(name for name in _CPU_NEEDS if _target(name).runs_here())


@cache
def cpu_flags() -> frozenset[str]:
    """The instruction-set flags that /proc/cpuinfo reports; empty where there is no such file."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def _best_cpu() -> str:
    flags = cpu_flags()
    return next(name for name, needs in _CPU_NEEDS.items() if flags >= needs)


@cache
def _target(name: str) -> Target:
    if name.startswith("cpu-"):
        return Target(name, "cpu", name.removeprefix("cpu-"), "cpu", "fp8_e4m3fn")
    if name.startswith("sim:"):
        arch = name.removeprefix("sim:")
        return Target(name, "sim", arch, arch, "fp8_e4m3fn")
    driver = "cuda" if name.startswith("sm_") else "hip"
    fp8 = "fp8_e4m3fnuz" if name == "gfx942" else "fp8_e4m3fn"
    return Target(name, driver, name, name, fp8)
