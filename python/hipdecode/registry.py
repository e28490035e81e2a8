# SPDX-License-Identifier: MIT
"""The kernels that exist, read from configs/modules.json. The registry is data, never code.

A kernel name is `module` or `module/value-value-...`, such as
`mla_decode_hk/576-512-bf16-fp8_e4m3fn-128`. The value `rows`, query rows of a tile, is for the host
to choose: it asks for wanted_rows() and fit() finds what the target has.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from . import paths, schema
from .errors import RegistryError

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_ROWS = "rows"
Value = int | str
Choices = Mapping[str, tuple[Value, ...]]


@dataclass(frozen=True, slots=True)
class ModuleTarget:
    """A module's own say about one target.

    Attributes:
        flags: after the target's own.
        allowed: as TargetFlags.allowed, for this module alone.
    """

    flags: tuple[str, ...]
    allowed: tuple[Choices, ...]


@dataclass(frozen=True, slots=True)
class Module:
    """One kernel family.

    Attributes:
        name: as in the registry and in routes.
        summary: one line.
        header: included by the generated source, relative to csrc/.
        symbol: the exported C symbol of an artefact.
        instantiate: the kernel type, with `{value}` placeholders.
        values: names of the template values, in the order of kernel names.
        allowed: each entry maps every value to its choices; their product is allowed.
        targets: target name to what the module says about it.
    """

    name: str
    summary: str
    header: str
    symbol: str
    instantiate: str
    values: tuple[str, ...]
    allowed: tuple[Choices, ...]
    targets: Mapping[str, ModuleTarget]

    def allows(self, values: Mapping[str, Value]) -> bool:
        """Whether one kernel exists for exactly these values."""
        if set(values) != set(self.values):
            return False
        if not self.values:
            return True
        return any(all(values[n] in entry[n] for n in self.values) for entry in self.allowed)

    def kernel(self, **values: Value) -> Kernel:
        """The kernel of this module with these template values.

        Raises:
            RegistryError: the values are not an allowed combination; names the allowed ones.
        """
        if not self.allows(values):
            raise RegistryError(
                f"{self.name}: expected values {self._describe_allowed()}, got {values}; "
                "choose an allowed combination or add it to configs/modules.json"
            )
        return Kernel(self, tuple(values[name] for name in self.values))

    def kernels(self) -> Iterator[Kernel]:
        """Every kernel of the module."""
        if not self.values:
            yield Kernel(self, ())
        seen = set()
        for entry in self.allowed:
            for values in itertools.product(*(entry[name] for name in self.values)):
                if values not in seen:
                    seen.add(values)
                    yield Kernel(self, values)

    def _describe_allowed(self) -> str:
        if not self.values:
            return "none (the module takes no values)"
        rows = ("-".join("|".join(map(str, e[n])) for n in self.values) for e in self.allowed)
        return f"{'-'.join(self.values)} out of " + ", ".join(rows)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One instance of a module: what one artefact holds.

    Attributes:
        module: the family.
        values: template values in the module's order.
    """

    module: Module
    values: tuple[Value, ...]

    @property
    def name(self) -> str:
        """`module/value-value-...`, or just `module`."""
        if not self.values:
            return self.module.name
        return f"{self.module.name}/{'-'.join(map(str, self.values))}"

    @property
    def by_name(self) -> dict[str, Value]:
        """Template values by their names."""
        return dict(zip(self.module.values, self.values, strict=True))

    @property
    def rows(self) -> int | None:
        """Query rows of a tile; None where the kernel has none."""
        rows = self.by_name.get(_ROWS)
        return None if rows is None else int(rows)

    def source(self) -> str:
        """The text of the generated translation unit."""
        values = self.by_name
        kernel = _PLACEHOLDER.sub(lambda match: str(values[match[1]]), self.module.instantiate)
        return (
            "// SPDX-License-Identifier: MIT\n"
            f"// {self.name}, generated from configs/modules.json\n"
            f"#include <{self.module.header}>\n\n"
            f"TILE_KERNEL({self.module.symbol}, {kernel})\n"
        )


@dataclass(frozen=True, slots=True)
class TargetFlags:
    """How artefacts of one target are built.

    Attributes:
        toolchain: `cxx`, `hip` or `nvcc`.
        flags: in order.
        tile: the folder of csrc/tile/target that the kernels are compiled with; None: not known.
        allowed: each entry maps some values to the choices that the target has; a kernel is built
            for it when one entry holds, or when there is none.
    """

    toolchain: str
    flags: tuple[str, ...]
    tile: str | None = None
    allowed: tuple[Choices, ...] = ()


@dataclass(frozen=True, slots=True)
class Registry:
    """The content of one modules.json."""

    path: Path
    targets: Mapping[str, TargetFlags]
    modules: Mapping[str, Module]

    def module(self, name: str) -> Module:
        """The module called `name`.

        Raises:
            RegistryError: there is none; lists those that exist.
        """
        if name not in self.modules:
            raise RegistryError(
                f"{self.path.name}: expected a module out of {', '.join(self.modules)}, "
                f"got {name!r}; choose one of them or add it"
            )
        return self.modules[name]

    def kernel(self, name: str) -> Kernel:
        """Parses a kernel name.

        Raises:
            RegistryError: the module is unknown, or the values are not an allowed combination.
        """
        module_name, _, text = name.partition("/")
        module = self.module(module_name)
        parts = text.split("-") if text else []
        if len(parts) != len(module.values):
            expected = "/".join(filter(None, (module.name, "-".join(module.values))))
            raise RegistryError(
                f"kernel name: expected {expected}, got {name!r}; spell every value in that order"
            )
        parsed = (int(part) if part.isdecimal() else part for part in parts)
        return module.kernel(**dict(zip(module.values, parsed, strict=True)))

    def flags(self, kernel: Kernel, target: str) -> TargetFlags:
        """The toolchain and all flags that build `kernel` for `target`.

        Raises:
            RegistryError: the kernel is not built for that target.
        """
        module = kernel.module
        if target not in module.targets:
            raise RegistryError(
                f"{module.name}: expected a target out of {', '.join(module.targets)}, "
                f"got {target!r}; the registry has no such build yet, choose one of those"
            )
        common, own = self.targets[target], module.targets[target]
        for allowed in (common.allowed, own.allowed):
            if not _matches(kernel, allowed):
                raise RegistryError(
                    f"{kernel.name}: expected values that {target} has "
                    f"({_describe(allowed)}), got others; choose one of those or another target"
                )
        return dataclasses.replace(common, flags=common.flags + own.flags)

    def builds(self, kernel: Kernel, target: str) -> bool:
        """Whether `kernel` is built for `target`."""
        own = kernel.module.targets.get(target)
        return own is not None and all(
            _matches(kernel, allowed) for allowed in (self.targets[target].allowed, own.allowed)
        )

    def kernels(self, module: Module, target: str) -> list[Kernel]:
        """The kernels of a module that are built for `target`."""
        return [kernel for kernel in module.kernels() if self.builds(kernel, target)]

    def fit(self, name: str, target: str) -> Kernel:
        """The kernel that serves a name on a target.

        Args:
            name: a kernel name; its rows are what the caller wants.
            target: one of the registry's targets.

        Returns:
            The kernel of that name, with the fewest rows that hold those wanted, or with the most
            that the target has.

        Raises:
            RegistryError: as kernel() and flags().
        """
        wanted = self.kernel(name)
        if wanted.rows is None or self.builds(wanted, target):
            return wanted
        others = {_ROWS: None}
        near = sorted(
            (
                kernel
                for kernel in self.kernels(wanted.module, target)
                if kernel.by_name | others == wanted.by_name | others
            ),
            key=lambda kernel: kernel.rows or 0,
        )
        enough = [kernel for kernel in near if (kernel.rows or 0) >= wanted.rows]
        if not near:
            self.flags(wanted, target)
        return (enough or near[-1:])[0]

    def validate(self) -> None:
        """Checks the file against its schema.

        Reading skips this where the typed fields are well formed, because importing jsonschema
        takes longer than a cache hit; builds, `hipdecode doctor` and the tests call it.

        Raises:
            RegistryError: names the file, the module, the field and what was expected.
        """
        schema.validate(self.path, json.loads(self.path.read_text(encoding="utf-8")))


def load(path: Path) -> Registry:
    """Reads a registry file.

    Raises:
        RegistryError: it cannot be read, or an entry is malformed or inconsistent.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RegistryError(
            f"{path}: expected a readable JSON file, got {error}; correct it"
        ) from error
    try:
        registry = _parse(path, document)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        schema.validate(path, document)
        raise RegistryError(
            f"{path}: expected a valid registry, got {error!r}; correct it"
        ) from error
    for module in registry.modules.values():
        _check(registry, module)
    return registry


TILE_ROWS = (16, 32, 64, 128)
"""Query rows of a tile that a caller or a table may ask for; fit() finds what a target has."""
LEAST_ROWS = TILE_ROWS[0]
"""Query rows of a tile at least, on any target: bounds the counters that split kernels need."""


def wanted_rows(family: str, packed: int, asked: int | None = None) -> int:
    """The rows of a tile that a decode call asks for, as wanted_rows() of csrc/torch.

    Args:
        family: of the target; a CPU has one tile for all.
        packed: query rows of a request, over all heads.
        asked: the caller's own choice, one of TILE_ROWS.
    """
    if family == "cpu":
        return TILE_ROWS[-1]
    return min(max(1 << ((asked or packed) - 1).bit_length(), LEAST_ROWS), TILE_ROWS[-1])


@cache
def default() -> Registry:
    """The registry that the package ships: configs/modules.json."""
    return load(paths.configs_dir() / "modules.json")


def _parse(path: Path, document: Any) -> Registry:  # noqa: ANN401  (JSON)
    targets = {
        name: TargetFlags(
            entry["toolchain"], tuple(entry["flags"]), entry.get("tile"), _choices(entry)
        )
        for name, entry in document["targets"].items()
    }
    modules = {
        name: Module(
            name=name,
            summary=entry["summary"],
            header=entry["header"],
            symbol=entry["symbol"],
            instantiate=entry["instantiate"],
            values=tuple(entry["values"]),
            allowed=_choices({"allowed": entry["allowed"]}),
            targets={
                t: ModuleTarget(tuple(own.get("flags", ())), _choices(own))
                for t, own in entry["targets"].items()
            },
        )
        for name, entry in document["modules"].items()
    }
    return Registry(path, targets, modules)


def _choices(entry: Mapping[str, Any]) -> tuple[Choices, ...]:
    return tuple({n: tuple(c) for n, c in group.items()} for group in entry.get("allowed", ()))


def _matches(kernel: Kernel, allowed: tuple[Choices, ...]) -> bool:
    """Whether one entry holds; it says nothing about values that the kernel does not have."""
    values = kernel.by_name
    return not allowed or any(
        all(values[name] in choices for name, choices in entry.items() if name in values)
        for entry in allowed
    )


def _describe(allowed: tuple[Choices, ...]) -> str:
    return " or ".join(
        ", ".join(f"{name} {'|'.join(map(str, choices))}" for name, choices in entry.items())
        for entry in allowed
    )


def _check(registry: Registry, module: Module) -> None:
    """Relations between fields, which a JSON schema cannot state."""

    def fail(field: str, expected: str, got: object) -> RegistryError:
        return RegistryError(
            f"{registry.path.name}: module {module.name}: {field}: expected {expected}, "
            f"got {got}; correct the entry"
        )

    unknown = set(_PLACEHOLDER.findall(module.instantiate)) - set(module.values)
    if unknown:
        raise fail("instantiate", f"only {{name}} of {list(module.values)}", sorted(unknown))
    if set("{}") & set(_PLACEHOLDER.sub("", module.instantiate)):
        raise fail("instantiate", "balanced {name} placeholders", module.instantiate)
    if bool(module.values) != bool(module.allowed):
        raise fail("allowed", "entries exactly where there are values", len(module.allowed))
    for group in module.allowed:
        if set(group) != set(module.values):
            raise fail("allowed", f"choices for {list(module.values)}", sorted(group))
    for name, own in module.targets.items():
        strange = {n for entry in own.allowed for n in entry} - set(module.values)
        if strange:
            raise fail(f"targets.{name}.allowed", f"names of {list(module.values)}", strange)
    missing = set(module.targets) - set(registry.targets)
    if missing:
        raise fail("targets", f"names out of {list(registry.targets)}", sorted(missing))
