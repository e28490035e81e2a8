# SPDX-License-Identifier: MIT
"""The only reader of environment variables. Nothing here, or elsewhere, ever writes one.

No variable chooses a route: that is a pure function of shapes and tables (see dispatch).
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import BadArgument

LOG_QUIET, LOG_ROUTES, LOG_BUILDS, LOG_LAUNCHES = range(4)
SIM_CHECKS = ("waits", "races", "uninitialised", "bounds", "hazards")
"""What the simulator can check, in the order of its bits."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says, read once per process.

    Attributes:
        target: HIPDECODE_TARGET, such as `cpu`, `cpu-avx2` or `sim:gfx950`; None picks the best of
            this machine's CPU.
        cache_dir: HIPDECODE_CACHE_DIR; None means `$XDG_CACHE_HOME/hipdecode` or
            `~/.cache/hipdecode` (see paths.cache_dir).
        no_build: HIPDECODE_NO_BUILD; anything that would have to be compiled raises BuildError.
        log: HIPDECODE_LOG; 0 quiet, 1 routes once per shape, 2 builds, 3 every launch.
        debug: HIPDECODE_DEBUG; device code with assertions and debug information.
        tables: HIPDECODE_TABLES; a folder used in place of configs/tuned.
        cxx: HIPDECODE_CXX; the C++ compiler, possibly with leading words (`ccache g++`).
        prebuilt: HIPDECODE_PREBUILT; a folder written by `hipdecode build --out`.
        sim_seed: HIPDECODE_SIM_SEED; orders the waves of the simulator.
        sim_checks: HIPDECODE_SIM_CHECKS; `all` (the default), `none`, or some of SIM_CHECKS with
            commas between.
        sim_compute_units: HIPDECODE_SIM_COMPUTE_UNITS; compute units that the simulator reports,
            None for those of the real device. Fewer make fewer, longer workgroups.
        xdg_cache_home: XDG_CACHE_HOME.
    """

    target: str | None = None
    cache_dir: Path | None = None
    no_build: bool = False
    log: int = LOG_QUIET
    debug: bool = False
    tables: Path | None = None
    cxx: str | None = None
    prebuilt: Path | None = None
    sim_seed: int = 0
    sim_checks: tuple[str, ...] = SIM_CHECKS
    sim_compute_units: int | None = None
    xdg_cache_home: Path | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Reads `env` (this process's environment by default).

        Raises:
            BadArgument: a flag or level has a value that means nothing.
        """
        env = os.environ if env is None else env
        return cls(
            target=env.get("HIPDECODE_TARGET") or None,
            cache_dir=_path(env, "HIPDECODE_CACHE_DIR"),
            no_build=_flag(env, "HIPDECODE_NO_BUILD"),
            log=_level(env, "HIPDECODE_LOG"),
            debug=_flag(env, "HIPDECODE_DEBUG"),
            tables=_path(env, "HIPDECODE_TABLES"),
            cxx=env.get("HIPDECODE_CXX") or None,
            prebuilt=_path(env, "HIPDECODE_PREBUILT"),
            sim_seed=_integer(env, "HIPDECODE_SIM_SEED", 0) or 0,
            sim_checks=_checks(env, "HIPDECODE_SIM_CHECKS"),
            sim_compute_units=_integer(env, "HIPDECODE_SIM_COMPUTE_UNITS", 1),
            xdg_cache_home=_path(env, "XDG_CACHE_HOME"),
        )


_current: Settings | None = None


def current() -> Settings:
    """The settings of this process, read from the environment at the first call."""
    global _current
    if _current is None:
        _current = Settings.from_env()
    return _current


@contextmanager
def override(**changes: object) -> Iterator[Settings]:
    """Replaces fields of the process's settings for a `with` block (all threads see it)."""
    global _current
    before = current()
    _current = dataclasses.replace(before, **changes)  # type: ignore[arg-type]
    try:
        yield _current
    finally:
        _current = before


def child_environment(**extra: str) -> dict[str, str]:
    """A copy of the environment for a child process, with `extra` on top."""
    return {**os.environ, **extra}


def log(level: int, message: str) -> None:
    """Prints one line to stderr when HIPDECODE_LOG is at least `level`."""
    if current().log >= level:
        print(f"hipdecode: {message}", file=sys.stderr, flush=True)


def _path(env: Mapping[str, str], name: str) -> Path | None:
    text = env.get(name)
    return Path(text).expanduser().absolute() if text else None


def _flag(env: Mapping[str, str], name: str) -> bool:
    text = env.get(name, "")
    if text.lower() in ("", "0", "false", "off", "no"):
        return False
    if text.lower() in ("1", "true", "on", "yes"):
        return True
    raise BadArgument(f"{name}: expected 0 or 1, got {text!r}; set one of them or unset it")


def _level(env: Mapping[str, str], name: str) -> int:
    text = env.get(name) or "0"
    if text not in ("0", "1", "2", "3"):
        raise BadArgument(f"{name}: expected 0, 1, 2 or 3, got {text!r}; set one of them")
    return int(text)


def _integer(env: Mapping[str, str], name: str, least: int) -> int | None:
    text = env.get(name) or None
    if text is None:
        return None
    if not text.isdecimal() or int(text) < least:
        raise BadArgument(f"{name}: expected an integer of {least} or more, got {text!r}; unset it")
    return int(text)


def _checks(env: Mapping[str, str], name: str) -> tuple[str, ...]:
    text = env.get(name) or "all"
    if text in ("all", "none"):
        return SIM_CHECKS if text == "all" else ()
    words = text.split(",")
    if not set(words) <= set(SIM_CHECKS):
        raise BadArgument(
            f"{name}: expected all, none or some of {','.join(SIM_CHECKS)}, got {text!r}; "
            "set one of them"
        )
    return tuple(check for check in SIM_CHECKS if check in words)
