# SPDX-License-Identifier: MIT
"""Host libraries of several C++ files: the torch binding and the simulator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hipdecode import paths
from hipdecode.errors import BuildError

from . import keys, toolchain


@dataclass(frozen=True, slots=True)
class Library:
    """What a library is made from, all but the compiler.

    Attributes:
        subject: what it is, for messages.
        sources: the .cpp files, sorted.
        compile_flags: of each file; they name no folder of this machine.
        link_flags: likewise.
        abi_version: of csrc/abi/abi_version.h.
        source_key: sha256 of the texts, included files, flags and ABI version.
    """

    subject: str
    sources: tuple[Path, ...]
    compile_flags: tuple[str, ...]
    link_flags: tuple[str, ...]
    abi_version: int
    source_key: str


def library(
    subject: str,
    folders: Sequence[str],
    compile_flags: tuple[str, ...],
    link_flags: tuple[str, ...],
) -> Library:
    """Reads the .cpp files of folders under csrc/ and what they include.

    Raises:
        BuildError: there are none, or they cannot be followed.
    """
    root = paths.csrc_dir()
    tree = keys.source_tree(root)
    sources = tuple(sorted(path for name in folders for path in (root / name).glob("*.cpp")))
    if not sources:
        names = " and ".join(folders)
        raise BuildError(f"{root}: expected .cpp files in {names}, got none; reinstall")
    texts = {path: path.read_text(encoding="utf-8") for path in sources}
    abi = tree.abi_version()
    source_key = keys.digest(
        texts={path.relative_to(root).as_posix(): text for path, text in texts.items()},
        includes=[tree.closure(text, path.parent) for path, text in texts.items()],
        flags=(compile_flags, link_flags),
        abi_version=abi,
    )
    return Library(subject, sources, compile_flags, link_flags, abi, source_key)


def compile_library(
    plan: Library,
    compiler: toolchain.Compiler,
    folder: Path,
    artefact: str,
    *,
    includes: Sequence[str] = (),
    library_paths: Sequence[str] = (),
) -> tuple[str, ...]:
    """Compiles the files at once and links them into `folder`.

    Args:
        plan: what to make.
        compiler: what makes it.
        folder: the cache's temporary folder.
        artefact: name of the library in it.
        includes: folders of other packages' headers.
        library_paths: folders of other packages' libraries.

    Returns:
        The link command.

    Raises:
        ToolchainError, CacheError, BuildError: as toolchain.run.
    """
    system = [word for path in includes for word in ("-isystem", path)]
    objects = [f"{path.parent.name}_{path.stem}.o" for path in plan.sources]

    def compile_one(source: Path, object_name: str) -> None:
        command = (
            *compiler.command, *plan.compile_flags, f"-I{paths.csrc_dir()}", *system,
            "-c", str(source), "-o", object_name,
        )  # fmt: skip
        log = folder / f"{object_name}.log"
        toolchain.run(f"{plan.subject}, {source.name}", command, folder, log)

    jobs = min(len(plan.sources), len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        list(pool.map(compile_one, plan.sources, objects))
    libraries = [f"-L{path}" for path in library_paths]
    link = (*compiler.command, *objects, *libraries, *plan.link_flags, "-o", artefact)
    toolchain.run(plan.subject, link, folder, folder / "build.log")
    for name in objects:
        (folder / name).unlink()
    return link
