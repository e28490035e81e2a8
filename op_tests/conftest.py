# SPDX-License-Identifier: MIT
"""Options and fixtures of the whole suite: the target under test and a checked call on it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable

import pytest
import torch

from hipdecode import ops, registry
from hipdecode import target as targets
from hipdecode.testing.calls import Checker
from hipdecode.testing.cases import DTYPES, Case, dtype_pairs


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what the target under test has no kernels for, such as e4m3fnuz on gfx950."""
    name = config.getoption("--target")
    here = {"fp32", *itertools.chain(*dtype_pairs(name))}
    for item in items:
        if not isinstance(item, pytest.Function) or "target" not in item.fixturenames:
            continue
        parameters = getattr(item, "callspec", None)
        lacking = _dtypes_in(parameters.params.values() if parameters else ()) - here
        if lacking:
            reason = f"{', '.join(sorted(lacking))}: {name} has no kernels for it, a CPU has"
            item.add_marker(pytest.mark.skip(reason=reason))


def _dtypes_in(parameters: Iterable[object]) -> set[object]:
    found: set[object] = set()
    for value in parameters:
        if isinstance(value, Case):
            found |= {value.q_dtype, value.kv_dtype}
        elif isinstance(value, tuple):
            found |= _dtypes_in(value)
        elif isinstance(value, str) and value in DTYPES:
            found.add(value)
    return found


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
def gpu(device: torch.device) -> torch.device:
    """As `device`, for tests of graphs, streams and asynchrony, which a CPU has not."""
    if device.type != "cuda":
        pytest.skip("graphs and streams: a machine with a GPU runs it, --target sm_90")
    return device


@pytest.fixture(scope="session")
def check(target: str, device: torch.device) -> Checker:
    """Runs one case and compares it with the oracle."""
    return Checker(target, device)


@pytest.fixture
def sparse_kernels(target: str) -> None:
    """Skips on targets that sparse decode has no kernels for."""
    module = registry.default().module("sparse_mla_decode")
    if targets.resolve(target).artefact not in module.targets:
        pytest.skip(f"{target} has no sparse kernels: runs on any CPU machine")


@pytest.fixture
def paged_kernels(target: str) -> None:
    """Skips on targets that paged attention has no kernels for."""
    module = registry.default().module("paged_attention")
    if targets.resolve(target).artefact not in module.targets:
        pytest.skip(f"{target} has no paged kernels: runs on any CPU machine")
