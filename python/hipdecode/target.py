# SPDX-License-Identifier: MIT
"""Names of the machines that kernels are built for, and which of them this one is."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

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
_SIMULATED = ("gfx950", "gfx942")
_SIM_TOOLS = ("llvm-config-22", "clang++-22")
"""What builds the simulator and the code objects that it runs (Debian: llvm-22-dev, clang-22)."""


@dataclass(frozen=True, slots=True)
class Target:
    """One machine that kernels can be built for.

    Attributes:
        name: `cpu-avx512bf16`, `gfx950`, `sim:gfx950`, `sm_90`, ...
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
        """The target that its code objects are built for; the simulator runs a GPU's own."""
        return self.arch if self.driver == "sim" else self.name

    @property
    def device_type(self) -> str:
        """Where its tensors live: torch's `cpu`, or `cuda` (GPUs, on ROCm too)."""
        return "cpu" if self.driver in ("cpu", "sim") else "cuda"

    def compute_units(self) -> int:
        """Blocks that run at once: threads of torch's pool on the CPU, compute units on a GPU.

        Those of the first such GPU here, else of the usual device; the simulator's can be set
        (HIPDECODE_SIM_COMPUTE_UNITS).
        """
        if self.driver == "cpu":
            import torch

            return torch.get_num_threads()
        if self.driver == "sim":
            return settings.current().sim_compute_units or _GPU_COMPUTE_UNITS[self.arch]
        here = (gpu.compute_units for gpu in gpus() if gpu.arch == self.arch)
        return next(here, _GPU_COMPUTE_UNITS[self.arch])

    def dtype(self, name: str) -> str:
        """Spells out `fp8` as this target's own fp8 dtype; other names pass unchanged."""
        return self.fp8 if name == "fp8" else name

    def runs_here(self) -> bool:
        """Whether this machine can execute the target's artefacts."""
        if self.driver == "cpu":
            return cpu_flags() >= _CPU_NEEDS[self.name]
        if self.driver == "sim":
            return all(shutil.which(tool) for tool in _SIM_TOOLS)
        return any(gpu.arch == self.arch for gpu in gpus())


@dataclass(frozen=True, slots=True)
class Gpu:
    """What torch says about one GPU.

    Attributes:
        arch: `gfx950`, `sm_90`, ...
        compute_units: compute units or multiprocessors.
    """

    arch: str
    compute_units: int


def names() -> tuple[str, ...]:
    """Every target name, `cpu` first."""
    return ("cpu", *_CPU_NEEDS, *_GPU_COMPUTE_UNITS, *(f"sim:{arch}" for arch in _SIMULATED))


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
    """The target of this process: HIPDECODE_TARGET, or the best of this machine's CPU.

    Raises:
        TargetError: the named target is unknown or this machine cannot run it.
    """
    target = resolve()
    if not target.runs_here():
        raise TargetError(
            f"HIPDECODE_TARGET: expected a target that this machine runs "
            f"({', '.join(all_runnable())}), got {target.name}; unset it or name one of those"
        )
    return target


def of_gpu(index: int) -> Target:
    """The target of torch's device `cuda:index`.

    Raises:
        TargetError: no kernels are built for that GPU, or there is none.
    """
    found = gpus()[index].arch if index < len(gpus()) else "no such device"
    if found not in _GPU_COMPUTE_UNITS:
        raise TargetError(
            f"cuda:{index}: expected a GPU of {', '.join(_GPU_COMPUTE_UNITS)}, got {found}; "
            "use tensors on another device"
        )
    return _target(found)


def runnable() -> tuple[str, ...]:
    """The names of the CPU targets that this machine can execute, best first."""
    return tuple(name for name in _CPU_NEEDS if _target(name).runs_here())


def all_runnable() -> tuple[str, ...]:
    """The names of all targets that this machine can execute: CPU, GPUs, simulators."""
    others = (name for name in names() if name != "cpu" and name not in _CPU_NEEDS)
    return (*runnable(), *(name for name in others if _target(name).runs_here()))


@cache
def gpus() -> tuple[Gpu, ...]:
    """The GPUs that torch sees, by index; asking it starts CUDA or HIP."""
    import torch

    if not torch.cuda.is_available():
        return ()
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return tuple(Gpu(_arch(device), int(device.multi_processor_count)) for device in found)


def _arch(device: Any) -> str:  # noqa: ANN401  (torch has no public type for it)
    name = getattr(device, "gcnArchName", "")  # gfx942:sramecc+:xnack-
    if name.startswith("gfx"):
        return str(name).partition(":")[0]
    return f"sm_{device.major}{device.minor}"


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
    arch = name.removeprefix("sim:")
    driver = "sim" if name != arch else "cuda" if arch.startswith("sm_") else "hip"
    fp8 = "fp8_e4m3fnuz" if arch == "gfx942" else "fp8_e4m3fn"
    return Target(name, driver, arch, arch, fp8)
