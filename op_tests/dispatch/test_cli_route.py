# SPDX-License-Identifier: MIT
"""`hipdecode route`: first line, explanation, JSON, no torch; and the named models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hipdecode import target as targets
from hipdecode.cli.route import command
from hipdecode.dispatch import FAMILIES
from hipdecode.errors import BadArgument
from hipdecode.models import find_model, load_models
from hipdecode.support import check_supported

SEED = "--target gfx950 --nhead 32 --q-len 4 --dtype fp8"


def run(arguments: str) -> list[str]:
    result = CliRunner().invoke(command, arguments.split(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


@pytest.mark.parametrize(
    ("arguments", "route"),
    [
        ("--batch 8 --kv-len 4096", "hk"),
        ("--batch 8 --kv-len 8192", "persistent"),
        ("--batch 32 --kv-len 1024", "hk"),
        ("--batch 64 --kv-len 512", "persistent"),
        ("--batch 8", "persistent"),
        ("--batch 8 --batch-invariant", "hk"),
        ("--batch 8 --kv-len 8192 --num-splits 4", "hk"),
    ],
)
def test_route_command_prints_the_route_first(arguments: str, route: str) -> None:
    assert run(f"{SEED} {arguments}")[0] == route


def test_route_command_explains() -> None:
    lines = run(f"{SEED} --batch 8 --kv-len 4096")
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "why",
        "heads",
        "splits",
        "time",
        "runner-up",
    ]
    text = "\n".join(lines)
    assert "configs/tuned/gfx950/mla_decode.csv:5" in text
    assert "rows = nhead 32 x q_len 4 = 128 -> 8 tiles of 16, none masked" in text
    assert "16 per request" in text
    assert "65.1 us (MI355X 2026-05-01 published aiter#3003" in text
    assert "persistent 75.7 us (hk takes 14.0 % less)" in text


def test_route_command_prints_json() -> None:
    facts = json.loads("\n".join(run(f"{SEED} --batch 8 --kv-len 4096 --json")))
    assert (facts["route"], facts["num_splits"], facts["padded_nhead"]) == ("hk", 16, 32)
    assert facts["shape"]["kv_dtype"] == "fp8_e4m3fn"


def test_route_command_spells_fp8_as_the_target_does() -> None:
    facts = json.loads("\n".join(run("--target gfx942 --dtype bf16/fp8 --batch 8 --json")))
    assert (facts["shape"]["q_dtype"], facts["shape"]["kv_dtype"]) == ("bf16", "fp8_e4m3fnuz")


def test_route_command_takes_defaults_from_a_model() -> None:
    arguments = "--target gfx950 --model deepseek-v3-tp4 --q-len 4 --dtype fp8 --batch 8"
    assert run(f"{arguments} --kv-len 4096")[0] == "hk"


def test_route_command_needs_no_compiler_and_writes_nothing(tmp_path: Path) -> None:
    arguments = [*SEED.split(), "--batch", "8", "--kv-len", "4096"]
    env = {name: text for name, text in os.environ.items() if not name.startswith("HIPDECODE_")}
    env |= {
        "PATH": "",
        "HIPDECODE_CXX": "no-such-compiler",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    env["HIPDECODE_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "hipdecode.cli", "route", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=env,
    )
    assert done.stdout.splitlines()[0] == "hk"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", list(load_models()))
def test_models_are_supported_on_every_family(name: str) -> None:
    model = find_model(name)
    for family in FAMILIES:
        spelled = targets.resolve(family)
        for q_dtype, kv_dtype in model.dtypes:
            for q_len in model.q_len:
                check_supported(
                    nhead=model.nhead,
                    q_len=q_len,
                    dtypes=(spelled.dtype(q_dtype), spelled.dtype(kv_dtype)),
                    head_dims=(model.head_dim_qk, model.head_dim_v),
                    page_size=model.page_size,
                )


@pytest.mark.parametrize(
    ("model", "why"),
    [("deepseek-v3.2", "near v32 nhead 128,"), ("deepseek-v4", "near v4 nhead 128,")],
)
def test_route_command_takes_the_format_from_a_model(model: str, why: str) -> None:
    lines = run(f"--target gfx950 --model {model} --batch 64")
    assert lines[0].endswith("splits")
    assert why in "\n".join(lines)


def test_find_model_lists_names_when_unknown() -> None:
    with pytest.raises(BadArgument, match=r"model: expected one of deepseek-v2-lite, .*got gpt"):
        find_model("gpt")


def test_route_command_explains_the_splits_of_sparse_decode() -> None:
    lines = run("--op sparse_mla_decode --target gfx950 --nhead 64 --batch 2 --q-len 2")
    assert lines[0] == "11 splits"
    text = "\n".join(lines)
    assert (
        "sparse_splits, the rule, says 11, since configs/tuned/gfx950/sparse_mla_decode.csv" in text
    )
    assert "no rows near v32 nhead 64, 256 compute units" in text
    assert "11 per token (256 compute units)" in text


def test_route_command_prints_json_of_sparse_decode() -> None:
    arguments = "--op sparse_mla_decode --format v4 --target sm_90 --batch 3 --num-splits 4 --json"
    facts = json.loads("\n".join(run(arguments)))
    assert facts["shape"]["tokens"] == 3
    assert facts["num_splits"] == 4
    assert facts["reason"] == "split count given by the caller"
