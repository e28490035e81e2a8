# SPDX-License-Identifier: MIT
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
    ],
)
def test_targets_are_told_apart(
    name: str, driver: str, family: str, artefact: str, units: int | None, fp8: str
) -> None:
    found = target.resolve(name)
    assert (found.name, found.driver, found.family) == (name, driver, family)
    assert found.artefact == artefact
    assert found.compute_units() == (units or torch.get_num_threads())
    assert found.dtype("fp8") == fp8
    assert found.dtype("bf16") == "bf16"


def test_every_listed_name_resolves() -> None:
    assert all(target.resolve(name) for name in target.names())


def test_resolve_raises_when_the_name_is_unknown() -> None:
    with pytest.raises(TargetError, match=r"expected one of cpu, .*, got 'gfx90a'"):
        target.resolve("gfx90a")


def test_current_raises_when_this_machine_cannot_run_it() -> None:
    with (
        settings.override(target="gfx950"),
        pytest.raises(TargetError, match=r"HIPDECODE_TARGET: .*got gfx950"),
    ):
        target.current()
