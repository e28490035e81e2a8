# SPDX-License-Identifier: MIT
"""A tiny source tree and an empty cache folder of each test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_tree

from hipdecode import paths, registry, settings


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The tiny tree, which the package takes for its own sources for the length of a test."""
    root = tiny_tree.write(tmp_path / "tree")
    monkeypatch.setattr(paths, "source_root", lambda: root)
    registry.default.cache_clear()
    cache = tmp_path / "cache"
    with settings.override(
        cache_dir=cache, cxx=None, no_build=False, prebuilt=None, debug=False, log=0
    ):
        yield root
    registry.default.cache_clear()


@pytest.fixture
def cache_dir(tree: Path) -> Path:
    """The cache folder of `tree`; not there yet."""
    return tree.parent / "cache"
