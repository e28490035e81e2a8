# SPDX-License-Identifier: MIT
"""The demo's text splits by name alone, and nothing held out is trained on."""

from pathlib import Path

import pytest

from hipdecode.demo.text import (
    HELD_OUT_MODULES,
    SEPARATOR,
    docstrings_of,
    load_corpus,
    load_held_out,
    load_topics,
    standard_library,
    windows,
)

SHARED = "A paragraph that two pages of the reference share, word for word."
KEPT = "This docstring is long enough to count as prose, and it is kept in the training part."


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "pydoc_data").mkdir()
    topics = {"with": f"held out page\n\n{SHARED}", "compound": f"kept page\n\n{SHARED}\n\nend"}
    (tmp_path / "pydoc_data" / "topics.py").write_text(f"topics = {topics!r}\n")
    (tmp_path / "heapq.py").write_text("held_out_module = 1\n")
    (tmp_path / "kept.py").write_text(f'"""{KEPT}"""\nkept_module = 1\n')
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_heapq.py").write_text("test_of_held_out = 1\n")
    (tmp_path / "test" / "test_kept.py").write_text("test_of_kept = 1\n")
    return tmp_path


def test_corpus_holds_out_by_name_and_drops_what_training_repeats(library: Path) -> None:
    corpus = load_corpus(library, with_tests=True)
    assert corpus.held_out == SEPARATOR.join(
        [f"held out page\n\n{SHARED}".encode(), b"held_out_module = 1\n"]
    )
    assert corpus.prose == SEPARATOR.join([b"kept page\n\nend", KEPT.encode()])
    for absent in (b"held_out", b"broken", SHARED.encode()):
        assert absent not in corpus.code + corpus.prose
    assert b"test_of_kept" in corpus.code
    assert b"test_of_kept" not in load_corpus(library).code


def test_corpus_is_the_same_twice(library: Path) -> None:
    assert load_corpus(library) == load_corpus(library)
    assert load_held_out(library) == load_corpus(library).held_out


def test_held_out_part_exists_in_this_python() -> None:
    missing = [
        name for name in HELD_OUT_MODULES if not (standard_library() / f"{name}.py").exists()
    ]
    assert not missing
    assert len(load_held_out()) > 200_000


def test_topics_are_empty_when_python_ships_without_them(tmp_path: Path) -> None:
    assert load_topics(tmp_path) == {}


def test_docstrings_of_finds_the_long_ones() -> None:
    source = f'def f():\n    """{KEPT}"""\n\ndef g():\n    """Short."""\n'
    assert docstrings_of(source) == KEPT


def test_windows_span_the_text() -> None:
    assert windows(b"abcdefg", 3, 3) == [b"abc", b"cde", b"efg"]


def test_windows_raise_when_the_text_is_shorter() -> None:
    with pytest.raises(ValueError, match="at least 9 bytes, got 7"):
        windows(b"abcdefg", 1, 9)
