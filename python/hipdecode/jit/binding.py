# SPDX-License-Identifier: MIT
"""The torch binding: csrc/runtime and csrc/torch as one library, on LibTorch's stable ABI.

One binary serves every torch from 2.10 on; the version it was compiled against is part of the key
all the same, because its headers are part of the text.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hipdecode import paths, settings
from hipdecode.errors import BuildError, ToolchainError

from . import cache, keys, prebuilt, toolchain

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
        sources: the .cpp files, sorted.
        torch: the version of torch whose headers it includes.
        abi_version: of csrc/abi/abi_version.h.
        source_key: sha256 of the texts, included files, flags and ABI version; no torch version,
            since a prebuilt binding serves them all.
    """

    sources: tuple[Path, ...]
    torch: str
    abi_version: int
    source_key: str

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

    root = paths.csrc_dir()
    tree = keys.source_tree(root)
    sources = tuple(sorted(path for name in _FOLDERS for path in (root / name).glob("*.cpp")))
    if not sources:
        raise BuildError(f"{root}: expected .cpp files in runtime and torch, got none; reinstall")
    texts = {path: path.read_text(encoding="utf-8") for path in sources}
    abi = tree.abi_version()
    source_key = keys.digest(
        texts={path.relative_to(root).as_posix(): text for path, text in texts.items()},
        includes=[tree.closure(text, path.parent) for path, text in texts.items()],
        flags=(_COMPILE_FLAGS, _LINK_FLAGS),
        abi_version=abi,
    )
    return BindingRecipe(sources, str(torch.__version__), abi, source_key)


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
    includes = [word for path in include_paths() for word in ("-isystem", path)]
    objects = [f"{path.parent.name}_{path.stem}.o" for path in plan.sources]

    def compile_one(source: Path, object_name: str) -> None:
        command = (
            *compiler.command, *_COMPILE_FLAGS, f"-I{paths.csrc_dir()}", *includes,
            "-c", str(source), "-o", object_name,
        )  # fmt: skip
        log = folder / f"{object_name}.log"
        toolchain.run(f"torch binding, {source.name}", command, folder, log)

    jobs = min(len(plan.sources), len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        list(pool.map(compile_one, plan.sources, objects))
    libraries = [f"-L{path}" for path in library_paths()]
    link = (*compiler.command, *objects, *libraries, *_LINK_FLAGS, "-o", _ARTEFACT)
    toolchain.run("torch binding", link, folder, folder / "build.log")
    for name in objects:
        (folder / name).unlink()
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
