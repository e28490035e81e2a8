# SPDX-License-Identifier: MIT
"""Fixtures of the kernel tests."""

from __future__ import annotations

import pytest

from hipdecode import registry
from hipdecode import target as targets


@pytest.fixture
def sparse_kernels(target: str) -> None:
    """Skips on targets that sparse decode has no kernels for."""
    module = registry.default().module("sparse_mla_decode")
    if targets.resolve(target).artefact not in module.targets:
        pytest.skip(f"{target} has no sparse kernels: runs on any CPU machine")
