# SPDX-License-Identifier: MIT
import os
from pathlib import Path

import pytest

from hipdecode import paths, settings
from hipdecode.errors import BadArgument, CacheError
from hipdecode.settings import Settings


def test_settings_of_an_empty_environment_are_the_defaults() -> None:
    assert Settings.from_env({}) == Settings()


def test_settings_read_every_variable() -> None:
    env = {
        "HIPDECODE_TARGET": "cpu-avx2",
        "HIPDECODE_CACHE_DIR": "/a",
        "HIPDECODE_NO_BUILD": "1",
        "HIPDECODE_LOG": "2",
        "HIPDECODE_DEBUG": "on",
        "HIPDECODE_TABLES": "/b",
        "HIPDECODE_CXX": "ccache g++",
        "HIPDECODE_PREBUILT": "/c",
        "HIPDECODE_SIM_SEED": "7",
        "HIPDECODE_SIM_CHECKS": "bounds,waits",
        "HIPDECODE_SIM_COMPUTE_UNITS": "8",
        "XDG_CACHE_HOME": "/d",
    }
    assert Settings.from_env(env) == Settings(
        target="cpu-avx2",
        cache_dir=Path("/a"),
        no_build=True,
        log=2,
        debug=True,
        tables=Path("/b"),
        cxx="ccache g++",
        prebuilt=Path("/c"),
        sim_seed=7,
        sim_checks=("waits", "bounds"),
        sim_compute_units=8,
        xdg_cache_home=Path("/d"),
    )


def test_the_simulator_checks_everything_or_nothing_by_one_word() -> None:
    assert Settings.from_env({"HIPDECODE_SIM_CHECKS": "all"}).sim_checks == settings.SIM_CHECKS
    assert Settings.from_env({"HIPDECODE_SIM_CHECKS": "none"}).sim_checks == ()


@pytest.mark.parametrize(
    "env",
    [
        {"HIPDECODE_NO_BUILD": "maybe"},
        {"HIPDECODE_LOG": "4"},
        {"HIPDECODE_LOG": "loud"},
        {"HIPDECODE_SIM_SEED": "-1"},
        {"HIPDECODE_SIM_CHECKS": "bounds,luck"},
        {"HIPDECODE_SIM_COMPUTE_UNITS": "0"},
    ],
)
def test_settings_raise_when_a_value_means_nothing(env: dict[str, str]) -> None:
    with pytest.raises(BadArgument, match=f"{next(iter(env))}: expected .*, got"):
        Settings.from_env(env)


def test_override_ends_with_its_block_and_leaves_the_environment() -> None:
    before, env = settings.current(), dict(os.environ)
    with settings.override(log=3, no_build=True) as inside:
        assert settings.current() is inside
        assert inside.log == 3
    assert settings.current() == before
    assert dict(os.environ) == env


def test_child_environment_is_a_copy() -> None:
    env = dict(os.environ)
    assert settings.child_environment(LC_ALL="C")["LC_ALL"] == "C"
    assert dict(os.environ) == env


def test_log_prints_from_its_level_on(capsys: pytest.CaptureFixture[str]) -> None:
    with settings.override(log=settings.LOG_BUILDS):
        settings.log(settings.LOG_BUILDS, "shown")
        settings.log(settings.LOG_LAUNCHES, "hidden")
    assert capsys.readouterr().err == "hipdecode: shown\n"


def test_cache_dir_prefers_its_own_variable_to_xdg() -> None:
    with settings.override(cache_dir=Path("/own"), xdg_cache_home=Path("/xdg")):
        assert paths.cache_dir() == Path("/own")
    with settings.override(cache_dir=None, xdg_cache_home=Path("/xdg")):
        assert paths.cache_dir() == Path("/xdg/hipdecode")


def test_cache_dir_raises_when_there_is_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with (
        settings.override(cache_dir=None, xdg_cache_home=None),
        pytest.raises(CacheError, match="HIPDECODE_CACHE_DIR"),
    ):
        paths.cache_dir()
