# SPDX-License-Identifier: MIT
"""Holds configs/modules.json against its JSON schema and says in words what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import paths
from .errors import RegistryError


def validate(path: Path, document: object) -> None:
    """Holds the content of a registry file against the schema beside it, or the one shipped.

    Raises:
        RegistryError: names the file, the module, the field and what was expected.
    """
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
