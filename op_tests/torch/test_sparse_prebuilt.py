# SPDX-License-Identifier: MIT
"""Sparse kernels ahead of time: on every target's list, in a folder that needs no compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hipdecode import registry, settings
from hipdecode import target as targets
from hipdecode.cli import build, warmup
from hipdecode.jit import selection
from hipdecode.models import find_model

TARGETS = sorted(registry.default().targets)


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_builds_its_sparse_kernels_ahead(name: str) -> None:
    where = targets.resolve(name)
    sparse = selection.sparse_kernels(where)
    assert {kernel.split("/")[1].split("-")[0] for kernel in sparse} == {"v32", "v4"}
    for chosen in (selection.all_kernels(where), selection.default_kernels(where)):
        assert set(sparse) <= set(chosen)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(("model", "form"), [("deepseek-v3.2", "v32"), ("deepseek-v4", "v4")])
def test_sparse_models_name_the_kernels_of_their_format(model: str, form: str, name: str) -> None:
    where = targets.resolve(name)
    found = selection.kernels_of_model(where, find_model(model))
    assert found == selection.sparse_kernels(where, form)
    assert found


_DECODE = """
import sys
from hipdecode.testing import sparse_cases
case = sparse_cases.SparseCase("v4", 8, lens=(70, 9), extra_lens=(3, 40), sink="normal")
import torch
from hipdecode import ops, target
where = target.current()
sparse_cases.check_sparse(case, 2, where.name, torch.device(where.device_type))
print("decoded by", *ops.loaded_kernels())
"""


@pytest.mark.usefixtures("sparse_kernels", "device")
def test_sparse_decode_runs_from_a_prebuilt_folder_without_a_compiler(
    target: str, tmp_path: Path
) -> None:
    where = targets.resolve(target)
    if where.driver == "sim":
        pytest.skip(f"{target}: the simulator itself is compiled where it runs; a CPU or a GPU")
    kernels = selection.sparse_kernels(where, "v4")
    folder = tmp_path / "prebuilt"
    words = [*kernels, "--target", target, "--out", str(folder)]
    ran = CliRunner().invoke(build.command, words, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    bare = settings.child_environment(
        PYTHONPATH=":".join(sys.path), PATH=str(tmp_path), HIPDECODE_PREBUILT=str(folder),
        HIPDECODE_NO_BUILD="1", HIPDECODE_CACHE_DIR=str(tmp_path / "nothing"),
        HIPDECODE_TARGET=target,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _DECODE], capture_output=True, text=True, env=bare, check=False
    )
    assert done.stdout.startswith("decoded by sparse_mla_decode/v4-"), done.stderr[-3000:]
    assert not (tmp_path / "nothing").exists()


@pytest.mark.usefixtures("sparse_kernels", "device")
@pytest.mark.parametrize("words", [["deepseek-v4"], ["--op", "sparse_mla_decode"]])
def test_warmup_command_loads_sparse_kernels(words: list[str], target: str) -> None:
    ran = CliRunner().invoke(warmup.command, [*words, "--target", target], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    lines = ran.output.splitlines()
    assert all(line.startswith("sparse_mla_decode/") for line in lines)
    assert all(line.endswith("loads") for line in lines)
