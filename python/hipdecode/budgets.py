# SPDX-License-Identifier: MIT
"""What kernels may take: configs/budgets.json, held against the facts of built code objects.

A budget is a pattern of kernel names (as of the shell) and bounds on facts. Every pattern that
matches a kernel holds for it, so a line can be general (`*`: no spills) or about one kernel.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from . import paths
from .errors import BudgetError
from .facts import KernelFacts

FACTS = ("registers", "agprs", "sgprs", "spills", "scratch_bytes", "lds_bytes", "code_bytes")
"""The facts that can be bounded; `registers` are vector registers, accumulators included."""


@dataclass(frozen=True, slots=True)
class Overrun:
    """One bound that a kernel exceeds.

    Attributes:
        arch: the target.
        name: the kernel.
        fact: one of FACTS.
        most: what the budget grants.
        got: what the kernel takes.
        pattern: the budget's own.
    """

    arch: str
    name: str
    fact: str
    most: int
    got: int
    pattern: str

    def __str__(self) -> str:
        """The row as an error message shows it."""
        return (
            f"{self.arch} {self.name}: {self.fact}: expected at most {self.most} "
            f"(budget {self.pattern!r}), got {self.got}"
        )


def budgets_path() -> Path:
    """The file of this checkout or wheel."""
    return paths.configs_dir() / "budgets.json"


def load(path: Path) -> dict[str, dict[str, dict[str, int]]]:
    """Reads a budget file: target to pattern to fact to its bound.

    Raises:
        BudgetError: it cannot be read, or a bound is of no known fact.
    """
    try:
        document: dict[str, dict[str, dict[str, int]]] = json.loads(path.read_text("utf-8"))
        for target, patterns in document.items():
            for pattern, bounds in patterns.items():
                unknown = set(bounds) - set(FACTS)
                if unknown or not all(isinstance(most, int) for most in bounds.values()):
                    raise ValueError(f"{target}: {pattern}: {bounds}")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BudgetError(
            f"{path}: expected target, pattern and bounds on {', '.join(FACTS)}, got {error}; "
            "correct it"
        ) from error
    return document


def overruns(
    facts: Iterable[KernelFacts], budgets: Mapping[str, Mapping[str, Mapping[str, int]]]
) -> list[Overrun]:
    """Every bound that a kernel exceeds, in the order of the kernels."""
    return [
        Overrun(kernel.arch, kernel.name, fact, most, getattr(kernel, fact), pattern)
        for kernel in facts
        for pattern, bounds in budgets.get(kernel.arch, {}).items()
        if fnmatchcase(kernel.name, pattern)
        for fact, most in bounds.items()
        if getattr(kernel, fact) > most
    ]
