# SPDX-License-Identifier: MIT
"""The demo's text: what ships with every Python, split into a training and a held-out part.

Three sources, all read from a standard library folder: the language reference pages of
``pydoc_data.topics``, the docstrings of the modules, and the modules themselves. The split is by
name and depends on nothing else, so any Python 3.11 or newer sees the same one.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SEPARATOR = b"\x00"
"""Stands between documents; UTF-8 text holds no zero byte, so it needs no extra vocabulary."""

HELD_OUT_MODULES = frozenset(
    {
        "bisect",
        "calendar",
        "contextlib",
        "difflib",
        "fractions",
        "graphlib",
        "heapq",
        "queue",
        "sched",
        "shelve",
        "statistics",
        "textwrap",
    }
)
HELD_OUT_TOPICS = frozenset(
    {
        "assert",
        "bltin-ellipsis-object",
        "comparisons",
        "debugger",
        "dynamic-features",
        "formatstrings",
        "global",
        "id-classes",
        "lambda",
        "numbers",
        "operator-summary",
        "slicings",
        "truth",
        "while",
        "with",
    }
)

_SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "encodings", "pydoc_data", "idle_test"}
)
_MIN_DOCSTRING = 80
_MIN_SHARED_PARAGRAPH = 40


@dataclass(frozen=True, slots=True)
class Corpus:
    """The demo's text as bytes; documents are joined by `SEPARATOR`.

    Attributes:
        prose: training text in English: reference pages and docstrings.
        code: training text in Python: module sources.
        held_out: reference pages and modules that no training text repeats.
    """

    prose: bytes
    code: bytes
    held_out: bytes


def load_corpus(stdlib: Path | None = None, *, with_tests: bool = False) -> Corpus:
    """Reads the text of one standard library folder and splits it.

    Args:
        stdlib: the folder that holds ``textwrap.py``; that of the running Python if None.
        with_tests: adds the library's own tests to the training code, where they are installed.

    Returns:
        The corpus; equal for equal folders.
    """
    root = stdlib if stdlib is not None else standard_library()
    held_out = _held_out_documents(root)
    seen = {paragraph for text in held_out for paragraph in _paragraphs(text)}
    pages = [text for name, text in load_topics(root).items() if name not in HELD_OUT_TOPICS]
    sources = list(_training_sources(root, with_tests=with_tests))
    docstrings = [text for source in sources if (text := docstrings_of(source))]
    return Corpus(
        prose=_join(_without(text, seen) for text in [*pages, *docstrings]),
        code=_join(_without(text, seen) for text in sources),
        held_out=_join(held_out),
    )


def load_held_out(stdlib: Path | None = None) -> bytes:
    """The held-out part alone, without reading the rest of the library."""
    return _join(_held_out_documents(stdlib if stdlib is not None else standard_library()))


def standard_library() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def load_topics(root: Path) -> dict[str, str]:
    """Pages of the language reference by name; empty where Python ships without them."""
    path = root / "pydoc_data" / "topics.py"
    if not path.is_file():
        return {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "topics":
            topics: dict[str, str] = ast.literal_eval(node.value)
            return dict(sorted(topics.items()))
    return {}


def docstrings_of(source: str) -> str:
    """The longer docstrings of one module, dedented and separated by empty lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and len(docstring) >= _MIN_DOCSTRING:
                found.append(docstring)
    return "\n\n".join(found)


def windows(text: bytes, count: int, length: int) -> list[bytes]:
    """`count` slices of `length` bytes each, evenly spaced over `text`."""
    if count < 1 or len(text) < length:
        raise ValueError(f"text: expected at least {length} bytes, got {len(text)}; ask for less")
    last = len(text) - length
    starts = [last * index // max(count - 1, 1) for index in range(count)]
    return [text[start : start + length] for start in starts]


def _held_out_documents(root: Path) -> list[str]:
    topics = load_topics(root)
    paths = [root / f"{name}.py" for name in sorted(HELD_OUT_MODULES)]
    return [topics[name] for name in sorted(HELD_OUT_TOPICS & topics.keys())] + [
        path.read_text(encoding="utf-8") for path in paths if path.is_file()
    ]


def _training_sources(root: Path, *, with_tests: bool) -> Iterator[str]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        is_test = any(part in {"test", "tests"} for part in parts[:-1])
        is_held_out = path.stem.removeprefix("test_") in HELD_OUT_MODULES
        if _SKIPPED_FOLDERS.intersection(parts) or is_held_out or (is_test and not with_tests):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            ast.parse(source)
        except (SyntaxError, ValueError):
            continue  # the library ships files that are wrong on purpose, for its own tests
        if source.strip() and "\x00" not in source:
            yield source


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        words = " ".join(paragraph.split())
        if len(words) >= _MIN_SHARED_PARAGRAPH:
            yield words


def _without(text: str, seen: set[str]) -> str:
    """Drops the paragraphs that the held-out part repeats: reference pages include each other."""
    kept = [part for part in text.split("\n\n") if " ".join(part.split()) not in seen]
    return "\n\n".join(kept)


def _join(texts: Iterable[str]) -> bytes:
    return SEPARATOR.join(text.encode("utf-8") for text in texts)
