# SPDX-License-Identifier: MIT
"""A folder of immutable build results, shared by processes, containers and machines.

An entry is made in a temporary sibling folder, synced, and renamed into place, so it is complete
or absent. A `flock` per entry only keeps processes from doing the same work twice: it dies with
its owner, and losing the race is normal. Temporary folders hold a lock of their own; one that
nobody holds belongs to a dead build and is removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hipdecode import settings
from hipdecode.errors import BuildError, CacheError

_LOCK_WAIT_S = 900.0
_MIN_PRUNE_AGE_S = 60.0
_TMP, _LOCK, _FAILED = ".tmp-", ".lock", ".failed"
_OWNER = "owner"
_REMEDIES = {
    errno.ENOSPC: ("room on the disk", "free some or set HIPDECODE_CACHE_DIR"),
    errno.EDQUOT: ("room in the quota", "free some or set HIPDECODE_CACHE_DIR"),
}


@dataclass(frozen=True, slots=True)
class Usage:
    """What a cache folder holds: finished entries, leftovers of failed or killed builds, bytes."""

    entries: int
    leftovers: int
    bytes: int


def is_complete(entry: Path) -> bool:
    """Whether `entry` holds a build whose files still have the size they were written with."""
    try:
        record = json.loads((entry / "build.json").read_text(encoding="utf-8"))
        return all((entry / n).stat().st_size == size for n, size in record["files"].items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def get_or_build(entry: Path, build: Callable[[Path], dict[str, object]]) -> bool:
    """Makes sure that `entry` is complete.

    Args:
        entry: the folder `<cache>/<target>/<name>-<key16>`.
        build: writes the files into the folder it is given and returns what `build.json` says
            beside the sizes of those files.

    Returns:
        Whether this call built it (False: it was there, or another process was faster).

    Raises:
        CacheError: the folder cannot be written or locked, or the disk is full.
        BuildError: whatever `build` raises; its folder is kept as `<entry>.failed`.
    """
    if is_complete(entry):
        return False
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _lock(entry):
            if is_complete(entry):
                return False
            _remove_orphans(entry.parent, entry.name + _TMP, min_age_s=0.0)
            return _build(entry, build)
    except OSError as error:
        raise _explain(entry.parent, error) from error


def usage(root: Path) -> Usage:
    """Counts what lies under a cache folder; an absent one is empty."""
    entries = leftovers = size = 0
    for folder in _entry_folders(root):
        if _is_leftover(folder):
            leftovers += 1
        else:
            entries += 1
        size += _bytes(folder)
    return Usage(entries, leftovers, size)


def prune(root: Path, *, everything: bool = False) -> Usage:
    """Removes leftovers of failed and killed builds, or all that nobody is building.

    Returns:
        What was removed.

    Raises:
        CacheError: the folder cannot be written.
    """
    entries = leftovers = size = 0
    try:
        for folder in list(_entry_folders(root)):
            before = _bytes(folder)
            if _TMP in folder.name:
                if not _remove_orphan(folder, _MIN_PRUNE_AGE_S):
                    continue
                leftovers += 1
            elif folder.name.endswith(_FAILED) or everything or not is_complete(folder):
                shutil.rmtree(folder)
                leftovers += _is_leftover(folder)
                entries += not _is_leftover(folder)
            else:
                continue
            size += before
    except OSError as error:
        raise _explain(root, error) from error
    return Usage(entries, leftovers, size)


def _build(entry: Path, build: Callable[[Path], dict[str, object]]) -> bool:
    folder = Path(tempfile.mkdtemp(prefix=entry.name + _TMP, dir=entry.parent))
    owner = os.open(folder / _OWNER, os.O_CREAT | os.O_RDWR)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.chmod(0o755)  # mkdtemp makes it private, a cache is shared
        start = time.perf_counter()
        try:
            record = build(folder)
        except BuildError as error:
            _keep_failed(folder, entry, error)
            raise
        files = {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.name != _OWNER}
        record |= {"seconds": round(time.perf_counter() - start, 3), "files": files}
        text = json.dumps(record, indent=1)
        (folder / "build.json").write_text(text + "\n", encoding="utf-8")
        for name in (*files, "build.json"):
            _sync(folder / name)
        (folder / _OWNER).unlink()
        _sync(folder)
        return _publish(folder, entry)
    finally:
        os.close(owner)
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, entry: Path) -> bool:
    for _ in range(3):
        try:
            os.rename(folder, entry)  # noqa: PTH104  (must not replace a folder that has files)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            if is_complete(entry):
                return False
            _move_aside(entry)
        else:
            with contextlib.suppress(OSError):
                _sync(entry.parent)
            return True
    raise OSError(errno.EEXIST, "a broken entry that cannot be replaced", str(entry))


def _move_aside(entry: Path) -> None:
    doomed = Path(tempfile.mkdtemp(prefix=entry.name + _TMP, dir=entry.parent))
    with contextlib.suppress(FileNotFoundError):
        entry.rename(doomed / "broken")
    shutil.rmtree(doomed, ignore_errors=True)


def _keep_failed(folder: Path, entry: Path, error: BuildError) -> None:
    """Keeps the source and the log of a failed build; the error names them where they now lie."""
    kept = entry.with_name(entry.name + _FAILED)
    with contextlib.suppress(OSError):
        shutil.rmtree(kept, ignore_errors=True)
        (folder / _OWNER).unlink(missing_ok=True)
        folder.rename(kept)
        error.args = tuple(str(arg).replace(str(folder), str(kept)) for arg in error.args)


@contextlib.contextmanager
def _lock(entry: Path) -> Iterator[None]:
    handle = os.open(entry.with_name(entry.name + _LOCK), os.O_CREAT | os.O_RDWR, 0o666)
    try:
        _wait(handle, entry)
        yield
    finally:
        os.close(handle)


def _wait(handle: int, entry: Path) -> None:
    """Polls, so that a stopped owner or a file system without locks delays but never wedges."""
    deadline, pause = time.monotonic() + _LOCK_WAIT_S, 0.005
    while time.monotonic() < deadline:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if pause == 0.005:
                settings.log(settings.LOG_BUILDS, f"waiting for another build of {entry.name}")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.2)
            if is_complete(entry):
                return
        except OSError:
            return
        else:
            return
    settings.log(settings.LOG_BUILDS, f"gave up waiting, building {entry.name} as well")


def _remove_orphans(folder: Path, prefix: str, min_age_s: float) -> None:
    for path in folder.iterdir():
        if path.name.startswith(prefix):
            _remove_orphan(path, min_age_s)


def _remove_orphan(folder: Path, min_age_s: float) -> bool:
    try:
        if time.time() - folder.stat().st_mtime < min_age_s:
            return False
        handle = os.open(folder / _OWNER, os.O_CREAT | os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    shutil.rmtree(folder, ignore_errors=True)
    return True


def _entry_folders(root: Path) -> Iterator[Path]:
    if root.is_dir():
        for target in sorted(path for path in root.iterdir() if path.is_dir()):
            yield from sorted(path for path in target.iterdir() if path.is_dir())


def _is_leftover(folder: Path) -> bool:
    return _TMP in folder.name or folder.name.endswith(_FAILED)


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explain(folder: Path, error: OSError) -> CacheError:
    expected, remedy = _REMEDIES.get(
        error.errno or 0,
        ("a folder that can be written", "set HIPDECODE_CACHE_DIR to one, or HIPDECODE_PREBUILT"),
    )
    return CacheError(
        f"cache folder {folder}: expected {expected}, got {error.strerror or error}"
        f"{f' at {error.filename}' if error.filename else ''}; {remedy}"
    )
