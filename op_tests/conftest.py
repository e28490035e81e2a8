# SPDX-License-Identifier: MIT
"""Options and fixtures of the whole suite: the target under test and a checked call on it."""

from __future__ import annotations

import os

import pytest
import torch

from hipdecode import ops
from hipdecode import target as targets
from hipdecode.testing.calls import Checker


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--target",
        default=os.environ.get("HIPDECODE_TARGET", "cpu"),
        help="target to test: cpu (the best this machine runs), cpu-avx2, sim:gfx950, sm_90, ...",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Child processes of tests use the same kernels as the tests.
    os.environ["HIPDECODE_TARGET"] = config.getoption("--target")


def pytest_report_header(config: pytest.Config) -> str:
    return f"hipdecode: --target {config.getoption('--target')}, torch {torch.__version__}"


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> str:
    """The resolved name of the target under test; skips where this machine cannot run it."""
    wanted = targets.resolve(request.config.getoption("--target"))
    if not wanted.runs_here():
        pytest.skip(f"{wanted.name}: needs a machine that runs it ({wanted.driver} driver)")
    return wanted.name


@pytest.fixture(scope="session")
def device(target: str) -> torch.device:
    """Where the tensors of the target live; torch.ops.hipdecode is loaded."""
    ops.load_binding()
    return torch.device(targets.resolve(target).device_type)


@pytest.fixture(scope="session")
def check(target: str, device: torch.device) -> Checker:
    """Runs one case and compares it with the oracle."""
    return Checker(target, device)
