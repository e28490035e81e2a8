# SPDX-License-Identifier: MIT
"""Starts the ranks of a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from hipdecode import settings


def run_ranks(worker: Path, ranks: int, folder: Path, *more: str) -> list[Any]:
    """Runs `worker RANK RANKS FOLDER ...` for every rank at once; what each left in RANK.pt."""
    environment = settings.child_environment(PYTHONPATH=":".join(sys.path))
    running = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(ranks), str(folder), *more],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    said = [process.communicate(timeout=240)[0] for process in running]
    for process, text in zip(running, said, strict=True):
        assert process.returncode == 0, text[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]
