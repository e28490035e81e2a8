# SPDX-License-Identifier: MIT
import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_tree

from hipdecode import jit, settings
from hipdecode.jit import cache

PROGRAM = Path(tiny_tree.__file__)
PYTHON_DIR = Path(__file__).parents[2] / "python"


def start(tree: Path, cache_dir: Path, cxx: Path) -> subprocess.Popen[str]:
    """Builds tiny/1 in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(tree), str(cache_dir), str(cxx)],
        env=settings.child_environment(PYTHONPATH=str(PYTHON_DIR), OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


@contextlib.contextmanager
def killed_at_the_end(process: subprocess.Popen[str]) -> Iterator[None]:
    """Ends the process's whole group, an orphaned compiler included."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def entries(cache_dir: Path) -> list[str]:
    folder = cache_dir / tiny_tree.TARGET
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_eight_processes_build_once(tree: Path, cache_dir: Path, tmp_path: Path) -> None:
    count = tmp_path / "count"
    body = f'echo "$$" >> {count}\nsleep 0.5\nexec g++ "$@"'
    script = tiny_tree.compiler_script(tmp_path / "counting-cxx", body)
    processes = [start(tree, cache_dir, script) for _ in range(8)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outputs
    assert len({out for out, _ in outputs}) == 1
    assert len(count.read_text().splitlines()) == 1
    assert tiny_tree.call(Path(outputs[0][0].strip())) == 41
    assert len(entries(cache_dir)) == 1


def test_killed_build_leaves_nothing_that_matters(
    tree: Path, cache_dir: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "compiling"
    body = f"echo half > kernel.so\ntouch {marker}\nexec sleep 60"
    slow = tiny_tree.compiler_script(tmp_path / "cxx", body)
    process = start(tree, cache_dir, slow)
    with killed_at_the_end(process):
        wait_for(marker)
        os.kill(process.pid, signal.SIGKILL)  # the compiler lives on, as an orphan would
        process.wait()
        (left,) = entries(cache_dir)
        assert ".tmp-" in left
        marker.unlink()
        quick = tiny_tree.compiler_script(tmp_path / "cxx", 'exec g++ "$@"')
        with settings.override(cxx=str(quick)):
            built = jit.ensure_kernel(tiny_tree.TARGET, "tiny/1")
        assert tiny_tree.call(built.path) == 41
        assert entries(cache_dir) == [built.path.parent.name]


def test_waiting_process_takes_over_when_the_builder_is_killed(
    tree: Path, cache_dir: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "compiling"
    body = f'if mkdir {marker} 2>/dev/null; then exec sleep 60; fi\nexec g++ "$@"'
    script = tiny_tree.compiler_script(tmp_path / "cxx", body)
    first = start(tree, cache_dir, script)
    with killed_at_the_end(first):
        wait_for(marker)
        second = start(tree, cache_dir, script)
        with killed_at_the_end(second):
            assert second.stderr is not None
            assert "waiting for another build of tiny" in second.stderr.readline()
            os.kill(first.pid, signal.SIGKILL)
            out, err = second.communicate(timeout=60)
            assert second.returncode == 0, err
            assert tiny_tree.call(Path(out.strip())) == 41


def write_result(folder: Path) -> dict[str, object]:
    (folder / "result").write_text("right")
    return {}


def test_losing_the_race_is_normal(tmp_path: Path) -> None:
    entry = tmp_path / "target" / "entry"

    def overtaken(folder: Path) -> dict[str, object]:
        # What a process without locks (or on a file system without them) does meanwhile.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fcntl, "flock", no_locks)
            assert cache.get_or_build(entry, write_result)
        return write_result(folder)

    assert not cache.get_or_build(entry, overtaken)
    assert cache.is_complete(entry)
    assert [path for path in entry.parent.iterdir() if path.is_dir()] == [entry]


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_file_system_without_locks_still_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    entry = tmp_path / "target" / "entry"
    assert cache.get_or_build(entry, write_result)
    assert not cache.get_or_build(entry, write_result)


@pytest.mark.parametrize("damage", ["truncate", "lose", "no-record"])
def test_damaged_entry_is_built_again(tmp_path: Path, damage: str) -> None:
    entry = tmp_path / "target" / "entry"
    cache.get_or_build(entry, write_result)
    if damage == "truncate":
        (entry / "result").write_text("r")
    else:
        (entry / ("result" if damage == "lose" else "build.json")).unlink()
    assert cache.get_or_build(entry, write_result)
    assert (entry / "result").read_text() == "right"
    assert [path for path in entry.parent.iterdir() if path.is_dir()] == [entry]


def test_prune_keeps_entries_and_builds_in_progress(tmp_path: Path) -> None:
    entry = tmp_path / "target" / "entry"
    cache.get_or_build(entry, write_result)
    folders = {name: entry.parent / f"other.tmp-{name}" for name in ("dead", "live", "young")}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "owner").touch()
        if name != "young":
            os.utime(folder, (1, 1))
    with (folders["live"] / "owner").open() as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        removed = cache.prune(tmp_path)
    assert (removed.entries, removed.leftovers) == (0, 1)
    assert [name for name, folder in folders.items() if folder.exists()] == ["live", "young"]
    assert cache.is_complete(entry)
    assert cache.prune(tmp_path, everything=True).entries == 1
    assert cache.usage(tmp_path).entries == 0
