# SPDX-License-Identifier: MIT
"""The kernels that exist, read from configs/modules.json. The registry is data, never code.

A kernel name is `module` or `module/value-value-...`, such as
`mla_decode_hk/576-512-bf16-fp8_e4m3fn`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from . import paths
from .errors import RegistryError

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
Value = int | str


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
        targets: target name to the module's own flags there.
    """

    name: str
    summary: str
    header: str
    symbol: str
    instantiate: str
    values: tuple[str, ...]
    allowed: tuple[Mapping[str, tuple[Value, ...]], ...]
    targets: Mapping[str, tuple[str, ...]]

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

    def source(self) -> str:
        """The text of the generated translation unit."""
        values = dict(zip(self.module.values, map(str, self.values), strict=True))
        kernel = _PLACEHOLDER.sub(lambda match: values[match[1]], self.module.instantiate)
        return (
            "// SPDX-License-Identifier: MIT\n"
            f"// {self.name}, generated from configs/modules.json\n"
            f"#include <{self.module.header}>\n\n"
            f"TILE_KERNEL({self.module.symbol}, {kernel})\n"
        )


@dataclass(frozen=True, slots=True)
class TargetFlags:
    """How artefacts of one target are built: which toolchain, and flags in order."""

    toolchain: str
    flags: tuple[str, ...]


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
            RegistryError: the module is not built for that target.
        """
        module = kernel.module
        if target not in module.targets:
            raise RegistryError(
                f"{module.name}: expected a target out of {', '.join(module.targets)}, "
                f"got {target!r}; the registry has no such build yet, choose one of those"
            )
        common = self.targets[target]
        return TargetFlags(common.toolchain, common.flags + module.targets[target])

    def validate(self) -> None:
        """Checks the file against its schema.

        Reading skips this where the typed fields are well formed, because importing jsonschema
        takes longer than a cache hit; builds, `hipdecode doctor` and the tests call it.

        Raises:
            RegistryError: names the file, the module, the field and what was expected.
        """
        _validate(self.path, json.loads(self.path.read_text(encoding="utf-8")))


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
        _validate(path, document)
        raise RegistryError(
            f"{path}: expected a valid registry, got {error!r}; correct it"
        ) from error
    for module in registry.modules.values():
        _check(registry, module)
    return registry


@cache
def default() -> Registry:
    """The registry that the package ships: configs/modules.json."""
    return load(paths.configs_dir() / "modules.json")


def _parse(path: Path, document: Any) -> Registry:  # noqa: ANN401  (JSON)
    targets = {
        name: TargetFlags(entry["toolchain"], tuple(entry["flags"]))
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
            allowed=tuple({n: tuple(c) for n, c in group.items()} for group in entry["allowed"]),
            targets={t: tuple(own.get("flags", ())) for t, own in entry["targets"].items()},
        )
        for name, entry in document["modules"].items()
    }
    return Registry(path, targets, modules)


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
    missing = set(module.targets) - set(registry.targets)
    if missing:
        raise fail("targets", f"names out of {list(registry.targets)}", sorted(missing))


def _validate(path: Path, document: object) -> None:
    import jsonschema

    schema_path = path.with_name("modules.schema.json")
    if not schema_path.is_file():
        schema_path = paths.configs_dir() / "modules.schema.json"
    schema = json.loads(schema_path.read_text(encoding="utf-8"))
    error = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(schema).iter_errors(document)
    )
    if error is None:
        return
    where = list(map(str, error.absolute_path))
    subject = f"{path.name}: " + (
        f"module {where[1]}: {'.'.join(where[2:]) or 'entry'}"
        if where[:1] == ["modules"] and len(where) > 1
        else ".".join(where) or "document"
    )
    raise RegistryError(
        f"{subject}: expected {_expectation(error)}, got {error.instance!r:.200}; correct the entry"
    )


def _expectation(error: Any) -> str:  # noqa: ANN401  (jsonschema has no stubs)
    rule, wanted = error.validator, error.validator_value
    if rule == "required":
        return f"all of the fields {', '.join(wanted)} ({error.message})"
    if rule == "additionalProperties":
        return f"no other fields ({error.message})"
    return f"{rule} {wanted}"
