# SPDX-License-Identifier: MIT
"""What the benchmarks of engines' layers share: rows, the check, contenders that cannot run."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from hipdecode.testing import layer_steps
from hipdecode.testing.layer_steps import Checked, Contender, Setup


def attention(setup: Setup, factor: float) -> Contender:
    """Plain attention of the lengths; wrong unless factor is 1."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(len(setup.lengths), setup.nhead, 576, generator=generator)
    keys = [torch.randn(n, 576, generator=generator).bfloat16() for n in setup.lengths]
    out = torch.empty(*q.shape[:2], 512, dtype=torch.bfloat16)
    q = q.bfloat16()

    def layers() -> None:
        for row, rows in enumerate(keys):
            weights = (q[row].double() @ rows.double().T / 24).softmax(-1)
            out[row] = factor * (weights @ rows[:, :512].double())

    def check() -> Checked:
        return layer_steps.check_first_and_last(out, q, keys.__getitem__, 1 / 24)

    return Contender(lambda: None, lambda: None, layers, check)


def absent() -> Contender:
    raise ImportError("no such engine")


def test_a_failure_of_ours_ends_the_measurement() -> None:
    with pytest.raises(ImportError, match="no such engine"):
        layer_steps.run(
            lambda _: {"hipdecode": absent}, {}, layers=1, nhead=(1,), batch_sizes=(1,),
            trace=None, kv_len=2, kv_dtype="bf16", page_size=1, rounds=1, steps=1, out=None,
        )  # fmt: skip


def test_contenders_are_timed_checked_and_told_apart(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    layer_steps.run(
        lambda setup: {
            "hipdecode": lambda: attention(setup, 1.0),
            "wrong": lambda: attention(setup, 1.5),
            "absent": absent,
        },
        {"engine": "1.2"},
        layers=3, nhead=(2, 4), batch_sizes=(1, 3), trace=None, kv_len=20, kv_dtype="bf16",
        page_size=16, rounds=2, steps=1, out=out,
    )  # fmt: skip
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["nhead"], row["batch"]) for row in rows[::3]] == [
        ("2", "1"), ("2", "3"), ("4", "1"), ("4", "3"),
    ]  # fmt: skip
    for ours, wrong, missing in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert (ours["within_tolerance"], wrong["within_tolerance"]) == ("True", "False")
        assert float(ours["over_peer"]) == pytest.approx(
            float(wrong["ms_per_step"]) / float(ours["ms_per_step"]), rel=0.2
        )
        assert missing["tokens_per_s"] == "ImportError: no such engine"
        assert float(ours["us_per_layer"]) > 0
        assert (ours["engine"], bool(ours["commit"])) == ("1.2", True)
