# SPDX-License-Identifier: MIT
"""`hipdecode warmup MODEL`: a config.json becomes the kernels that its decode launches."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from hipdecode import registry, settings
from hipdecode import target as targets
from hipdecode.cli.warmup import command
from hipdecode.dispatch import DecodeShape, route_mla_decode
from hipdecode.errors import BadArgument, UnsupportedShape
from hipdecode.jit import selection
from hipdecode.model_config import on_rank, read_model
from hipdecode.paged_route import PagedShape, route_paged_attention

V3 = {
    "model_type": "deepseek_v3", "num_attention_heads": 128, "num_key_value_heads": 128,
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_nextn_predict_layers": 1,
    "torch_dtype": "bfloat16",
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "num_attention_heads": 64, "num_key_value_heads": 8,
    "hidden_size": 8192, "dtype": "float16",
}  # fmt: skip


def write(folder: Path, config: object) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_latent_model_is_read_from_its_folder_or_file(tmp_path: Path) -> None:
    model = read_model(write(tmp_path, V3))
    assert (model.nhead, model.head_dim_qk, model.head_dim_v, model.nhead_kv) == (
        128, 576, 512, None,
    )  # fmt: skip
    assert (model.q_len, model.dtypes) == ((1, 2), (("bf16", "bf16"), ("bf16", "fp8")))
    assert read_model(str(tmp_path / "config.json")) == model
    assert read_model(write(tmp_path, {"text_config": V3})).nhead == 128
    assert read_model("deepseek-v3").nhead == 128


def test_sparse_and_grouped_models_are_told_apart(tmp_path: Path) -> None:
    sparse = read_model(write(tmp_path, V3 | {"index_topk": 2048, "model_type": "deepseek_v32"}))
    assert (sparse.sparse, sparse.dtypes) == ("v32", ())
    assert read_model(write(tmp_path, V3 | {"model_type": "deepseek_v4"})).sparse == "v4"
    grouped = read_model(write(tmp_path, LLAMA))
    assert (grouped.head_dim_qk, grouped.nhead_kv, grouped.dtypes[0]) == (128, 8, ("fp16", "fp16"))


def test_ranks_share_heads(tmp_path: Path) -> None:
    grouped = read_model(write(tmp_path, LLAMA))
    assert (on_rank(grouped, 4).nhead, on_rank(grouped, 4).nhead_kv) == (16, 2)
    assert on_rank(grouped, 16).nhead_kv == 1  # more ranks than kv heads
    with pytest.raises(BadArgument, match="tp: expected a divisor of the 64 heads of llama, got 3"):
        on_rank(grouped, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([1], "expected an object"),
        ({}, "num_attention_heads: expected a number of 1 or more in .*, got None"),
        (V3 | {"kv_lora_rank": "512"}, "kv_lora_rank: expected a number"),
        ({"num_attention_heads": 8}, "hidden_size: expected a number"),
    ],
)
def test_config_that_describes_no_attention_is_refused(config, message, tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match=message):
        read_model(write(tmp_path, config))


def test_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match=r"expected a readable config\.json, got none at"):
        read_model(str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadArgument, match="model: expected JSON in"):
        read_model(str(tmp_path))
    with pytest.raises(BadArgument, match="model: expected one of deepseek-v2-lite"):
        read_model("gpt-2")


@pytest.mark.parametrize("name", ["sm_90", "gfx950", "gfx942", "cpu-avx2"])
@pytest.mark.parametrize("ranks", [1, 4, 8, 16, 32])
def test_every_routed_kernel_of_a_latent_model_is_on_its_list(name, ranks, tmp_path) -> None:
    where, held = targets.resolve(name), registry.default()
    model = on_rank(read_model(write(tmp_path, V3 | {"num_nextn_predict_layers": 3})), ranks)
    found = selection.kernels_to_serve(where, model)
    needed = set()
    for (q_dtype, kv_dtype), q_len, page_size, batch, kv_len in itertools.product(
        model.dtypes, model.q_len, (1, 16, 64), (1, 2, 7, 16, 60, 128, 500),
        (None, 1, 300, 900, 3000, 9000, 70000),
    ):  # fmt: skip
        shape = DecodeShape(
            family=where.family, compute_units=132, batch=batch, nhead=model.nhead, q_len=q_len,
            kv_len=kv_len, q_dtype=q_dtype, kv_dtype=where.dtype(kv_dtype), page_size=page_size,
        )  # fmt: skip
        route = route_mla_decode(shape)
        rows = registry.wanted_rows(where.family, model.nhead * q_len, route.tile_rows)
        kernel = f"mla_decode_{route.route}/576-512-{q_dtype}-{shape.kv_dtype}-{rows}"
        needed.add(held.fit(kernel, where.artefact).name)
    assert needed <= set(found)
    # and nothing that no request could launch: one tile more or less in a table's choice
    assert len(found) <= len(needed) + 2 + 2 * len(model.dtypes) * len(model.q_len)
    assert {"mla_plan", "mla_reduce"} <= set(found)


@pytest.mark.parametrize("name", ["sm_90", "gfx950", "cpu-avx2"])
def test_every_routed_kernel_of_a_grouped_model_is_on_its_list(name, tmp_path: Path) -> None:
    where, held = targets.resolve(name), registry.default()
    model = on_rank(read_model(write(tmp_path, LLAMA)), 2)
    found = selection.kernels_to_serve(where, model)
    for batch, kv_len in itertools.product((1, 12, 200), (20, 5000, 40000)):
        shape = PagedShape(
            family=where.family, compute_units=where.compute_units(), batch=batch, nhead_kv=4,
            gqa=8, mtp=1, kv_len=kv_len, q_dtype="fp16", kv_dtype="fp16", scales="none",
            block_size=64, value_dims=4,
        )  # fmt: skip
        assert held.fit(route_paged_attention(shape).kernel, where.artefact).name in found


def test_widths_without_a_kernel_are_refused(tmp_path: Path) -> None:
    where = targets.resolve("cpu-avx2")
    with pytest.raises(UnsupportedShape, match="head_dims=320/256"):
        selection.kernels_to_serve(where, read_model(write(tmp_path, V3 | {"kv_lora_rank": 256})))
    with pytest.raises(UnsupportedShape, match="head_dim 80"):
        selection.kernels_to_serve(where, read_model(write(tmp_path, LLAMA | {"head_dim": 80})))


def test_command_builds_and_loads_what_a_config_needs(target: str, tmp_path: Path) -> None:
    words = (write(tmp_path, V3), "--tp", "8,16", "--kv-dtype", "bf16", "--q-len", "1")
    ran = CliRunner().invoke(command, [*words, "--target", target], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    lines = [line for line in ran.stdout.splitlines() if line.endswith(", loads")]
    model = replace(read_model(words[0]), q_len=(1,), dtypes=(("bf16", "bf16"),))
    wanted = selection.kernels_to_serve(targets.resolve(target), on_rank(model, 8))
    assert [line.partition(":")[0] for line in lines] == wanted  # 8 heads fit the tiles of 16
    assert CliRunner().invoke(command, [words[0], "--tp", "0"]).exit_code == 2


def test_forbidden_build_names_the_kernel_and_the_command(tmp_path: Path) -> None:
    words = [write(tmp_path, V3), "--kv-dtype", "bf16", "--target", "cpu-generic"]
    with settings.override(no_build=True, cache_dir=tmp_path / "nothing", prebuilt=None):
        ran = CliRunner().invoke(command, words)
    message = str(ran.exception)
    assert "HIPDECODE_NO_BUILD: expected mla_" in message
    assert "run `hipdecode build mla_" in message
    assert "--target cpu-generic" in message
