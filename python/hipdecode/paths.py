# SPDX-License-Identifier: MIT
"""Where things lie: sources, configurations, cache, prebuilt kernels."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from . import settings
from .errors import CacheError, HipdecodeError


def package_dir() -> Path:
    """The folder of the installed package."""
    return Path(__file__).resolve().parent


@cache
def source_root() -> Path:
    """The folder that holds `csrc/` and `configs/`.

    In a wheel that is `hipdecode/share`; in a checkout (and an editable install) its root.

    Raises:
        HipdecodeError: neither holds configs/modules.json.
    """
    candidates = (package_dir() / "share", package_dir().parents[1])
    for root in candidates:
        if (root / "configs" / "modules.json").is_file():
            return root
    raise HipdecodeError(
        f"configs/modules.json: expected it under one of {', '.join(map(str, candidates))}, "
        "got none; reinstall hipdecode"
    )


def csrc_dir() -> Path:
    """The C++ sources; kernels are compiled against this folder."""
    return source_root() / "csrc"


def configs_dir() -> Path:
    """The registry, the named models, the tolerances and the tuned tables."""
    return source_root() / "configs"


def tables_dir() -> Path:
    """The dispatch tables: HIPDECODE_TABLES, or configs/tuned."""
    return settings.current().tables or configs_dir() / "tuned"


def cache_dir() -> Path:
    """The folder of just-in-time builds; it need not exist yet.

    Raises:
        CacheError: there is no home folder and HIPDECODE_CACHE_DIR is not set.
    """
    now = settings.current()
    if now.cache_dir:
        return now.cache_dir
    if now.xdg_cache_home:
        return now.xdg_cache_home / "hipdecode"
    try:
        return Path.home() / ".cache" / "hipdecode"
    except RuntimeError as error:
        raise CacheError(
            f"cache folder: expected a home folder, got none ({error}); set HIPDECODE_CACHE_DIR"
        ) from error


def prebuilt_dir() -> Path | None:
    """The ahead-of-time folder: HIPDECODE_PREBUILT, or hipdecode/prebuilt where it exists.

    Raises:
        CacheError: HIPDECODE_PREBUILT names a folder without a manifest.
    """
    named = settings.current().prebuilt
    if named:
        if not (named / "manifest.json").is_file():
            raise CacheError(
                f"HIPDECODE_PREBUILT: expected a folder with manifest.json, got {named}; "
                f"write one with `hipdecode build --out {named}` or unset it"
            )
        return named
    shipped = package_dir() / "prebuilt"
    return shipped if (shipped / "manifest.json").is_file() else None
