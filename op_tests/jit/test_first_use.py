# SPDX-License-Identifier: MIT
"""The first decode on a machine by many processes at once, as the ranks of a server make it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import tiny_tree

from hipdecode import registry, settings
from hipdecode import target as targets
from hipdecode.jit import binding, cache

RANKS = 8
DECODE = """
import hashlib, torch, hipdecode
from hipdecode.testing import cases
case = cases.Case(q_lens=(1, 2), kv_lens=(70, 9), page_size=16)
torch.set_num_threads(1)
inputs = cases.make_inputs(case)
parts = [hipdecode.mla_decode(**inputs, route=route) for route in ("hk", "persistent")]
data = b"".join(part.view(torch.uint8).numpy().tobytes() for part in parts)
print(hashlib.sha256(data).hexdigest(), flush=True)
"""


@pytest.fixture
def counting(target: str, tmp_path: Path) -> tuple[dict[str, str], Path]:
    """An environment with an empty cache, whose compiler writes down what it makes."""
    where = targets.resolve(target)
    if where.driver != "cpu":
        pytest.skip("counts compilers of a CPU target; any x86-64 machine runs it")
    count = tmp_path / "made"
    # the last word of a compile command is its output
    note = f'for last; do :; done\ncase "$*" in *" -o "*) echo "$last" >> {count};; esac'
    body = note + '\nexec g++ "$@"'
    script = tiny_tree.compiler_script(tmp_path / "counting-cxx", body)
    environment = settings.child_environment(
        PYTHONPATH=":".join(sys.path), HIPDECODE_CXX=str(script), HIPDECODE_TARGET=target,
        HIPDECODE_CACHE_DIR=str(tmp_path / "cache"), OMP_NUM_THREADS="1",
    )  # fmt: skip
    for name in ("HIPDECODE_PREBUILT", "HIPDECODE_NO_BUILD"):
        environment.pop(name, None)
    return environment, count


def start(environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DECODE], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(processes: list[subprocess.Popen[str]]) -> set[str]:
    """The outputs of processes that all end well."""
    outputs = [process.communicate(timeout=280) for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [0] * len(processes), outputs
    return {out for out, _ in outputs}


def check_folder(cache_dir: Path, target: str) -> None:
    """One complete entry for the binding and for each kernel, and nothing else."""
    entries = [path for path in cache_dir.glob("*/*") if path.is_dir()]
    assert all(cache.is_complete(path) for path in entries), entries
    names = Counter(path.name.rpartition("-")[0] for path in entries)
    assert set(names.values()) == {1}
    assert {"binding", "mla_plan", "mla_reduce"} < set(names)
    assert cache.usage(cache_dir).leftovers == 0


@pytest.mark.slow
def test_eight_processes_compile_each_part_once(
    counting: tuple[dict[str, str], Path], target: str, tmp_path: Path
) -> None:
    environment, count = counting
    outputs = finish([start(environment) for _ in range(RANKS)])
    assert len(outputs) == 1
    check_folder(tmp_path / "cache", target)
    kernels = len(list((tmp_path / "cache" / target).glob("*/")))
    sources = len(binding.recipe().library.sources)
    made = Counter(count.read_text().split())
    assert sum(made.values()) == kernels + sources + 1  # and the binding's own link
    again = finish([start(environment | {"HIPDECODE_NO_BUILD": "1"})])
    assert again == outputs
    assert Counter(count.read_text().split()) == made


@pytest.mark.slow
def test_killed_first_process_neither_blocks_nor_spoils_the_others(
    counting: tuple[dict[str, str], Path], target: str, tmp_path: Path
) -> None:
    environment, count = counting
    first = start(environment)
    try:
        deadline = time.monotonic() + 120
        while not count.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        others = [start(environment) for _ in range(RANKS - 1)]
        time.sleep(0.5)
        os.kill(first.pid, signal.SIGKILL)  # its compilers live on for a while, as orphans
        assert len(finish(others)) == 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    check_folder(tmp_path / "cache", target)


@pytest.mark.slow
def test_prebuilt_only_process_raises_and_names_kernel_and_command(
    counting: tuple[dict[str, str], Path], target: str, tmp_path: Path
) -> None:
    environment, count = counting
    folder = tmp_path / "prebuilt"
    build = [sys.executable, "-m", "hipdecode.cli", "build", "mla_plan", "--out", str(folder)]
    subprocess.run(build, env=environment, check=True, capture_output=True)
    before = count.read_text()
    only = environment | {
        "HIPDECODE_PREBUILT": str(folder), "HIPDECODE_NO_BUILD": "1",
        "HIPDECODE_CACHE_DIR": str(tmp_path / "nothing"),
    }  # fmt: skip
    process = start(only)
    _, err = process.communicate(timeout=120)
    held = registry.default()
    rows = held.fit("mla_decode_hk/576-512-bf16-bf16-16", target).name
    assert process.returncode == 1
    assert f"BuildError: HIPDECODE_NO_BUILD: expected {rows} for {target} to be built" in err
    assert f"`hipdecode build {rows} --target {target}`" in err
    assert f"prebuilt folder {folder} does not hold {rows}" in err
    assert count.read_text() == before
    assert not list((tmp_path / "nothing").glob("*/"))  # what compilers there are it may note
