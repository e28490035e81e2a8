# SPDX-License-Identifier: MIT
"""What a cache entry is named after: a hash of everything that can change the result."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from hipdecode.errors import BuildError

_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*(.*?)[ \t]*(?://.*|/\*.*)?$", re.MULTILINE)
_LITERAL = re.compile(r"""^(?:"([^"]+)"|<([^>]+)>)$""")
_ABI_VERSION = re.compile(r"\bkAbiVersion\s*=\s*(\d+)\s*;")


@dataclass(frozen=True, slots=True)
class _File:
    stamp: tuple[int, int]
    digest: str
    includes: tuple[str, ...]


@dataclass(slots=True)
class SourceTree:
    """Digests of the C++ sources under one folder, each file read once per change.

    Attributes:
        root: the folder that the compiler gets as `-I`.
    """

    root: Path
    _files: dict[Path, _File] = field(default_factory=dict)

    def closure(
        self, text: str, folder: Path | None = None, *, without: tuple[str, ...] = ()
    ) -> dict[str, str]:
        """Content digests of every file of the tree that `text` includes, directly or not.

        Files outside the tree belong to the compiler or to torch, whose versions are part of the
        key. Conditional includes count whether or not they are taken.

        Args:
            text: a translation unit.
            folder: where `text` lies, for its quoted includes.
            without: folders relative to the root that are known not to be read.

        Returns:
            Path relative to the root to sha256, sorted by path.

        Raises:
            BuildError: an include is computed by a macro, so it could not be followed.
        """
        found: dict[Path, str] = {}
        root = self.root.resolve()
        skipped = [root / name for name in without]
        pending = self._resolve(_includes(text, "the translation unit"), folder)
        while pending:
            path = pending.pop()
            if path in found or any(path.is_relative_to(other) for other in skipped):
                continue
            file = self._read(path)
            found[path] = file.digest
            pending += self._resolve(file.includes, path.parent)
        return {path.relative_to(root).as_posix(): found[path] for path in sorted(found)}

    def abi_version(self) -> int:
        """`kAbiVersion` of abi/abi_version.h.

        Raises:
            BuildError: the file does not state it.
        """
        path = self.root / "abi" / "abi_version.h"
        try:
            match = _ABI_VERSION.search(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise BuildError(f"{path}: expected a readable file, got {error}; reinstall") from error
        if match is None:
            raise BuildError(f"{path}: expected `kAbiVersion = <number>;`, got none; restore it")
        return int(match[1])

    def _resolve(self, includes: tuple[str, ...], folder: Path | None) -> list[Path]:
        root, paths = self.root.resolve(), []
        for include in includes:
            quoted = include.startswith('"')
            folders = [folder, root] if quoted and folder else [root]
            for base in folders:
                path = (base / include[1:-1]).resolve()
                if path.is_relative_to(root) and path.is_file():
                    paths.append(path)
                    break
        return paths

    def _read(self, path: Path) -> _File:
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        known = self._files.get(path)
        if known is None or known.stamp != stamp:
            data = path.read_bytes()
            includes = _includes(data.decode("utf-8", "replace"), str(path))
            known = _File(stamp, hashlib.sha256(data).hexdigest(), includes)
            self._files[path] = known
        return known


@cache
def source_tree(root: Path) -> SourceTree:
    """The one SourceTree of `root` in this process."""
    return SourceTree(root)


def digest(**ingredients: object) -> str:
    """The sha256 of named, JSON-able ingredients; neither names nor values can run together."""
    text = json.dumps(ingredients, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _includes(text: str, where: str) -> tuple[str, ...]:
    found = tuple(match[1] for match in _INCLUDE.finditer(text))
    for include in found:
        if not _LITERAL.match(include):
            raise BuildError(
                f'{where}: expected #include "path" or <path>, got {include!r}; '
                "write the path out, the cache key must follow it"
            )
    return found
