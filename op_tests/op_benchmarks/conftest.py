# SPDX-License-Identifier: MIT
"""The benchmarks are tested on the CPU, whatever target is under test: its numbers are the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hipdecode import settings


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    """What names no target of its own runs on this machine's CPU."""
    with settings.override(target="cpu"):
        yield
