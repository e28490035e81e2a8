# SPDX-License-Identifier: MIT
"""The simulator as a driver: operators on CPU tensors run code objects, within their own memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hipdecode import paths, target

ROOT = Path(__file__).parents[2]

# Merges two partials of two rows into the first two rows of a tensor of three, on a source tree.
SCRIPT = """
import sys
from pathlib import Path
from hipdecode import paths
paths.source_root = lambda: Path(sys.argv[1])
import torch, hipdecode
from hipdecode import ops, sim
torch.manual_seed(0)
partial, lse = torch.randn(4, 1, 3, 64), torch.randn(4, 3)
index = [torch.tensor(x, dtype=torch.int32) for x in ([0, 2, 4], [[0, 1], [1, 2]], [0, 1, 2, 3])]
whole = torch.full((3, 3, 64), 7.0, dtype=torch.bfloat16)
hipdecode.mla_reduce(partial, lse, *index, 1, 2, whole[:2])
weights = torch.softmax(lse.view(2, 2, 3), 1)[..., None]
want = (weights * partial.view(2, 2, 3, 64)).sum(1)
torch.testing.assert_close(whole[:2].float(), want, atol=0.02, rtol=0.02)
assert (whole[2] == 7).all()
print(*(entry["kernel"] for entry in sim.journal()), ops.compute_units("cpu"))
"""

pytestmark = pytest.mark.skipif(
    not target.resolve("sim:gfx950").runs_here(),
    reason="needs clang-22, lld-22 and llvm-22-dev, which make and run code objects",
)


def run(name: str, tree: Path) -> subprocess.CompletedProcess[str]:
    settings = {"HIPDECODE_TARGET": name, "HIPDECODE_SIM_COMPUTE_UNITS": "2"}
    settings["PYTHONPATH"] = str(ROOT / "python")
    command = (sys.executable, "-c", SCRIPT, str(tree))
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **settings}, check=False
    )


@pytest.mark.parametrize("name", ["sim:gfx950", "sim:gfx942"])
def test_cpu_tensors_run_code_objects_where_a_simulator_is_named(name: str) -> None:
    done = run(name, paths.source_root())
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["mla_reduce", "2"]


def test_an_access_outside_of_a_calls_tensors_is_a_fault(tmp_path: Path) -> None:
    for folder in ("csrc", "configs"):
        shutil.copytree(paths.source_root() / folder, tmp_path / folder)
    kernel = tmp_path / "csrc" / "kernels" / "mla_reduce.h"
    text = kernel.read_text()
    planted = text.replace(
        "row = tile.first_row + unit.row;", "row = tile.first_row + unit.row + 1;"
    )
    assert planted != text
    kernel.write_text(planted)
    done = run("sim:gfx950", tmp_path)
    assert done.returncode == 1
    # the row lies in the same allocation as the output, but is no part of it
    assert "bounds: " in done.stderr, done.stderr[-3000:]
    assert "kernel mla_reduce" in done.stderr
