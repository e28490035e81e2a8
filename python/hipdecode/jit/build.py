# SPDX-License-Identifier: MIT
"""From a kernel name to a file that the runtime can load, compiled at most once per content."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from hipdecode import paths, registry, settings, target
from hipdecode.errors import BuildError, ToolchainError

from . import cache, keys, prebuilt, toolchain

_TILE_TARGETS = "tile/target"
_DEBUG_FLAGS = ("-g", "-DHIPDECODE_DEBUG=1")


@dataclass(frozen=True, slots=True)
class KernelFile:
    """A built kernel.

    Attributes:
        path: the shared library or code object.
        symbol: its entry.
    """

    path: Path
    symbol: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a kernel is made from, all but the compiler.

    Attributes:
        target: the artefact's target, such as `cpu-avx2`.
        kernel: the registry's kernel.
        source: text of the translation unit.
        kind: of compiler, out of toolchain.TOOLCHAINS.
        flags: compiler flags in order.
        abi_version: of csrc/abi/abi_version.h.
        source_key: sha256 of text, included files, flags, target and ABI version.
    """

    target: str
    kernel: registry.Kernel
    source: str
    kind: str
    flags: tuple[str, ...]
    abi_version: int
    source_key: str

    @property
    def tools(self) -> toolchain.Toolchain:
        """The kind of compiler."""
        return toolchain.TOOLCHAINS[self.kind]

    def key(self, compiler: toolchain.Compiler) -> str:
        """The sha256 that names the artefact of this compiler."""
        return keys.digest(
            source=self.source_key, version=compiler.version, machine=compiler.machine
        )

    def entry(self, compiler: toolchain.Compiler) -> Path:
        """The artefact's cache folder."""
        name = self.kernel.name.replace("/", "__")
        return paths.cache_dir() / self.target / f"{name}-{self.key(compiler)[:16]}"

    def command(self, compiler: toolchain.Compiler) -> tuple[str, ...]:
        """The compile command, run in a folder that holds the source."""
        include = f"-I{paths.csrc_dir()}"
        files = (self.tools.source, "-o", self.tools.artefact)
        return (*compiler.command, *self.flags, include, *files)


@dataclass(frozen=True, slots=True)
class BuildResult:
    """One kernel of build_kernels.

    Attributes:
        name: the kernel.
        file: where it lies.
        seconds: wall time; close to zero where it was cached.
        built: False where it was cached or prebuilt.
    """

    name: str
    file: KernelFile
    seconds: float
    built: bool


_known: dict[tuple[settings.Settings, str, str], KernelFile] = {}


def recipe(kernel: registry.Kernel, target_name: str) -> Recipe:
    """What `kernel` is built from for a target.

    Raises:
        RegistryError: the module is not built for that target.
        TargetError: the target is unknown.
        BuildError: the sources cannot be followed.
    """
    artefact = target.resolve(target_name).artefact
    how = registry.default().flags(kernel, artefact)
    flags = how.flags + (_DEBUG_FLAGS if settings.current().debug else ())
    tree, source = keys.source_tree(paths.csrc_dir()), kernel.source()
    abi = tree.abi_version()
    if not (tree.root / kernel.module.header).is_file():
        registry.default().validate()
        raise BuildError(
            f"{kernel.name}: expected header {kernel.module.header} under {tree.root}, got no such "
            "file; correct `header` in configs/modules.json"
        )
    source_key = keys.digest(
        text=source,
        includes=tree.closure(source, without=_other_tiles(how.tile)),
        toolchain=how.toolchain,
        flags=flags,
        target=artefact,
        abi_version=abi,
    )
    return Recipe(artefact, kernel, source, how.toolchain, flags, abi, source_key)


def ensure_kernel(target_name: str, name: str) -> KernelFile:
    """The artefact of a kernel, from the prebuilt folder, the cache, or the compiler.

    Args:
        target_name: one of target.names().
        name: module and template values, such as `mla_decode_hk/576-512-bf16-bf16-16`. Where the
            target has no tile of so few rows, the kernel of the next taller one serves.

    Raises:
        RegistryError: no such kernel, or not for that target.
        TargetError: the target is unknown.
        ToolchainError: no compiler, or it does not start.
        CacheError: the cache folder cannot be written, or the disk is full.
        BuildError: the compiler failed, the prebuilt folder is of another ABI version, or
            HIPDECODE_NO_BUILD forbids to build.
    """
    memo = (settings.current(), target_name, name)
    file = _known.get(memo)
    if file is None:
        artefact = target.resolve(target_name).artefact
        kernel = registry.default().fit(name, artefact)
        file = _known[memo] = _ensure(target_name, kernel.name).file
    return file


def build_kernels(
    target_name: str,
    names: Iterable[str],
    *,
    jobs: int,
    done: Callable[[BuildResult], None] = lambda _: None,
) -> list[BuildResult]:
    """Builds kernels in parallel; `done` is called as each is there.

    Raises:
        BuildError: as ensure_kernel, of the first that fails; those not yet started are dropped.
    """
    registry.default().validate()
    results = []
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures = [pool.submit(_ensure, target_name, name) for name in names]
        try:
            for future in as_completed(futures):
                results.append(future.result())
                done(results[-1])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def _ensure(target_name: str, name: str) -> BuildResult:
    start = time.perf_counter()

    def result(path: Path, built: bool) -> BuildResult:
        file = KernelFile(path, plan.kernel.module.symbol)
        return BuildResult(name, file, time.perf_counter() - start, built)

    plan = recipe(registry.default().kernel(name), target_name)
    found, reason = prebuilt.find_kernel(plan.target, name, plan.source_key, plan.abi_version)
    if found:
        return result(found, False)
    try:
        compiler = toolchain.find(plan.kind)
        entry = plan.entry(compiler)
        if cache.is_complete(entry):
            return result(entry / plan.tools.artefact, False)
        if settings.current().no_build:
            raise _forbidden(plan, f"it is not in {paths.cache_dir()}{reason}")
        built = cache.get_or_build(entry, lambda folder: _compile(plan, compiler, folder))
    except ToolchainError as error:
        if settings.current().no_build:
            raise _forbidden(plan, f"{error}{reason}") from error
        raise ToolchainError(f"{error}{reason}") from error
    return result(entry / plan.tools.artefact, built)


def _other_tiles(tile: str | None) -> tuple[str, ...]:
    """Target folders that a build never reads: tile.h includes the one of its compiler."""
    if tile is None:
        return ()
    folders = sorted((paths.csrc_dir() / _TILE_TARGETS).iterdir())
    return tuple(f"{_TILE_TARGETS}/{path.name}" for path in folders if path.name != tile)


def _compile(plan: Recipe, compiler: toolchain.Compiler, folder: Path) -> dict[str, object]:
    registry.default().validate()
    command = plan.command(compiler)
    settings.log(settings.LOG_BUILDS, f"building {plan.kernel.name} for {plan.target}")
    start = time.perf_counter()
    (folder / plan.tools.source).write_text(plan.source, encoding="utf-8")
    subject = f"{plan.kernel.name} for {plan.target}"
    toolchain.run(subject, command, folder, folder / "build.log", plan.tools.choice)
    if not (folder / plan.tools.artefact).is_file():
        raise BuildError(
            f"{plan.kernel.name}: expected the compiler to write {plan.tools.artefact}, got "
            f"nothing; choose another compiler {plan.tools.choice}\ncommand: {' '.join(command)}"
        )
    settings.log(
        settings.LOG_BUILDS, f"built {plan.kernel.name} in {time.perf_counter() - start:.1f} s"
    )
    return {
        "name": plan.kernel.name,
        "target": plan.target,
        "symbol": plan.kernel.module.symbol,
        "abi_version": plan.abi_version,
        "source_key": plan.source_key,
        "key": plan.key(compiler),
        "compiler": compiler.version,
        "machine": compiler.machine,
        "command": list(command),
    }


def _forbidden(plan: Recipe, why: str) -> BuildError:
    return BuildError(
        f"HIPDECODE_NO_BUILD: expected {plan.kernel.name} for {plan.target} to be built already, "
        f"got a need to compile it; run "
        f"`hipdecode build {plan.kernel.name} --target {plan.target}` first, or unset "
        f"HIPDECODE_NO_BUILD\n{why}\nwould have compiled with: {' '.join(plan.flags)}"
    )
