# SPDX-License-Identifier: MIT
"""The compilers: which one for a target, exactly which version, and running it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hipdecode import paths, settings
from hipdecode.errors import BuildError, CacheError, ToolchainError

_TAIL_LINES = 40
_TIME_LIMIT_S = 900
_LEAST_CLANG = 22
_NO_SPACE = "No space left on device"
_Identities = dict[str, tuple[str, ...]]
_identities: dict[Path, _Identities] = {}


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A kind of compiler, as the targets of the registry name it.

    Attributes:
        candidates: names or paths, the first that is there and serves is taken.
        source: the file name of a translation unit.
        artefact: the file name of what it becomes.
        needs: what is expected, for messages.
        remedy: what to do where there is none.
        choice: how another one is chosen.
        questions: options that make it say who it is; version first.
    """

    candidates: tuple[str, ...]
    source: str
    artefact: str
    needs: str
    remedy: str
    choice: str
    questions: tuple[str, ...] = ("--version", "-dumpmachine")


_PREBUILT = "set HIPDECODE_PREBUILT to a folder from `hipdecode build --out`"
TOOLCHAINS = {
    "cxx": Toolchain(
        ("g++", "clang++", "c++"), "kernel.cpp", "kernel.so",
        "one of g++, clang++, c++ in PATH",
        f"install one, set HIPDECODE_CXX, or {_PREBUILT}",
        "with HIPDECODE_CXX",
    ),
    "hip": Toolchain(
        ("hipcc", "/opt/rocm/bin/hipcc", "clang++-22", "clang++"), "kernel.hip", "kernel.hsaco",
        f"hipcc of ROCm, or clang {_LEAST_CLANG} or newer with its lld, in PATH",
        f"install the Debian packages clang-22 and lld-22 (from apt.llvm.org where the release "
        f"has none), or {_PREBUILT}",
        "by PATH",
    ),
    "nvcc": Toolchain(
        ("nvcc", "/usr/local/cuda/bin/nvcc"), "kernel.cu", "kernel.cubin",
        "nvcc of CUDA 12.4 or newer in PATH",
        f"install the CUDA toolkit, or {_PREBUILT}",
        "by PATH",
        ("--version",),
    ),
}  # fmt: skip
_LINKER = "-print-prog-name=lld"


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


def find(kind: str = "cxx") -> Compiler:
    """The compiler of this process for one of TOOLCHAINS.

    `cxx` is HIPDECODE_CXX where that is set. The identity is remembered in the cache folder by
    path, time and size of the executable, so that a cache hit starts no process.

    Raises:
        ToolchainError: there is none, or it cannot be started or does not say who it is.
    """
    tools = TOOLCHAINS[kind]
    named = settings.current().cxx
    if kind == "cxx" and named:
        return _compiler(_named(named), tools)
    reasons = []
    for candidate in tools.candidates:
        found = shutil.which(candidate)
        if not found:
            continue
        reason = _unfit(found) if kind == "hip" and "clang" in Path(found).name else None
        if reason is None:
            return _compiler((found,), tools)
        reasons.append(reason)
    raise ToolchainError(
        f"compiler: expected {tools.needs}, got {', '.join(reasons) or 'none'}; {tools.remedy}"
    )


def _compiler(command: tuple[str, ...], tools: Toolchain) -> Compiler:
    version, *machine = _answers(command, tools.questions, tools.choice)
    return Compiler(command, version, machine[0] if machine else platform.machine())


def _unfit(clang: str) -> str | None:
    """Why a clang cannot build for AMD GPUs; None where it can."""
    version, linker = _answers((clang,), ("--version", _LINKER), "by PATH")
    number = re.search(r"clang version (\d+)", version)
    if number is None or int(number[1]) < _LEAST_CLANG:
        return f"{clang} ({version.partition(chr(10))[0]})"
    return None if Path(linker).is_absolute() else f"{clang} without lld"


def _answers(command: tuple[str, ...], questions: tuple[str, ...], choice: str) -> tuple[str, ...]:
    """What a compiler says to some options, remembered."""
    memo, stamp = _memo_path(), _stamp(command, questions)
    known = _identities.setdefault(memo, {})
    if stamp not in known:
        known.update(_read_memo(memo))
    if stamp not in known:
        known[stamp] = tuple(_ask(command, question, choice) for question in questions)
        _write_memo(memo, {stamp: known[stamp]})
    return known[stamp]


def run(
    subject: str,
    command: Sequence[str],
    folder: Path,
    log: Path,
    choice: str = TOOLCHAINS["cxx"].choice,
) -> None:
    """Runs one compile or link command.

    Args:
        subject: what is being built, for messages.
        command: the words of the command.
        folder: its working and temporary folder.
        log: file that gets the command and its output appended.
        choice: how another compiler is chosen.

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
                f"{command[0]}; choose another compiler {choice}\ncommand: {line}"
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
        f"correct the source or choose another compiler {choice}\n{details}"
    )


def _named(text: str) -> tuple[str, ...]:
    """The words of HIPDECODE_CXX."""
    words = shlex.split(text)
    if not words or shutil.which(words[0]) is None:
        raise ToolchainError(
            f"HIPDECODE_CXX: expected a C++20 compiler, got {text!r}, which is not an "
            "executable file; correct or unset it"
        )
    return tuple(words)


def _stamp(command: tuple[str, ...], questions: tuple[str, ...]) -> str:
    files: list[list[str | int]] = []
    for word in command:
        found = shutil.which(word)
        if found:
            stat = Path(found).stat()
            files.append([str(Path(found).absolute()), stat.st_mtime_ns, stat.st_size])
    return json.dumps([command, questions, files])


def _ask(command: tuple[str, ...], question: str, choice: str) -> str:
    line = shlex.join((*command, question))
    try:
        answer = subprocess.run(
            (*command, question), capture_output=True, text=True, timeout=60, check=False,
            stdin=subprocess.DEVNULL, env=settings.child_environment(LC_ALL="C"),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(
            f"compiler: expected `{line}` to start, got {error}; choose another {choice}"
        ) from error
    if answer.returncode != 0 or not answer.stdout.strip():
        said = (answer.stderr or answer.stdout).strip()[-2000:] or "(no output)"
        raise ToolchainError(
            f"compiler: expected `{line}` to say who it is, got exit status "
            f"{answer.returncode}; choose another {choice}\n{said}"
        )
    return answer.stdout.strip()


def _memo_path() -> Path:
    return paths.cache_dir() / "compilers.json"


def _read_memo(path: Path) -> _Identities:
    try:
        memo = json.loads(path.read_text(encoding="utf-8"))
        return {stamp: tuple(map(str, answers)) for stamp, answers in memo.items()}
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
