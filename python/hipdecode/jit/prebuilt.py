# SPDX-License-Identifier: MIT
"""The ahead-of-time folder: the same artefacts, found by a manifest, used without a compiler."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from functools import cache
from pathlib import Path
from typing import TypedDict

from hipdecode import paths
from hipdecode.errors import BuildError, CacheError

_FORMAT = 1


class Artefact(TypedDict):
    """One file of the folder: its name, and what it was made from (no compiler)."""

    file: str
    source_key: str


class Manifest(TypedDict):
    """manifest.json: kernels by target and name, and the binding of one machine type."""

    format: int
    abi_version: int
    machine: str
    binding: Artefact | None
    kernels: dict[str, dict[str, Artefact]]


def find_kernel(
    target: str, name: str, source_key: str, abi_version: int
) -> tuple[Path | None, str]:
    """The prebuilt file of a kernel.

    Returns:
        Its path, or None with the reason as a further line of an error message.

    Raises:
        BuildError: the folder is of another ABI version.
    """
    folder = paths.prebuilt_dir()
    if folder is None:
        return None, ""
    manifest = _read(folder, abi_version)
    kernels = manifest["kernels"].get(target)
    if kernels is None:
        held = ", ".join(manifest["kernels"]) or "none"
        return None, f"\nprebuilt folder {folder} holds targets {held}, not {target}"
    return _check(folder, kernels.get(name), f"{name} for {target}", source_key)


def find_binding(source_key: str, abi_version: int) -> tuple[Path | None, str]:
    """The prebuilt binding; returns and raises as find_kernel."""
    folder = paths.prebuilt_dir()
    if folder is None:
        return None, ""
    manifest = _read(folder, abi_version)
    if manifest["machine"] != platform.machine():
        return None, f"\nprebuilt folder {folder} holds a binding for {manifest['machine']}"
    return _check(folder, manifest["binding"], "the binding", source_key)


def read_manifest(folder: Path) -> Manifest:
    """Reads manifest.json.

    Raises:
        CacheError: it cannot be read.
    """
    path = folder / "manifest.json"
    try:
        stat = path.stat()
        return _parse(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(
            f"{path}: expected a manifest of format {_FORMAT}, got {error}; "
            "write the folder anew with `hipdecode build --out`"
        ) from error


def write(
    folder: Path,
    *,
    abi_version: int,
    kernels: dict[str, dict[str, tuple[Path, str]]],
    binding: tuple[Path, str],
) -> None:
    """Adds artefacts to a relocatable folder; the manifest is replaced last, atomically.

    Args:
        folder: made if absent; kernels of other targets that it holds stay.
        abi_version: of all artefacts.
        kernels: target to kernel name to (file, source key).
        binding: (file, source key).

    Raises:
        CacheError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held: dict[str, dict[str, Artefact]] = {}
        if (folder / "manifest.json").is_file():
            before = read_manifest(folder)
            if before["abi_version"] == abi_version:
                held = before["kernels"]
        for target, files in kernels.items():
            held = {**held, target: dict(held.get(target, {}))}
            for name, (path, key) in files.items():
                file = f"{target}/{name.replace('/', '__')}-{key[:16]}{path.suffix}"
                held[target][name] = _add(folder, file, path, key)
        manifest: Manifest = {
            "format": _FORMAT,
            "abi_version": abi_version,
            "machine": platform.machine(),
            "binding": _add(folder, f"binding-{binding[1][:16]}.so", *binding),
            "kernels": held,
        }
        _replace(folder / "manifest.json", json.dumps(manifest, indent=1).encode() + b"\n")
    except OSError as error:
        raise CacheError(
            f"prebuilt folder {folder}: expected a folder that can be written, got "
            f"{error.strerror}; choose another --out"
        ) from error


def check_abi(folder: Path, manifest: Manifest, abi_version: int) -> None:
    """Holds a folder against the ABI version of the sources.

    Raises:
        BuildError: they differ; names both.
    """
    if manifest["abi_version"] != abi_version:
        raise BuildError(
            f"prebuilt folder {folder}: expected ABI version {abi_version}, got "
            f"{manifest['abi_version']}; write it anew with `hipdecode build --out {folder}` "
            "of this version of hipdecode, or unset HIPDECODE_PREBUILT"
        )


def _read(folder: Path, abi_version: int) -> Manifest:
    manifest = read_manifest(folder)
    check_abi(folder, manifest, abi_version)
    return manifest


def _check(
    folder: Path, artefact: Artefact | None, what: str, source_key: str
) -> tuple[Path | None, str]:
    if artefact is None:
        return None, f"\nprebuilt folder {folder} does not hold {what}"
    if artefact["source_key"] != source_key:
        return None, (
            f"\nprebuilt folder {folder} holds {what} made from other sources or flags "
            f"({artefact['source_key'][:16]}, here {source_key[:16]})"
        )
    path = folder / artefact["file"]
    return (path, "") if path.is_file() else (None, f"\nprebuilt folder {folder} lost {path.name}")


@cache
def _parse(path: Path, _mtime_ns: int, _size: int) -> Manifest:
    manifest: Manifest = json.loads(path.read_text(encoding="utf-8"))
    if manifest["format"] != _FORMAT:
        raise ValueError(f"format {manifest['format']}")
    missing = set(Manifest.__annotations__) - set(manifest)
    if missing:
        raise KeyError(*missing)
    return manifest


def _add(folder: Path, file: str, source: Path, key: str) -> Artefact:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    _replace(folder / file, source.read_bytes())
    return {"file": file, "source_key": key}


def _replace(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
