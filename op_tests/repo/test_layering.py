# SPDX-License-Identifier: MIT
"""Holds the include graph of csrc/ and the import graph of python/hipdecode."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "python" / "hipdecode"

# Folder of csrc/ -> the folders it may include.
MAY_INCLUDE = {
    "abi": {"abi"},
    "tile": {"tile", "abi"},
    "kernels": {"kernels", "tile", "abi"},
    "runtime": {"runtime", "abi"},
    "torch": {"torch", "runtime", "abi"},
    "sim": {"sim", "abi"},
}
# The runtime opens the simulator at run time and sees no more of it than its C interface.
C_INTERFACE = CSRC / "sim" / "c_api.h"
# What a device compiler without a C++ library also has.
FREESTANDING = {"bit", "concepts", "cstddef", "cstdint", "limits", "type_traits"}

TARGET_MACRO = re.compile(
    r"\b(__AVX\w*|__SSE\w*|__AMX\w*|__FMA__|__x86_64__|__aarch64__|__ARM\w*|__AMDGCN\w*|__gfx\w*"
    r"|__HIP\w*|__CUDA\w*|__NVPTX__|__NVCC__)\b"
)
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
CONDITIONAL = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif)\b", re.MULTILINE)

# Lowest first: a module imports only from its own or a lower layer.
LAYERS = [
    {"errors", "settings", "paths"},
    {"target", "schema"},
    {"registry", "tables", "models", "split_rule", "hk_splits", "paged_cost"},
    {"support", "table_files", "model_config"},
    {"jit", "dispatch", "disassembly", "sparse_route", "paged_route", "reduce_route"},
    {"facts", "sim", "shape_log"},
    {"budgets"},
    {"short_way"},
    {"ops"},
    {"plan_sizes"},
    {"plan"},
    {"arguments", "workspace"},
    {"sparse_cache", "shard"},
    {"decode", "reduce", "decode_reduce", "sparse", "paged", "warm"},
    {"ranks"},
    {"integrations", "aiter"},
    {"install"},
    {"__init__"},
    {"tuning", "tuning_rows"},
    {"testing", "demo", "cli"},
]


def cpp_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in {".h", ".cpp"})


def includes(path: Path) -> list[str]:
    return [name for _, name in INCLUDE.findall(path.read_text())]


def folder_of(path: Path, name: str) -> str | None:
    """The folder of csrc/ that an include of `path` lies in; None for headers from elsewhere."""
    beside, from_root = (path.parent / name).resolve(), (CSRC / name).resolve()
    found = next((p for p in (beside, from_root) if p.is_file() and p.is_relative_to(CSRC)), None)
    if found == C_INTERFACE:
        return None
    return found.relative_to(CSRC).parts[0] if found else None


def is_torch(name: str) -> bool:
    return name.startswith(("torch/csrc", "torch/headeronly", "ATen/", "c10/")) or name in {
        "torch/extension.h",
        "torch/library.h",
        "torch/torch.h",
    }


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("folder", sorted(MAY_INCLUDE))
def test_csrc_folder_includes_only_the_folders_below_it(folder: str) -> None:
    allowed = MAY_INCLUDE[folder]
    wrong = [
        f"{short(path)} includes {name}"
        for path in cpp_files(CSRC / folder)
        for name in includes(path)
        if folder_of(path, name) not in {None, *allowed}
    ]
    assert not wrong


def test_csrc_has_no_folder_outside_the_include_graph() -> None:
    assert {p.name for p in CSRC.iterdir() if p.is_dir()} == set(MAY_INCLUDE)


def test_only_csrc_torch_includes_torch_headers() -> None:
    wrong = [
        f"{short(path)} includes {name}"
        for path in cpp_files(CSRC)
        if path.relative_to(CSRC).parts[0] != "torch"
        for name in includes(path)
        if is_torch(name)
    ]
    assert not wrong


def test_device_headers_are_freestanding() -> None:
    device = [*cpp_files(CSRC / "abi"), *cpp_files(CSRC / "kernels"), *(CSRC / "tile").glob("*.h")]
    wrong = [
        f"{short(path)} includes <{name}>"
        for path in device
        for name in includes(path)
        if folder_of(path, name) is None and name not in FREESTANDING
    ]
    assert not wrong


def test_only_the_target_folder_names_a_target() -> None:
    wrong = [
        f"{short(path)} names {match.group(0)}"
        for path in cpp_files(CSRC)
        if "tile/target" not in path.as_posix() and path != CSRC / "tile" / "tile.h"
        for match in TARGET_MACRO.finditer(path.read_text())
    ]
    assert not wrong


def test_kernels_have_no_conditional_compilation() -> None:
    wrong = [short(p) for p in cpp_files(CSRC / "kernels") if CONDITIONAL.search(p.read_text())]
    assert not wrong


def absolute_names(node: ast.AST, path: Path) -> list[str]:
    """The dotted names that an import statement may bind, relative ones spelled out."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    package = ["hipdecode", *path.relative_to(PACKAGE).parts[:-1]]
    above = package[: len(package) - node.level + 1] if node.level else []
    return [".".join([*above, *filter(None, [node.module]), a.name]) for a in node.names]


def imported_modules(path: Path) -> set[str]:
    """The first-level modules of hipdecode that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        for name in absolute_names(node, path):
            parts = name.split(".")
            if parts[0] == "hipdecode":
                found.add(parts[1] if len(parts) > 1 and is_module(parts[1]) else "__init__")
    return found


def is_module(name: str) -> bool:
    return (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name).is_dir()


def layer_of(module: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if module in layer)


def test_every_python_module_has_a_layer() -> None:
    modules = {p.stem for p in PACKAGE.glob("*.py")}
    modules |= {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert modules == set().union(*LAYERS)


def test_python_modules_import_only_downwards() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        wrong += [
            f"{short(path)} imports hipdecode.{name}"
            for name in sorted(imported_modules(path))
            if layer_of(name) > layer_of(module)
        ]
    assert not wrong
