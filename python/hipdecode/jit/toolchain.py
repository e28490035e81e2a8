# SPDX-License-Identifier: MIT
"""The C++ compiler: which one, exactly which version, and running it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hipdecode import paths, settings
from hipdecode.errors import BuildError, CacheError, ToolchainError

_CANDIDATES = ("g++", "clang++", "c++")
_TAIL_LINES = 40
_TIME_LIMIT_S = 900
_NO_SPACE = "No space left on device"
_Identities = dict[str, tuple[str, str]]
_identities: dict[Path, _Identities] = {}


@dataclass(frozen=True, slots=True)
class Compiler:
    """A compiler that was found and asked who it is.

    Attributes:
        command: the words that start it.
        version: its whole `--version` output.
        machine: its `-dumpmachine` output, such as `x86_64-linux-gnu`.
    """

    command: tuple[str, ...]
    version: str
    machine: str

    @property
    def title(self) -> str:
        """The first line of the version."""
        return self.version.partition("\n")[0]


def find() -> Compiler:
    """The compiler of this process: HIPDECODE_CXX, else the first of g++, clang++ and c++.

    Its identity is remembered in the cache folder by path, time and size of the executable, so
    that a cache hit starts no process.

    Raises:
        ToolchainError: there is none, or it cannot be started or does not say who it is.
    """
    command = _command()
    memo, stamp = _memo_path(), _stamp(command)
    known = _identities.setdefault(memo, {})
    if stamp not in known:
        known.update(_read_memo(memo))
    if stamp not in known:
        known[stamp] = (_ask(command, "--version"), _ask(command, "-dumpmachine"))
        _write_memo(memo, {stamp: known[stamp]})
    return Compiler(command, *known[stamp])


def run(subject: str, command: Sequence[str], folder: Path, log: Path) -> None:
    """Runs one compile or link command.

    Args:
        subject: what is being built, for messages.
        command: the words of the command.
        folder: its working and temporary folder.
        log: file that gets the command and its output appended.

    Raises:
        ToolchainError: the command cannot be started.
        CacheError: the disk is full.
        BuildError: it failed; carries the command, the last 40 lines and the log's path.
    """
    line = shlex.join(command)
    environment = settings.child_environment(TMPDIR=str(folder), LC_ALL="C")
    with log.open("a+", encoding="utf-8", errors="replace") as out:
        out.write(f"$ {line}\n")
        out.flush()
        start = out.tell()
        try:
            status = subprocess.run(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT, timeout=_TIME_LIMIT_S, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            status = -9
            out.write(f"killed after {_TIME_LIMIT_S} s\n")
        except OSError as error:
            raise ToolchainError(
                f"{subject}: expected a compiler that starts, got {error.strerror} from "
                f"{command[0]}; set HIPDECODE_CXX to a C++20 compiler\ncommand: {line}"
            ) from error
        if status == 0:
            return
        out.seek(start)
        output = out.read()
    got = f"exit status {status}" if status > 0 else f"signal {-status}"
    tail = "\n".join(output.splitlines()[-_TAIL_LINES:]) or "(no output)"
    details = f"command: {line}\nlast lines of {log}:\n{tail}"
    if _NO_SPACE in output:
        raise CacheError(
            f"{subject}: expected room on the disk of {folder}, got {_NO_SPACE!r}; free some or "
            f"set HIPDECODE_CACHE_DIR\n{details}"
        )
    raise BuildError(
        f"{subject}: expected the compiler to succeed, got {got}; "
        f"correct the source or choose another compiler with HIPDECODE_CXX\n{details}"
    )


def _command() -> tuple[str, ...]:
    named = settings.current().cxx
    if named:
        words = shlex.split(named)
        if not words or shutil.which(words[0]) is None:
            raise ToolchainError(
                f"HIPDECODE_CXX: expected a C++20 compiler, got {named!r}, which is not an "
                "executable file; correct or unset it"
            )
        return tuple(words)
    for name in _CANDIDATES:
        found = shutil.which(name)
        if found:
            return (found,)
    raise ToolchainError(
        f"compiler: expected one of {', '.join(_CANDIDATES)} in PATH, got none; install one, set "
        "HIPDECODE_CXX, or set HIPDECODE_PREBUILT to a folder from `hipdecode build --out`"
    )


def _stamp(command: tuple[str, ...]) -> str:
    files: list[list[str | int]] = []
    for word in command:
        found = shutil.which(word)
        if found:
            stat = Path(found).stat()
            files.append([str(Path(found).absolute()), stat.st_mtime_ns, stat.st_size])
    return json.dumps([command, files])


def _ask(command: tuple[str, ...], question: str) -> str:
    line = shlex.join((*command, question))
    try:
        answer = subprocess.run(
            (*command, question), capture_output=True, text=True, timeout=60, check=False,
            stdin=subprocess.DEVNULL, env=settings.child_environment(LC_ALL="C"),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(
            f"compiler: expected `{line}` to start, got {error}; set HIPDECODE_CXX to another"
        ) from error
    if answer.returncode != 0 or not answer.stdout.strip():
        said = (answer.stderr or answer.stdout).strip()[-2000:] or "(no output)"
        raise ToolchainError(
            f"compiler: expected `{line}` to say who it is, got exit status "
            f"{answer.returncode}; set HIPDECODE_CXX to another\n{said}"
        )
    return answer.stdout.strip()


def _memo_path() -> Path:
    return paths.cache_dir() / "compilers.json"


def _read_memo(path: Path) -> _Identities:
    try:
        memo = json.loads(path.read_text(encoding="utf-8"))
        return {stamp: (str(version), str(machine)) for stamp, (version, machine) in memo.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write_memo(path: Path, more: _Identities) -> None:
    """Best effort: losing the memo costs the next process two short runs of the compiler."""
    memo = _read_memo(path) | more
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".compilers-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                json.dump(memo, out, indent=1)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
