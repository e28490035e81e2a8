# SPDX-License-Identifier: MIT
import json
from pathlib import Path

import pytest
import tiny_tree

from hipdecode import registry
from hipdecode.errors import RegistryError

DECODE = "mla_decode_hk/576-512-bf16-fp8_e4m3fn-128"


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
    assert (
        "576, 512, hipdecode::abi::DType::bf16, hipdecode::abi::DType::fp8_e4m3fn, 128" in lines[4]
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mla_prefill", "expected a module out of mla_decode_hk, .*got 'mla_prefill'"),
        ("mla_decode_hk", "expected mla_decode_hk/head_dim_qk-head_dim_v-q_dtype-kv_dtype-rows"),
        ("mla_plan/1", "expected mla_plan, got 'mla_plan/1'"),
        ("mla_decode_hk/576-512-bf16-fp16-128", "mla_decode_hk: expected values .*bf16"),
        ("mla_decode_hk/576-64-bf16-bf16-16", "mla_decode_hk: expected values"),
    ],
)
def test_kernel_raises_when_the_name_is_wrong(name: str, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        registry.default().kernel(name)


def test_flags_raise_when_the_module_is_not_built_for_the_target() -> None:
    held = registry.default()
    with pytest.raises(RegistryError, match=r"mla_plan: expected a target out of .*got 'gfx906'"):
        held.flags(held.kernel("mla_plan"), "gfx906")


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        (f"{DECODE[:-3]}16", "cpu-avx2", "expected values that cpu-avx2 has .*rows 128"),
        (DECODE, "gfx942", "expected values that gfx942 has .*kv_dtype bf16|fp16|fp8_e4m3fnuz"),
        (DECODE.replace("fn", "fnuz"), "gfx950", "expected values that gfx950 has .*fp8_e4m3fn"),
    ],
)
def test_flags_raise_when_the_target_lacks_a_value(name: str, target: str, message: str) -> None:
    held = registry.default()
    kernel = held.kernel(name)
    assert not held.builds(kernel, target)
    with pytest.raises(RegistryError, match=message):
        held.flags(kernel, target)


def test_each_gpu_has_one_kind_of_fp8() -> None:
    held = registry.default()
    for target, kind in (
        ("gfx950", "fp8_e4m3fn"), ("gfx942", "fp8_e4m3fnuz"), ("sm_90", "fp8_e4m3fn"),
    ):  # fmt: skip
        kernels = held.kernels(held.module("mla_decode_persistent"), target)
        kinds = {str(v) for k in kernels for v in k.values if str(v).startswith("fp8")}
        assert kinds == {kind}


@pytest.mark.parametrize(
    ("wanted", "has", "got"),
    [(16, [16, 64], 16), (32, [16, 64], 64), (128, [16, 64], 64), (16, [128], 128)],
)
def test_fit_finds_the_shortest_tile_that_holds_the_rows(
    tree: Path, wanted: int, has: list[int], got: int
) -> None:
    tiny_tree.write_registry(
        tree,
        instantiate="{n} + {rows}",
        values=["n", "rows"],
        allowed=[{"n": [1, 2], "rows": [16, 32, 64, 128]}],
        targets={tiny_tree.TARGET: {"allowed": [{"rows": has}]}},
    )
    kernel = registry.default().fit(f"tiny/2-{wanted}", tiny_tree.TARGET)
    assert (kernel.name, kernel.rows) == (f"tiny/2-{got}", got)


def test_fit_raises_when_no_row_count_helps() -> None:
    with pytest.raises(RegistryError, match="expected values that gfx942 has"):
        registry.default().fit(DECODE, "gfx942")


def test_wanted_rows_are_a_power_of_two_that_holds_the_packed_rows() -> None:
    assert registry.wanted_rows("cpu", 1) == 128
    for packed in range(1, 300):
        rows = registry.wanted_rows("gfx950", packed)
        assert rows in (16, 32, 64, 128)
        assert rows >= min(packed, 128)
        assert rows == 16 or rows < 2 * packed


def test_every_row_count_of_a_module_is_built_somewhere() -> None:
    held = registry.default()
    for module in held.modules.values():
        built = {k.rows for target in module.targets for k in held.kernels(module, target)}
        assert built == {kernel.rows for kernel in module.kernels()}


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
        (
            {"targets": {"cpu-avx2": {"allowed": [{"m": [1]}]}}},
            r"module tiny: targets.cpu-avx2.allowed: expected names of \['n'\]",
        ),
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
