# SPDX-License-Identifier: MIT
"""The torch binding: csrc/runtime and csrc/torch as one library, on LibTorch's stable ABI.

One binary serves every torch from 2.10 on; the version it was compiled against is part of the key
all the same, because its headers are part of the text.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from hipdecode import paths, settings
from hipdecode.errors import BuildError, ToolchainError

from . import cache, keys, prebuilt, toolchain
from .library import Library, compile_library, library

_ARTEFACT = "binding.so"
_FOLDERS = ("runtime", "torch")
_COMPILE_FLAGS = (
    "-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra",
    "-DTORCH_TARGET_VERSION=0x020a000000000000ULL",  # torch 2.10
)  # fmt: skip
_LINK_FLAGS = ("-shared", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl")


@dataclass(frozen=True, slots=True)
class BindingRecipe:
    """What the binding is made from, all but the compiler.

    Attributes:
        library: sources, flags and their key; no torch version, since a prebuilt binding serves
            them all.
        torch: the version of torch whose headers it includes.
    """

    library: Library
    torch: str

    @property
    def abi_version(self) -> int:
        """Of csrc/abi/abi_version.h."""
        return self.library.abi_version

    @property
    def source_key(self) -> str:
        """The sha256 of texts, included files, flags and ABI version."""
        return self.library.source_key

    def entry(self, compiler: toolchain.Compiler) -> Path:
        """The binding's cache folder."""
        key = keys.digest(
            source=self.source_key,
            torch=self.torch,
            version=compiler.version,
            machine=compiler.machine,
        )
        return paths.cache_dir() / "host" / f"binding-{key[:16]}"


def recipe() -> BindingRecipe:
    """Reads the sources.

    Raises:
        BuildError: they cannot be followed.
    """
    import torch

    plan = library("torch binding", _FOLDERS, _COMPILE_FLAGS, _LINK_FLAGS)
    return BindingRecipe(plan, str(torch.__version__))


def ensure_binding() -> Path:
    """The library that registers torch.ops.hipdecode.*, and exports the host C functions.

    Looked for in the wheel (`hipdecode/_C*.so`), the prebuilt folder and the cache, then compiled.

    Raises:
        ToolchainError: no compiler, or it does not start.
        CacheError: the cache folder cannot be written, or the disk is full.
        BuildError: the compiler failed, the prebuilt folder is of another ABI version, or
            HIPDECODE_NO_BUILD forbids to build.
    """
    shipped = _shipped()
    if shipped:
        return shipped
    plan = recipe()
    found, reason = prebuilt.find_binding(plan.source_key, plan.abi_version)
    if found:
        return found
    try:
        compiler = toolchain.find()
        entry = plan.entry(compiler)
        if not cache.is_complete(entry):
            if settings.current().no_build:
                raise _forbidden(f"it is not in {paths.cache_dir()}{reason}")
            cache.get_or_build(entry, lambda folder: _compile(plan, compiler, folder))
    except ToolchainError as error:
        if settings.current().no_build:
            raise _forbidden(f"{error}{reason}") from error
        raise ToolchainError(f"{error}{reason}") from error
    return entry / _ARTEFACT


def _shipped() -> Path | None:
    """The binding of a wheel. A checkout never uses one: its sources may have moved on."""
    package = paths.package_dir()
    if paths.source_root() != package / "share":
        return None
    return next(iter(sorted(package.glob("_C*.so"))), None)


def _compile(plan: BindingRecipe, compiler: toolchain.Compiler, folder: Path) -> dict[str, object]:
    from torch.utils.cpp_extension import include_paths, library_paths

    settings.log(settings.LOG_BUILDS, f"building the torch binding for torch {plan.torch}")
    start = time.perf_counter()
    link = compile_library(
        plan.library, compiler, folder, _ARTEFACT,
        includes=include_paths(), library_paths=library_paths(),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    settings.log(settings.LOG_BUILDS, f"built the torch binding in {seconds:.1f} s")
    return {
        "name": "binding",
        "torch": plan.torch,
        "abi_version": plan.abi_version,
        "source_key": plan.source_key,
        "compiler": compiler.version,
        "machine": compiler.machine,
        "command": list(link),
    }


def _forbidden(why: str) -> BuildError:
    return BuildError(
        f"HIPDECODE_NO_BUILD: expected the torch binding to be built already, got a need to "
        f"compile it; run `hipdecode build` first, or unset HIPDECODE_NO_BUILD\n{why}"
    )
