# SPDX-License-Identifier: MIT
"""Holds the size of files and functions, and what no source file may contain."""

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_FILE_BYTES = 1 << 20
# The weights of `hipdecode demo`: a demo that first trained a model would take half an hour.
MAX_DEMO_WEIGHTS_BYTES = 12 << 20

CODE = {".py", ".h", ".cpp"}
WITH_SPDX = CODE | {".toml", ".yaml"}
# Spelled apart, so that this file passes its own test.
FORBIDDEN_TEXT = re.compile("|".join([r"\bTO" + "DO", "FIX" + "ME", r"\bXX" + r"X\b"]))
FORBIDDEN_NAME = re.compile(r"^(utils?|misc|helpers?|archive|common)$")


def tracked_files() -> list[Path]:
    """Every file that belongs to the repository; the folder walk serves an unpacked sdist."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        names = [ROOT / line for line in listed.stdout.splitlines()]
    else:
        names = [
            p for d in ("csrc", "python", "op_tests", "configs") for p in (ROOT / d).rglob("*")
        ]
    return sorted(p for p in names if p.is_file() and "__pycache__" not in p.parts)


FILES = tracked_files()


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def line_count(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_code_files_stay_one_room() -> None:
    long = {
        short(p): n for p in FILES if p.suffix in CODE and (n := line_count(p)) > MAX_FILE_LINES
    }
    assert not long


def test_python_functions_stay_on_one_screen() -> None:
    long = {}
    for path in FILES:
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                # The signature and the docstring are the contract; the budget is for the body.
                doc = isinstance(node.body[0], ast.Expr) and ast.get_docstring(node) is not None
                first = node.body[1] if doc and len(node.body) > 1 else node.body[0]
                lines = (node.end_lineno or 0) - first.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{short(path)}:{node.lineno} {node.name}"] = lines
    assert not long


def test_source_files_start_with_the_licence() -> None:
    def has_spdx(path: Path) -> bool:
        head = path.read_text().splitlines()[:2]
        return any("SPDX-License-Identifier: MIT" in line for line in head)

    wrong = [
        short(p) for p in FILES if p.suffix in WITH_SPDX and p.stat().st_size and not has_spdx(p)
    ]
    assert not wrong


def test_nothing_is_left_open_in_the_sources() -> None:
    wrong = [
        f"{short(path)}: {match.group(0)}"
        for path in FILES
        if path.suffix in WITH_SPDX | {".md", ".json"}
        for match in FORBIDDEN_TEXT.finditer(path.read_text())
    ]
    assert not wrong


def test_every_path_says_what_it_holds() -> None:
    wrong = [
        short(p)
        for p in FILES
        if any(FORBIDDEN_NAME.match(part.split(".")[0]) for part in p.relative_to(ROOT).parts)
    ]
    assert not wrong


def test_no_large_file_is_tracked() -> None:
    def budget(path: Path) -> int:
        return MAX_DEMO_WEIGHTS_BYTES if path.suffix == ".safetensors" else MAX_FILE_BYTES

    assert not [short(p) for p in FILES if p.stat().st_size > budget(p)]


def test_lines_by_folder_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    lines: Counter[str] = Counter()
    for path in FILES:
        if path.suffix in CODE:
            lines["/".join(path.relative_to(ROOT).parts[:-1][:2]) or "."] += line_count(path)
    with capsys.disabled():
        print("\n" + "\n".join(f"{n:7d}  {folder}" for folder, n in sorted(lines.items())))
        print(f"{lines.total():7d}  all code")
    assert lines.total() > 0
