# SPDX-License-Identifier: MIT
"""What sparse MLA decode may read and write: strides, garbage in index tensors, NaN, replay."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hipdecode
from hipdecode.testing.sparse_cases import (
    SparseBuffers,
    SparseCase,
    SparseInputs,
    assert_sparse_matches,
    for_target,
    make_sparse_inputs,
    to_device,
)

pytestmark = pytest.mark.usefixtures("sparse_kernels")

NAN = float("nan")
SPLITS = (1, 3)
FORMS = ("v32", "v4")


def _run(
    inputs: SparseInputs, device: torch.device, splits: int, **more: Any
) -> tuple[Tensor, Tensor]:
    placed = to_device(inputs, device)
    out, lse = hipdecode.sparse_mla_decode(**placed, num_splits=splits, return_lse=True, **more)
    return out, lse


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("form", FORMS)
def test_sparse_mla_decode_honours_strides_of_q_and_out(
    form: str, splits: int, target: str, device: torch.device
) -> None:
    case = SparseCase(form, 20, lens=(90, 150), extra_lens=(3, 70), sink="normal")
    inputs = to_device(make_sparse_inputs(for_target(case, target)), device)
    width = case.layout_of.head_dim_qk
    wide_q = torch.full((2, 40, width + 64), NAN, dtype=torch.bfloat16, device=device)
    q = wide_q[:, ::2, :width]
    q.copy_(inputs["q"])
    inputs["q"] = q
    wide_out = torch.full((3, 60, 520), 7.0, dtype=torch.bfloat16, device=device)
    out = wide_out[:2, 1::3, :512]
    got, lse = _run(inputs, device, splits, out=out)
    assert got.data_ptr() == out.data_ptr()
    assert_sparse_matches(inputs, out, lse, target, str(case))
    out.fill_(7.0)
    assert (wide_out == 7.0).all(), "out: expected nothing written outside the view"


@pytest.mark.parametrize("splits", SPLITS)
def test_sparse_mla_decode_writes_fp16(splits: int, target: str, device: torch.device) -> None:
    case = SparseCase("v4", 20, lens=(90, 150), sink="normal")
    inputs = make_sparse_inputs(for_target(case, target))
    out = torch.empty(2, 20, 512, dtype=torch.float16, device=device)
    _, lse = _run(inputs, device, splits, out=out)
    assert_sparse_matches(inputs, out, lse, target, str(case))


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "indptr",
    [(0, 500, 200, 900), (-7, 30, 30, 31), (50, 20, 60, 2**31 - 1), (-(2**31), -1, 0, 140)],
    ids=["backwards", "negative", "past-the-end", "before-the-start"],
)
def test_sparse_mla_decode_bounds_what_indptr_says(
    indptr: tuple[int, ...], form: str, splits: int, target: str, device: torch.device
) -> None:
    case = SparseCase(form, 12, lens=(40, 60, 40), extra_lens=(30, 30, 30))
    inputs = make_sparse_inputs(for_target(case, target))
    inputs["indices"] = inputs["indices"][:140].contiguous()
    inputs["extra_indices"] = inputs["extra_indices"][:90].contiguous()  # type: ignore[index]
    inputs["indptr"] = torch.tensor(indptr, dtype=torch.int32)
    inputs["extra_indptr"] = torch.tensor(indptr, dtype=torch.int32)
    out, lse = _run(inputs, device, splits)
    assert_sparse_matches(inputs, out, lse, target, str(case))


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("lengths", [(-5, 2**31 - 1), (-(2**31), 0), (1000, 45)])
def test_sparse_mla_decode_bounds_what_lengths_say(
    lengths: tuple[int, int], splits: int, target: str, device: torch.device
) -> None:
    case = SparseCase("v32", 12, lens=(45, 45), layout="lengths")
    inputs = make_sparse_inputs(for_target(case, target))
    inputs["indices"] = inputs["indices"][:, :45].contiguous()
    inputs["lengths"] = torch.tensor(lengths, dtype=torch.int32)
    out, lse = _run(inputs, device, splits)
    assert_sparse_matches(inputs, out, lse, target, str(case))


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("part", ["code", "scale", "rope"])
@pytest.mark.parametrize("form", FORMS)
def test_sparse_mla_decode_keeps_nan_of_a_key_in_the_tokens_that_see_it(
    form: str, part: str, splits: int, target: str, device: torch.device
) -> None:
    case = SparseCase(form, 20, lens=(100, 90), block_size=4)
    inputs = make_sparse_inputs(for_target(case, target))
    slot = int(inputs["indices"][50])
    block, position = divmod(slot, 4)
    cache = inputs["cache"]
    memory = cache.as_strided((cache.shape[0], cache.stride(0)), (cache.stride(0), 1))
    data = position * (656 if form == "v32" else 576)
    scale = (data + 512, 4) if form == "v32" else (4 * 576 + position * 8, 1)
    places = {
        "code": (data + 9, 1),
        "scale": scale,
        "rope": (data + (530 if form == "v32" else 450), 2),
    }
    start, width = places[part]
    fnuz_code = part == "code" and inputs["kv_dtype"] == torch.float8_e4m3fnuz
    memory[block, start : start + width] = 0x80 if fnuz_code else 0xFF
    out, lse = _run(inputs, device, splits)
    assert lse[0].isnan().all()
    assert lse[1].isfinite().all()
    assert_sparse_matches(inputs, out, lse, target, f"{case} {part}")


@pytest.mark.parametrize("splits", SPLITS)
def test_sparse_mla_decode_keeps_nan_of_one_head_in_that_head(
    splits: int, target: str, device: torch.device
) -> None:
    case = SparseCase("v4", 20, lens=(100, 40), sink="normal")
    inputs = make_sparse_inputs(for_target(case, target))
    inputs["q"][:, 5] = NAN
    inputs["q"][1, 16:] = NAN
    out, lse = _run(inputs, device, splits)
    assert_sparse_matches(inputs, out, lse, target, str(case))


@pytest.mark.parametrize("splits", SPLITS)
def test_sparse_mla_decode_keeps_a_nan_sink_in_its_head(
    splits: int, target: str, device: torch.device
) -> None:
    case = SparseCase("v4", 20, lens=(100, 40), sink="normal")
    inputs = make_sparse_inputs(for_target(case, target))
    sink = inputs["attn_sink"]
    assert sink is not None
    sink[7] = NAN
    out, lse = _run(inputs, device, splits)
    assert out[:, 7].isnan().all()
    assert_sparse_matches(inputs, out, lse, target, str(case))


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("form", FORMS)
def test_sparse_mla_decode_repeats_bit_for_bit_and_leaves_its_inputs_alone(
    form: str, splits: int, target: str, device: torch.device
) -> None:
    case = SparseCase(form, 12, lens=(700, 65, 0), extra_lens=(9, 0, 80), sink="normal")
    inputs = to_device(make_sparse_inputs(for_target(case, target)), device)
    before = {k: v.clone() for k, v in inputs.items() if isinstance(v, Tensor)}
    first, first_lse = _run(inputs, device, splits)
    for _ in range(10):
        out, lse = _run(inputs, device, splits)
        assert torch.equal(out, first)
        assert torch.equal(lse, first_lse)
    for name, value in before.items():
        assert torch.equal(inputs[name], value), f"{name}: expected to be unchanged"  # type: ignore[literal-required]


# A captured graph is replayed on the same buffers: the host never sees the new lists.
@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("layout", ["ragged", "lengths"])
@pytest.mark.parametrize("form", FORMS)
def test_sparse_mla_decode_follows_new_contents_of_the_same_buffers(
    form: str, layout: str, splits: int, target: str, device: torch.device
) -> None:
    lens = [(300, 64, 0), (0, 0, 0), (1, 299, 300), (95, 96, 97), (300, 300, 300)]
    biggest = SparseCase(form, 12, lens=(300, 300, 300), extra_lens=(300, 300, 300), layout=layout)
    buffers = SparseBuffers(biggest, target, device)
    for turn, mine in enumerate(lens):
        case = dataclasses.replace(biggest, lens=mine, extra_lens=mine[::-1], seed=turn)
        buffers.fill(case)
        _run(buffers.inputs, device, splits, out=buffers.out, lse=buffers.lse)
        assert_sparse_matches(buffers.inputs, buffers.out, buffers.lse, target, str(case))


def _copy_blocks(source: Tensor, target: Tensor) -> None:
    """Whole blocks, byte by byte."""
    count, step = source.shape[0], source.shape[1] * source.shape[2]
    flat = source.as_strided((count, step), (source.stride(0), 1))
    target.as_strided((count, step), (target.stride(0), 1)).copy_(flat)


@pytest.mark.parametrize("form", FORMS)
def test_sparse_mla_decode_gives_a_token_the_same_bits_alone(
    form: str, target: str, device: torch.device
) -> None:
    case = SparseCase(form, 12, lens=(700, 65, 0, 129), layout="lengths", sink="normal")
    inputs = to_device(make_sparse_inputs(for_target(case, target)), device)
    together, together_lse = _run(inputs, device, 4)
    for token in range(4):
        alone = inputs.copy()
        for name in ("q", "indices", "lengths"):
            alone[name] = inputs[name][token : token + 1]  # type: ignore[literal-required]
        out, lse = _run(alone, device, 4)
        assert torch.equal(out[0], together[token])
        assert torch.equal(lse[0], together_lse[token])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("boundary", [2**31, 2**32])
def test_sparse_mla_decode_addresses_pools_past_4_gib(
    form: str, boundary: int, target: str, device: torch.device, tmp_path: Path
) -> None:
    if device.type != "cpu":
        pytest.skip("lazily mapped pools are host memory: runs on any CPU machine")
    case = SparseCase(form, 12, lens=(150, 40), block_size=64)
    inputs = make_sparse_inputs(for_target(case, target))
    small = inputs["cache"]
    step = small.stride(0)
    first = boundary // step - 1
    blocks = first + small.shape[0]
    # A sparse file: only the blocks that hold keys take memory.
    path = str(tmp_path / "pool")
    memory = torch.from_file(path, shared=True, size=blocks * step, dtype=torch.uint8)
    pool = memory.as_strided((blocks, *small.shape[1:]), small.stride())
    _copy_blocks(small, pool[first:])
    inputs["cache"] = pool
    inputs["indices"] = inputs["indices"] + first * 64
    out, lse = _run(inputs, device, 3)
    assert_sparse_matches(inputs, out, lse, target, str(case))
