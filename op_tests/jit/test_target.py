# SPDX-License-Identifier: MIT
from types import SimpleNamespace

import pytest
import torch

from hipdecode import settings, target
from hipdecode.errors import TargetError

V3 = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@pytest.mark.parametrize(
    ("flags", "best"),
    [
        (V4 | {"avx512_bf16", "avx512vbmi"}, "cpu-avx512bf16"),
        (V4 | {"avx512_bf16"}, "cpu-avx512"),
        (V4, "cpu-avx512"),
        (V4 - {"avx512vl"}, "cpu-avx2"),
        (V3, "cpu-avx2"),
        (V3 - {"fma"}, "cpu-generic"),
        (frozenset(), "cpu-generic"),
    ],
    ids=["bf16", "no-vbmi", "v4", "no-vl", "v3", "no-fma", "none"],
)
def test_cpu_resolves_to_the_best_that_the_flags_allow(
    flags: frozenset[str], best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "cpu_flags", lambda: flags)
    assert target.resolve("cpu").name == best
    assert target.runnable()[0] == best
    assert target.runnable()[-1] == "cpu-generic"


def test_aarch64_is_generic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target.platform, "machine", lambda: "aarch64")
    target.cpu_flags.cache_clear()
    try:
        assert target.resolve("cpu").name == "cpu-generic"
    finally:
        target.cpu_flags.cache_clear()


@pytest.mark.parametrize(
    ("name", "driver", "family", "artefact", "units", "fp8"),
    [
        ("cpu-avx2", "cpu", "cpu", "cpu-avx2", None, "fp8_e4m3fn"),
        ("gfx950", "hip", "gfx950", "gfx950", 256, "fp8_e4m3fn"),
        ("gfx942", "hip", "gfx942", "gfx942", 304, "fp8_e4m3fnuz"),
        ("sm_90", "cuda", "sm_90", "sm_90", 132, "fp8_e4m3fn"),
        ("sim:gfx950", "sim", "gfx950", "gfx950", 256, "fp8_e4m3fn"),
        ("sim:gfx942", "sim", "gfx942", "gfx942", 304, "fp8_e4m3fnuz"),
    ],
)
def test_targets_are_told_apart(
    name: str,
    driver: str,
    family: str,
    artefact: str,
    units: int | None,
    fp8: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(target, "gpus", lambda: ())
    found = target.resolve(name)
    assert (found.name, found.driver, found.family) == (name, driver, family)
    assert found.artefact == artefact
    assert found.device_type == ("cpu" if driver in ("cpu", "sim") else "cuda")
    assert found.compute_units() == (units or torch.get_num_threads())
    assert found.dtype("fp8") == fp8
    assert found.dtype("bf16") == "bf16"


def test_every_listed_name_resolves() -> None:
    assert all(target.resolve(name) for name in target.names())


def test_resolve_raises_when_the_name_is_unknown() -> None:
    with pytest.raises(TargetError, match=r"expected one of cpu, .*, got 'gfx90a'"):
        target.resolve("gfx90a")


def test_current_raises_when_this_machine_cannot_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "gpus", lambda: ())
    with (
        settings.override(target="gfx950"),
        pytest.raises(TargetError, match=r"HIPDECODE_TARGET: .*got gfx950"),
    ):
        target.current()


@pytest.mark.parametrize(
    ("properties", "arch"),
    [
        (SimpleNamespace(gcnArchName="gfx950:sramecc+:xnack-", major=9, minor=5), "gfx950"),
        (SimpleNamespace(gcnArchName="gfx942", major=9, minor=4), "gfx942"),
        (SimpleNamespace(gcnArchName="NVIDIA H100", major=9, minor=0), "sm_90"),
        (SimpleNamespace(major=8, minor=9), "sm_89"),
    ],
    ids=["gfx950", "gfx942", "h100", "other"],
)
def test_gpus_are_told_apart_by_what_torch_says(
    properties: SimpleNamespace, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties.multi_processor_count = 8
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    target.gpus.cache_clear()
    try:
        assert target.gpus() == (target.Gpu(arch, 8),)
    finally:
        monkeypatch.undo()
        target.gpus.cache_clear()


def test_a_gpu_target_runs_where_such_a_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "gpus", lambda: (target.Gpu("gfx942", 80),))
    assert target.resolve("gfx942").runs_here()
    assert not target.resolve("gfx950").runs_here()
    assert target.of_gpu(0).name == "gfx942"
    assert target.resolve("gfx942").compute_units() == 80
    assert "gfx942" in target.all_runnable()
    assert "gfx942" not in target.runnable()
    with settings.override(target=None):
        assert target.current().driver == "cpu"


def test_a_gpu_without_kernels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "gpus", lambda: (target.Gpu("sm_89", 80),))
    with pytest.raises(TargetError, match=r"cuda:0: expected a GPU of gfx950, .*, got sm_89"):
        target.of_gpu(0)
    with pytest.raises(TargetError, match=r"cuda:1: .*, got no such device"):
        target.of_gpu(1)


def test_the_simulator_is_chosen_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert target.resolve("sim:gfx950").runs_here()
    with settings.override(target=None):
        assert target.resolve().driver == "cpu"
    with settings.override(target="sim:gfx950"):
        assert target.current().name == "sim:gfx950"


def test_the_simulator_wants_its_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target.shutil, "which", lambda name: None)
    assert not target.resolve("sim:gfx950").runs_here()


def test_compute_units_of_the_simulator_can_be_set() -> None:
    with settings.override(sim_compute_units=7):
        assert target.resolve("sim:gfx950").compute_units() == 7
        assert target.resolve("gfx950").compute_units() != 7
