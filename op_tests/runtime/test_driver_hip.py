# SPDX-License-Identifier: MIT
"""The HIP driver against a stand-in for libamdhip64.so that prints every call."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUNTIME = HERE.parents[1] / "csrc" / "runtime"
HIP = 1
PARAMS_BYTES = 24  # of tiny_kernel.cpp
Compile = Callable[..., Path]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The probe, and in `lib` beside it the stand-in."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "lib").mkdir()
    compiler = shutil.which("g++") or "c++"
    stand_in = HERE / "hip_stand_in.cpp"
    library = str(folder / "lib" / "libamdhip64.so")
    _run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", str(stand_in), "-o", library])
    sources = [str(HERE / "launch_probe.cpp"), *map(str, sorted(RUNTIME.glob("*.cpp")))]
    path = folder / "launch_probe"
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-pthread"]
    _run([compiler, *flags, *sources, "-ldl", "-o", str(path)])
    return path


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles tiny_kernel.cpp for gfx950, with macros."""
    compiler = shutil.which("clang++-22")
    if compiler is None:
        pytest.skip("needs clang-22 and lld-22, which make code objects")
    folder = tmp_path_factory.mktemp("artefact")

    def build(**macros: int) -> Path:
        path = folder / f"tiny{'-'.join(f'{name}{value}' for name, value in macros.items())}.hsaco"
        if not path.exists():
            flags = ["-x", "hip", "--offload-device-only", "--no-gpu-bundle-output", "-nogpuinc",
                     "--offload-arch=gfx950", "-nogpulib", "-O3", "-std=c++20"]  # fmt: skip
            defines = [f"-D{name}={value}" for name, value in macros.items()]
            source = str(HERE / "tiny_kernel.cpp")
            _run([compiler, *flags, *defines, source, "-o", str(path)])
        return path

    return build


@dataclass
class Trace:
    """What a run of the probe printed."""

    lines: list[str]
    status: int

    def of(self, call: str) -> list[dict[str, str]]:
        """The arguments of each call of that name."""
        lines = (line.split() for line in self.lines)
        return [dict(word.split("=") for word in rest) for name, *rest in lines if name == call]

    @property
    def error(self) -> str:
        """The last line, which is the error."""
        assert self.status == 1, self.lines
        return self.lines[-1]


def launch(
    probe: Path,
    path: Path,
    *,
    symbol: str = "tiny",
    device: int = 0,
    stream: int = 0,
    blocks: int = 1,
    params_bytes: int = PARAMS_BYTES,
    times: int = 1,
    library: bool = True,
    **environment: str,
) -> Trace:
    words = (HIP, path, symbol, device, stream, blocks, params_bytes, times)
    env = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    if library:
        env["LD_LIBRARY_PATH"] = str(probe.parent / "lib")
    done = subprocess.run(
        [str(probe), *map(str, words)], capture_output=True, text=True, env=env | environment,
        check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return Trace(done.stdout.splitlines(), done.returncode)


def test_launch_passes_grid_block_stream_and_kernarg(probe: Path, artefact: Compile) -> None:
    trace = launch(probe, artefact(), blocks=7, stream=4711)
    (call,) = trace.of("hipModuleLaunchKernel")
    assert call["grid"] == "7,1,1"
    assert call["block"] == "64,1,1"
    assert call["stream"] == "4711"
    assert (call["layout"], call["known"]) == ("1", "1")
    assert call["kernarg"] == bytes(range(PARAMS_BYTES)).hex()


def test_group_memory_that_the_code_fixes_is_not_asked_for_again(
    probe: Path, artefact: Compile
) -> None:
    (call,) = launch(probe, artefact()).of("hipModuleLaunchKernel")
    assert call["shared"] == "0"


def test_group_memory_beyond_the_fixed_is_dynamic(probe: Path, artefact: Compile) -> None:
    trace = launch(probe, artefact(TINY_SHARED_BYTES=4096))
    assert trace.of("hipModuleLaunchKernel")[0]["shared"] == str(4096 - 512)


def test_a_kernel_is_loaded_once(probe: Path, artefact: Compile) -> None:
    trace = launch(probe, artefact(), times=3)
    assert len(trace.of("hipModuleLaunchKernel")) == 3
    assert len(trace.of("hipModuleLoadData")) == 1
    assert trace.of("hipModuleLoadData")[0]["magic"] == "ELF"
    assert trace.of("hipModuleGetFunction") == [{"name": "tiny", "known": "1"}]
    assert trace.of("loader") == [{"kind": "1", "index": "0", "name": "probe/1"}]


def test_load_and_launch_happen_on_the_device_and_leave_the_callers_current(
    probe: Path, artefact: Compile
) -> None:
    trace = launch(probe, artefact(), device=3)
    assert trace.of("hipModuleLoadData")[0]["device"] == "3"
    assert trace.of("hipModuleLaunchKernel")[0]["device"] == "3"
    assert [call["device"] for call in trace.of("hipSetDevice")] == ["3", "0", "3", "0"]
    assert trace.lines[-1] == "compute_units=259"


def test_the_current_device_is_not_set_again(probe: Path, artefact: Compile) -> None:
    assert launch(probe, artefact(), device=0).of("hipSetDevice") == []


def test_a_kernel_is_not_loaded_during_a_capture(probe: Path, artefact: Compile) -> None:
    trace = launch(probe, artefact(), stream=9, HIP_STAND_IN_CAPTURES="1")
    assert trace.error.startswith("NotWarmed: kernel probe/1: expected it to be loaded before")
    assert "hipdecode.warmup()" in trace.error
    assert trace.of("hipStreamIsCapturing") == [{"stream": "9"}]
    assert not trace.of("loader")


@pytest.mark.parametrize("call", ["hipModuleLoadData", "hipModuleGetFunction"])
def test_a_failed_load_says_which_call_and_what_hip_said(
    call: str, probe: Path, artefact: Compile
) -> None:
    path = artefact()
    trace = launch(probe, path, HIP_STAND_IN_FAILS=call)
    assert f"artefact {path}: expected {call} to succeed, got no kernel image" in trace.error
    assert "(209)" in trace.error


def test_a_failed_launch_says_so(probe: Path, artefact: Compile) -> None:
    trace = launch(probe, artefact(), HIP_STAND_IN_FAILS="hipModuleLaunchKernel")
    assert "tiny: expected hipModuleLaunchKernel to succeed, got no kernel image" in trace.error


def test_parameters_of_another_size_are_refused(probe: Path, artefact: Compile) -> None:
    trace = launch(probe, artefact(), params_bytes=32)
    assert "tiny: expected 24 bytes of parameters, got 32" in trace.error
    assert not trace.of("hipModuleLaunchKernel")


@pytest.mark.parametrize("blocks", [0, 2**32 // 64])
def test_a_grid_that_hip_cannot_count_is_refused(
    blocks: int, probe: Path, artefact: Compile
) -> None:
    trace = launch(probe, artefact(), blocks=blocks)
    assert f"tiny: expected 1 to {(2**32 - 1) // 64} blocks of 64 threads" in trace.error


def test_more_group_memory_than_the_device_has_is_refused(probe: Path, artefact: Compile) -> None:
    trace = launch(probe, artefact(TINY_SHARED_BYTES=163841))
    assert "expected at most 163840 bytes of LDS, got 163841" in trace.error
    assert not trace.of("hipModuleLoadData")


def test_another_abi_version_is_refused(probe: Path, artefact: Compile) -> None:
    trace = launch(probe, artefact(TINY_ABI_VERSION=1))
    assert "expected ABI version" in trace.error
    assert "got 1; build it with this version of hipdecode" in trace.error


def test_a_missing_kernel_is_named(probe: Path, artefact: Compile) -> None:
    trace = launch(probe, artefact(), symbol="huge")
    assert "expected the kernel huge, got no descriptor of that name" in trace.error


@pytest.mark.parametrize("keep", [0, 40, 200, 1000])
def test_a_cut_off_file_is_an_error_not_a_crash(
    keep: int, probe: Path, artefact: Compile, tmp_path: Path
) -> None:
    path = tmp_path / "cut.hsaco"
    path.write_bytes(artefact().read_bytes()[:keep])
    assert f"artefact {path}: expected" in launch(probe, path).error


def test_a_file_of_another_kind_is_refused(probe: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.hsaco"
    path.write_text("not a code object at all, but long enough to hold an ELF header " * 2)
    assert f"artefact {path}: expected a 64-bit ELF file" in launch(probe, path).error


def test_a_missing_file_is_named(probe: Path, tmp_path: Path) -> None:
    trace = launch(probe, tmp_path / "none.hsaco")
    assert "none.hsaco: expected a readable file, got No such file" in trace.error


@pytest.mark.skipif(find_library("amdhip64") is not None, reason="needs a machine without ROCm")
def test_without_the_library_the_error_says_what_to_install(probe: Path, artefact: Compile) -> None:
    trace = launch(probe, artefact(), library=False)
    assert trace.error.startswith("Error: HIP: expected libamdhip64.so, got ")
    assert "install ROCm" in trace.error
