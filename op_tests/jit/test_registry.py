# SPDX-License-Identifier: MIT
import json
from pathlib import Path

import pytest
import tiny_tree

from hipdecode import registry
from hipdecode.errors import RegistryError

DECODE = "mla_decode_hk/576-512-bf16-fp8_e4m3fn"


def test_shipped_registry_meets_its_schema_and_names_round_trip() -> None:
    held = registry.default()
    held.validate()
    for module in held.modules.values():
        for kernel in module.kernels():
            assert held.kernel(kernel.name) == kernel


def test_kernel_source_is_an_include_and_one_line() -> None:
    lines = registry.default().kernel(DECODE).source().splitlines()
    assert lines[2] == "#include <kernels/mla_decode_hk.h>"
    assert lines[4].startswith("TILE_KERNEL(mla_decode_hk, ")
    assert "576, 512, hipdecode::abi::DType::bf16, hipdecode::abi::DType::fp8_e4m3fn" in lines[4]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mla_prefill", "expected a module out of mla_decode_hk, .*got 'mla_prefill'"),
        ("mla_decode_hk", "expected mla_decode_hk/head_dim_qk-head_dim_v-q_dtype-kv_dtype"),
        ("mla_plan/1", "expected mla_plan, got 'mla_plan/1'"),
        ("mla_decode_hk/576-512-bf16-fp16", "mla_decode_hk: expected values .*bf16"),
        ("mla_decode_hk/576-64-bf16-bf16", "mla_decode_hk: expected values"),
    ],
)
def test_kernel_raises_when_the_name_is_wrong(name: str, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        registry.default().kernel(name)


def test_flags_raise_when_the_module_is_not_built_for_the_target() -> None:
    held = registry.default()
    with pytest.raises(RegistryError, match=r"mla_plan: expected a target out of .*got 'gfx950'"):
        held.flags(held.kernel("mla_plan"), "gfx950")


def test_flags_of_a_module_follow_those_of_the_target(tree: Path) -> None:
    tiny_tree.write_registry(tree, targets={tiny_tree.TARGET: {"flags": ["-DOWN"]}})
    held = registry.default()
    flags = held.flags(held.kernel("tiny/1"), tiny_tree.TARGET).flags
    assert flags == ("-shared", "-fPIC", "-DOWN")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"header": "../etc/passwd"}, "module tiny: header: expected pattern"),
        ({"symbol": 3}, "module tiny: symbol: expected type string, got 3"),
        ({"values": "n"}, "module tiny: values: expected type array"),
        ({"allowed": [{"n": [1.5]}]}, "module tiny: allowed.0.n.0: expected"),
        ({"allowed": []}, "module tiny: allowed: expected entries exactly where"),
        ({"allowed": [{"m": [1]}]}, r"module tiny: allowed: expected choices for \['n'\]"),
        ({"targets": {}}, "module tiny: targets: expected minProperties 1"),
        ({"targets": {"gfx950": {}}}, r"module tiny: targets: expected names .*got \['gfx950'\]"),
        (
            {"targets": {"cpu-avx2": {"flag": []}}},
            "module tiny: targets.cpu-avx2: expected no other",
        ),
        ({"instantiate": "{m}"}, r"module tiny: instantiate: expected only .*got \['m'\]"),
        ({"instantiate": "{n"}, "module tiny: instantiate: expected balanced"),
        ({"instantiate": "{__import__('os')}"}, "module tiny: instantiate: expected only"),
        ({"summary": None}, "module tiny: summary: expected type string, got None"),
        ({"eval": "1"}, "module tiny: entry: expected no other fields .*'eval'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_entry_raises_with_file_module_and_field(
    tree: Path, fields: dict[str, object], message: str
) -> None:
    path = tiny_tree.write_registry(tree, **fields)
    with pytest.raises(RegistryError, match=f"modules.json: {message}"):
        registry.load(path).validate()


@pytest.mark.parametrize("field", sorted(tiny_tree.MODULE))
def test_missing_field_is_named(tree: Path, field: str) -> None:
    path = tree / "configs/modules.json"
    document = json.loads(path.read_text())
    del document["modules"]["tiny"][field]
    path.write_text(json.dumps(document))
    with pytest.raises(RegistryError, match=f"module tiny: entry: expected all .*'{field}'"):
        registry.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"modules": {}}'])
def test_unreadable_file_is_named(tree: Path, text: str) -> None:
    path = tree / "configs/modules.json"
    path.write_text(text)
    with pytest.raises(RegistryError, match=r"modules\.json: "):
        registry.load(path)
