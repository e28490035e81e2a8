# SPDX-License-Identifier: MIT
"""The simulator: csrc/sim as a library of its own, built on first use with LLVM 22's disassembler.

It is no part of the binding, and nothing but a target called `sim:...` (or `hipdecode sim`) asks
for it.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from hipdecode import paths, settings, target
from hipdecode.errors import BuildError, ToolchainError

from . import cache, keys, toolchain
from .library import Library, compile_library, library

_ARTEFACT = "simulator.so"
_LLVM_CONFIG = "llvm-config-22"
# Results have to be those of the hardware to the last bit: nothing may be contracted.
_COMPILE_FLAGS = (
    "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno",
    "-DHIPDECODE_SIM_BUILD",
    "-fno-trapping-math", "-pthread", "-Wall", "-Wextra",
)  # fmt: skip
_FOLDERS = ("sim", "sim/load", "sim/state", "sim/isa", "sim/check", "sim/run")
_LINK_FLAGS = ("-shared", "-pthread", "-lLLVM-22")
# 64 lanes are a loop: how wide it runs is the host's to say.
_MARCH = {
    "cpu-avx512bf16": ("-march=x86-64-v4",),
    "cpu-avx512": ("-march=x86-64-v4",),
    "cpu-avx2": ("-march=x86-64-v3",),
    "cpu-generic": (),
}


def ensure_simulator() -> Path:
    """The library of csrc/sim/c_api.h, from the cache or the compiler.

    Raises:
        ToolchainError: no compiler, or no LLVM 22.
        CacheError: the cache folder cannot be written, or the disk is full.
        BuildError: the compiler failed, or HIPDECODE_NO_BUILD forbids to build.
    """
    flags = (*_COMPILE_FLAGS, *_MARCH[target.resolve("cpu").name])
    plan = library("the simulator", _FOLDERS, flags, _LINK_FLAGS)
    compiler = toolchain.find()
    llvm = _llvm("--version")
    key = keys.digest(
        source=plan.source_key, llvm=llvm, version=compiler.version, machine=compiler.machine
    )
    entry = paths.cache_dir() / "host" / f"simulator-{key[:16]}"
    if not cache.is_complete(entry):
        if settings.current().no_build:
            raise BuildError(
                "HIPDECODE_NO_BUILD: expected the simulator to be built already, got a need to "
                f"compile it, since it is not in {paths.cache_dir()}; unset HIPDECODE_NO_BUILD"
            )
        cache.get_or_build(entry, lambda folder: _compile(plan, compiler, llvm, folder))
    return entry / _ARTEFACT


def _compile(
    plan: Library, compiler: toolchain.Compiler, llvm: str, folder: Path
) -> dict[str, object]:
    settings.log(settings.LOG_BUILDS, "building the simulator")
    start = time.perf_counter()
    libraries = _llvm("--libdir")
    link = compile_library(
        plan, compiler, folder, _ARTEFACT,
        includes=[_llvm("--includedir")], library_paths=[libraries],
    )  # fmt: skip
    settings.log(settings.LOG_BUILDS, f"built the simulator in {time.perf_counter() - start:.1f} s")
    return {
        "name": "simulator",
        "llvm": llvm,
        "source_key": plan.source_key,
        "compiler": compiler.version,
        "machine": compiler.machine,
        "command": list(link),
    }


def _llvm(question: str) -> str:
    """One answer of llvm-config."""
    program = shutil.which(_LLVM_CONFIG)
    if program is None:
        raise ToolchainError(
            f"simulator: expected {_LLVM_CONFIG} in PATH, got none; install LLVM 22's development "
            "files (Debian: llvm-22-dev)"
        )
    try:
        return subprocess.run(
            (program, question), capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise ToolchainError(
            f"simulator: expected `{program} {question}` to answer, got {error}; install LLVM 22 "
            "again (Debian: llvm-22-dev)"
        ) from error
