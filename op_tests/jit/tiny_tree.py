# SPDX-License-Identifier: MIT
"""A source tree with one kernel that compiles in a blink; also a program that builds it.

`python tiny_tree.py ROOT CACHE [CXX]` builds `tiny/1` in a process of its own and prints its path.
"""

import ctypes
import json
import shutil
import sys
from pathlib import Path

from hipdecode import jit, paths, registry, settings

SCHEMA = Path(__file__).parents[2] / "configs" / "modules.schema.json"
TARGET = "cpu-generic"
HEADER = """
#include <abi/abi_version.h>
#include "../parts/part.h"
#define TILE_KERNEL(symbol, ...) extern "C" int symbol() { return kPart + (__VA_ARGS__); }
"""
MODULE = {
    "summary": "Adds a part to a value.",
    "header": "kernels/tiny.h",
    "symbol": "tiny",
    "instantiate": "{n}",
    "values": ["n"],
    "allowed": [{"n": [1, 2]}],
    "targets": {TARGET: {}, "cpu-avx2": {}},
}


def write(root: Path) -> Path:
    """Makes the tree under `root`."""
    for folder in ("csrc/abi", "csrc/kernels", "csrc/parts", "configs"):
        (root / folder).mkdir(parents=True)
    write_abi_version(root, 1)
    (root / "csrc/kernels/tiny.h").write_text(HEADER)
    (root / "csrc/parts/part.h").write_text("constexpr int kPart = 40;\n")
    shutil.copy(SCHEMA, root / "configs")
    write_registry(root)
    return root


def write_abi_version(root: Path, version: int) -> None:
    """Writes csrc/abi/abi_version.h."""
    text = f"#pragma once\ninline constexpr int kAbiVersion = {version};\n"
    (root / "csrc/abi/abi_version.h").write_text(text)


def write_registry(
    root: Path, flags: tuple[str, ...] = (), tile: str | None = None, **fields: object
) -> Path:
    """Writes the registry with changed fields of its one module."""
    target = {"toolchain": "cxx", "flags": ["-shared", "-fPIC", *flags]}
    target |= {"tile": tile} if tile else {}
    document = {
        "targets": {TARGET: target, "cpu-avx2": target},
        "modules": {"tiny": MODULE | fields},
    }
    path = root / "configs/modules.json"
    path.write_text(json.dumps(document))
    registry.default.cache_clear()
    return path


def call(path: Path) -> int:
    """Loads the library and calls its entry."""
    return int(ctypes.CDLL(str(path)).tiny())


def compiler_script(path: Path, body: str) -> Path:
    """An executable that says who it is and runs `body` (shell) for anything else."""
    path.write_text(
        "#!/bin/sh\n"
        'case "$1" in --version) echo "fake 1.0"; exit 0;; -dumpmachine) echo fake; exit 0;; esac\n'
        f"{body}\n"
    )
    path.chmod(0o755)
    return path


if __name__ == "__main__":
    tree = Path(sys.argv[1])
    paths.source_root = lambda: tree  # type: ignore[assignment]
    cxx = sys.argv[3] if len(sys.argv) > 3 else None
    with settings.override(
        cache_dir=Path(sys.argv[2]), cxx=cxx, no_build=False, prebuilt=None, log=settings.LOG_BUILDS
    ):
        print(jit.ensure_kernel(TARGET, "tiny/1").path)
