# SPDX-License-Identifier: MIT
"""The demo's trained model keeps its bits per byte where two ranks share the keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="needs the demo extra: pip install 'hipdecode[demo]'")

from processes import run_ranks

from hipdecode.demo.model import load_model
from hipdecode.demo.score import bits_eager, held_out_rows


def differences(folder: Path, rows: int, length: int) -> dict[str, float]:
    """How far two ranks are from eager attention in fp32, as a share."""
    worker = Path(__file__).parent / "score_worker.py"
    first, second = run_ranks(worker, 2, folder, str(rows), str(length))
    assert first == second
    eager = bits_eager(load_model(), held_out_rows(rows, length))
    return {name: abs(bits / eager - 1) for name, bits in first.items()}


@pytest.fixture
def folder(target: str, device: torch.device, tmp_path: Path) -> Path:
    if device.type != "cpu" or target.startswith("sim:"):
        pytest.skip("gloo: runs where the tensors are on a CPU")
    return tmp_path


def test_two_ranks_keep_the_bits_per_byte_of_a_trained_model(folder: Path) -> None:
    found = differences(folder, 8, 64)
    assert found["bf16"] < 0.002
    assert found["fp8"] < 0.01


@pytest.mark.slow
def test_two_ranks_keep_the_bits_per_byte_of_the_demo_within_its_bounds(folder: Path) -> None:
    found = differences(folder, 32, 256)
    print(found)
    assert found["bf16"] < 0.001
    assert found["fp8"] < 0.005
