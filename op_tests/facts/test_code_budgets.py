# SPDX-License-Identifier: MIT
"""Budgets of code objects: the shipped file, what breaks them, and the commands that show it."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_code_facts import kernel

from hipdecode import budgets, target
from hipdecode.cli.__main__ import cli
from hipdecode.errors import BudgetError
from hipdecode.facts import ARCHS
from hipdecode.jit import selection

needs_clang = pytest.mark.skipif(
    shutil.which("clang++-22") is None, reason="needs clang-22 and lld-22, which make code objects"
)


def test_shipped_budgets_forbid_spills_and_scratch_on_amd_gpus() -> None:
    shipped = budgets.load(budgets.budgets_path())
    assert set(shipped) == set(ARCHS)
    for arch, patterns in shipped.items():
        assert patterns["*"]["lds_bytes"] == ARCHS[arch].lds_of_workgroup
        if arch.startswith("gfx"):
            assert (patterns["*"]["spills"], patterns["*"]["scratch_bytes"]) == (0, 0)


def test_every_shipped_budget_is_about_a_kernel() -> None:
    for arch, patterns in budgets.load(budgets.budgets_path()).items():
        names = selection.all_kernels(target.resolve(arch))
        for pattern in patterns:
            assert fnmatch.filter(names, pattern), f"{arch}: {pattern}"


def test_every_matching_pattern_holds() -> None:
    held = {"gfx950": {"*": {"spills": 0}, "a/*-16": {"registers": 64}, "b*": {"sgprs": 1}}}
    over = budgets.overruns(
        [
            kernel(name="a/1-16", vgprs=65, spills=2),
            kernel(name="a/1-32", vgprs=65),
            kernel(name="a/1-16", vgprs=64),
            kernel(name="a/1-16", vgprs=65, spills=2, arch="gfx942"),
        ],
        held,
    )
    assert [str(row) for row in over] == [
        "gfx950 a/1-16: spills: expected at most 0 (budget '*'), got 2",
        "gfx950 a/1-16: registers: expected at most 64 (budget 'a/*-16'), got 72",
    ]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"gfx950": {"*": {"speed": 1}}}', '{"gfx950": {"*": {"spills": "no"}}}']
)
def test_a_malformed_budget_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "budgets.json"
    path.write_text(text)
    with pytest.raises(BudgetError, match=r"budgets.json: expected target, pattern and bounds"):
        budgets.load(path)


@needs_clang
def test_build_reports_every_kernel_and_its_budget() -> None:
    words = ["build", "--target", "gfx950", "mla_reduce", "mla_plan", "--report", "--check"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert "mla_plan" in done.output
    assert "waves/SIMD" in done.output
    assert "2 kernels are within budgets.json" in done.output


@needs_clang
def test_check_fails_with_the_row_that_broke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "budgets.json"
    path.write_text(json.dumps({"gfx950": {"mla_reduce": {"code_bytes": 1}}}))
    monkeypatch.setattr(budgets, "budgets_path", lambda: path)
    words = ["build", "--target", "gfx950", "mla_reduce", "mla_plan", "--check"]
    with pytest.raises(BudgetError, match=r"gfx950 mla_reduce: code_bytes: expected at most 1 "):
        CliRunner().invoke(cli, words, catch_exceptions=False)


@needs_clang
def test_doctor_shows_one_kernel_in_depth() -> None:
    words = ["doctor", "--kernel", "mla_reduce", "--target", "gfx950"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0
    for text in ("mla_reduce for gfx950", "AGPRs", "scratch of a lane", "waves of a SIMD"):
        assert text in done.output
