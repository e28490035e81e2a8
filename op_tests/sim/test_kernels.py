# SPDX-License-Identifier: MIT
"""The operators on the simulator: the very code objects of gfx950 and gfx942, a fast subset.

`make test-sim` runs the whole kernel suite there.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hipdecode import ops, settings
from hipdecode import target as targets
from hipdecode.testing import cases, compare, rank_cases
from hipdecode.testing.calls import Checker, decode
from hipdecode.testing.cases import Case

REPO = Path(__file__).parents[2]
FP8 = {"gfx950": "fp8_e4m3fn", "gfx942": "fp8_e4m3fnuz"}
SMALL = Case(q_lens=(2, 1), kv_lens=(90, 40), nhead=8, head_dim_qk=96, head_dim_v=64, page_size=16)


@pytest.fixture(params=["gfx950", "gfx942"])
def arch(request: pytest.FixtureRequest) -> Iterator[str]:
    """Puts a simulated GPU of a few compute units behind CPU tensors for one test."""
    name = f"sim:{request.param}"
    if not targets.resolve(name).runs_here():
        pytest.skip(f"{name}: needs a machine with clang-22, lld-22 and llvm-22-dev")
    before = ops.target_of("cpu").name
    with settings.override(sim_compute_units=3):
        ops.use_target(name)
        yield request.param
    ops.use_target(before)


@pytest.mark.parametrize("call", ["hk-1", "hk-2", "persistent"])
@pytest.mark.parametrize("kv", ["bf16", "fp8"])
def test_code_objects_decode_like_the_oracle(arch: str, kv: str, call: str) -> None:
    case = dataclasses.replace(SMALL, kv_dtype=FP8[arch] if kv == "fp8" else kv)
    Checker(f"sim:{arch}", torch.device("cpu"))(case, call)


@pytest.mark.parametrize("call", ["hk-1", "persistent"])
def test_code_objects_decode_deepseek_shapes_in_fp8(arch: str, call: str) -> None:
    fp8 = FP8[arch]
    case = Case(
        nhead=32, q_lens=(4,), kv_lens=(200,), q_dtype=fp8, kv_dtype=fp8, q_scale=0.5, kv_scale=2.0
    )
    Checker(f"sim:{arch}", torch.device("cpu"))(case, call)


@pytest.mark.parametrize("call", ["hk-2", "persistent"])
def test_code_objects_mask_a_share_of_the_cache_by_its_place_in_the_whole(
    arch: str, call: str
) -> None:
    case = dataclasses.replace(SMALL, q_lens=(4, 3), kv_lens=(390, 41))
    whole = cases.make_inputs(case)
    mine = rank_cases.share_of(case, whole, 3, 1, interleave=2, page_size=16)
    want = rank_cases.decode_share(case, whole, 3, 1, 2)
    o, lse = decode(mine, call, shard=rank_cases.shard_of(case, 3, 1, 2))
    compare.assert_decode_matches(case, mine, o, lse, target=f"sim:{arch}", want=want, call=call)


@pytest.mark.parametrize("call", ["hk-2", "persistent"])
def test_code_objects_give_the_same_bits_under_every_schedule(arch: str, call: str) -> None:
    fp8 = FP8[arch]
    case = dataclasses.replace(SMALL, nhead=64, kv_lens=(150, 70), q_dtype=fp8, kv_dtype=fp8)
    results = []
    for seed in range(3):
        with settings.override(sim_compute_units=3, sim_seed=seed):
            ops.use_target(f"sim:{arch}")
            results.append(Checker(f"sim:{arch}", torch.device("cpu"))(case, call))
    for out, lse in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(lse, results[0][1])


@pytest.mark.parametrize("shapes", ["1x512", pytest.param("2x2048,4x8192", marks=pytest.mark.sim)])
def test_code_objects_keep_the_cosine_bounds_of_the_published_kernel(
    arch: str, shapes: str
) -> None:
    script = REPO / "op_tests/op_benchmarks/hip/compare_hk_mla_h32_reference.py"
    subprocess.run(
        [sys.executable, script, "--target", f"sim:{arch}", "--shapes", shapes], check=True
    )
