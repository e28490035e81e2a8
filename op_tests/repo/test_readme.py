# SPDX-License-Identifier: MIT
"""What README.md tells people to type works: its commands, its Python, its links."""

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from hipdecode.testing import bench_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted(
    p
    for folder in (".", "csrc", "csrc/*", "configs/*", "op_tests", "op_tests/*")
    for p in ROOT.glob(f"{folder}/*.md")
    if ".venv" not in p.parts
)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBERS = re.compile(r"<!-- numbers:begin -->(.*)<!-- numbers:end -->", re.DOTALL)
RESULTS = ROOT / "op_tests" / "op_benchmarks" / "results" / "mla_decode_cpu.csv"
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)|<img src=\"([^\"]+)\"")
INLINE_COMMAND = re.compile(r"`((?:hipdecode|make) [^`]+)`")


def fences(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text()) if kind == language]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in the root of the checkout, on this checkout's Python files."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "COLUMNS": "400"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def hipdecode(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "hipdecode.cli", *arguments)


@cache
def help_of(*subcommand: str) -> str:
    done = hipdecode(*subcommand, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


def options_of(arguments: list[str]) -> str:
    """The help of the command that the words name, `bench plot` included."""
    text = help_of(arguments[0])
    nested = text.partition("\nCommands:\n")[2]
    if len(arguments) > 1 and re.search(rf"^  {re.escape(arguments[1])}\b", nested, re.MULTILINE):
        return help_of(*arguments[:2])
    return text


def console_sessions() -> list[tuple[str, list[str]]]:
    """The `$ command` lines of console blocks, each with the output lines shown under it."""
    sessions: list[tuple[str, list[str]]] = []
    for block in fences(ROOT / "README.md", "console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                sessions.append((line[2:], []))
            else:
                sessions[-1][1].append(line)
    return sessions


@pytest.mark.parametrize(("command", "shown"), console_sessions())
def test_readme_console_command_prints_what_is_shown(command: str, shown: list[str]) -> None:
    program, *arguments = shlex.split(command)
    assert program == "hipdecode"
    done = hipdecode(*arguments)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    for got, expected in zip(printed, shown, strict=False):
        if expected.strip() == "...":
            return
        assert got == expected
    assert len(printed) == len(shown)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_make_targets_and_subcommands_exist(page: Path) -> None:
    typed = [line.split("#")[0] for block in fences(page, "bash") for line in block.splitlines()]
    sessions = "\n".join(fences(page, "console")).replace("\\\n", " ")
    typed += re.findall(r"^\$ (.*)$", sessions, re.MULTILINE)
    commands = [*filter(str.strip, typed), *INLINE_COMMAND.findall(page.read_text())]
    makefile = (ROOT / "Makefile").read_text()
    for command in commands:
        program, *arguments = command.split()
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", makefile, re.MULTILINE), command
        elif program == "hipdecode":
            options = {a for a in arguments[1:] if a.startswith("--")}
            assert not {o for o in options if o not in options_of(arguments)}, command


def test_readme_python_runs() -> None:
    done = run(sys.executable, "-c", "\n".join(fences(ROOT / "README.md", "python")))
    assert done.returncode == 0, done.stderr


def test_forty_line_decode_compiles() -> None:
    (first, *_) = fences(ROOT / "csrc" / "kernels" / "README.md", "cpp")
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c++", "-"]
    compiler = os.environ.get("HIPDECODE_CXX", "g++").split()
    done = subprocess.run(
        [*compiler, *flags], input=first, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(first.splitlines()) <= 40


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = [a or b for a, b in LINK.findall(page.read_text())]
    local = [t for t in targets if not re.match(r"[a-z]+:", t)]
    assert not [t for t in local if not (page.parent / t).exists()]


def test_readme_names_every_setting() -> None:
    settings = (ROOT / "python" / "hipdecode" / "settings.py").read_text()
    assert set(re.findall(r"HIPDECODE_\w+", settings)) == set(re.findall(r"HIPDECODE_\w+", README))


def test_readme_numbers_are_those_of_the_recorded_run() -> None:
    cases = bench_table.read_cases(RESULTS)
    recorded = bench_table.draw(RESULTS)
    match = NUMBERS.search(README)
    assert match is not None
    shown = [line for line in match.group(1).splitlines() if line.startswith("| ")][1:]
    assert shown
    assert [line for line in shown if line not in recorded] == [], "\n".join(recorded)
    for fact in ("machine", "torch", "commit"):
        assert cases[0][0][fact] in match.group(1)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_marked_tables_are_those_of_their_results(page: Path) -> None:
    assert bench_table.redrawn(page)[0] == page.read_text()


def test_pages_of_tests_name_every_folder_and_script() -> None:
    tests = ROOT / "op_tests"
    folders = {f"{path.parent.name}/" for path in tests.glob("*/*.py")}
    page = (tests / "README.md").read_text()
    assert not {folder for folder in folders if f"`{folder}`" not in page}
    benches = tests / "op_benchmarks"
    files = [*benches.glob("hip/*"), *benches.glob("[bs]*.py")]
    names = {str(path.relative_to(benches)) for path in files if path.is_file()}
    page = (benches / "README.md").read_text()
    assert not {name for name in names if f"`{name}`" not in page}
