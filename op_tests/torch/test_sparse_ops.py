# SPDX-License-Identifier: MIT
"""Sparse decode as torch and its callers see it: schema, compile, allocations, refusals, splits."""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import hipdecode
from hipdecode import registry, sparse, sparse_route, split_rule
from hipdecode import target as targets
from hipdecode.errors import BadArgument, UnsupportedShape, WorkspaceError
from hipdecode.sparse_cache import V4, CacheFormat
from hipdecode.testing.cases import DTYPES
from hipdecode.testing.recorder import Recorder
from hipdecode.testing.sparse_cases import (
    SparseCase,
    SparseInputs,
    assert_sparse_matches,
    for_target,
    make_sparse_inputs,
    to_device,
)

FNUZ = torch.float8_e4m3fnuz
pytestmark = pytest.mark.usefixtures("sparse_kernels")

CASE = SparseCase("v4", 12, lens=(300, 70), extra_lens=(20, 90), layout="lengths", sink="normal")


@pytest.fixture
def inputs(target: str, device: torch.device) -> SparseInputs:
    """The tensors of CASE where the target has them."""
    return to_device(make_sparse_inputs(for_target(CASE, target)), device)


def _outputs(device: torch.device) -> dict[str, Tensor]:
    out = torch.empty(2, 12, 512, dtype=torch.bfloat16, device=device)
    return {"out": out, "lse": torch.empty(2, 12, device=device)}


def _op_arguments(i: SparseInputs) -> tuple[object, ...]:
    """Positional arguments of the registered op."""
    out, lse = torch.zeros(2, 12, 512, dtype=torch.bfloat16), torch.zeros(2, 12)
    scratch = (torch.zeros(6, 12, 512), torch.zeros(6, 12), torch.zeros(2, dtype=torch.int32))
    flavours = (i["kv_dtype"] == FNUZ, i["extra_kv_dtype"] == FNUZ)
    main = (i["cache"], i["indices"], i["indptr"], i["lengths"])
    extra = (i["extra_cache"], i["extra_indices"], i["extra_indptr"], i["extra_lengths"])
    return (i["q"], *main, *extra, i["attn_sink"], out, lse, *scratch, 3, 0.05, *flavours)


def test_sparse_op_passes_opcheck(inputs: SparseInputs, device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("opcheck of host tensors: runs on any CPU machine")
    op = torch.ops.hipdecode.sparse_mla_decode.default
    torch.library.opcheck(op, _op_arguments(inputs))


@pytest.mark.usefixtures("device")
def test_sparse_op_runs_on_fake_tensors() -> None:
    arguments = _op_arguments(make_sparse_inputs(CASE))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments]
        assert torch.ops.hipdecode.sparse_mla_decode(*fakes) is None


@pytest.mark.parametrize("splits", [None, 3])
def test_sparse_mla_decode_compiles_without_graph_breaks(
    splits: int | None, inputs: SparseInputs
) -> None:
    def call(inputs: SparseInputs) -> tuple[Tensor, Tensor]:
        out, lse = hipdecode.sparse_mla_decode(**inputs, num_splits=splits, return_lse=True)
        return out, lse

    want, want_lse = call(inputs)
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        out, lse = compiled(inputs)
        assert torch.equal(out, want)
        assert torch.equal(lse, want_lse)


# An allocation, a copy to the host and .item() would each be an op of torch's own.
@pytest.mark.parametrize("splits", [None, 1, 3])
def test_sparse_mla_decode_runs_nothing_but_its_op_in_steady_state(
    splits: int | None, inputs: SparseInputs, device: torch.device
) -> None:
    more: dict[str, Any] = {**_outputs(device), "num_splits": splits, "return_lse": True}
    hipdecode.sparse_mla_decode(**inputs, **more)
    with Recorder() as recorder:
        environment = dict(os.environ)  # here: entering it loads modules of torch that write to it
        hipdecode.sparse_mla_decode(**inputs, **more)
    assert recorder.ops == ["hipdecode.sparse_mla_decode.default"]
    assert dict(os.environ) == environment


def test_sparse_mla_decode_uses_the_workspace_of_the_caller(
    inputs: SparseInputs, target: str, device: torch.device
) -> None:
    workspace = hipdecode.Workspace(device)
    for _ in range(2):
        out, lse = hipdecode.sparse_mla_decode(
            **inputs, num_splits=3, return_lse=True, workspace=workspace
        )
        assert_sparse_matches(inputs, out, lse, target, "workspace")
    if device.type == "cuda":  # splits merge in the memory of their cluster
        assert workspace.nbytes == 0
        return
    assert workspace.nbytes >= 2 * 3 * 12 * 513 * 4
    small = hipdecode.Workspace(device, max_bytes=1000)
    with pytest.raises(WorkspaceError, match="max_bytes"):
        hipdecode.sparse_mla_decode(**inputs, num_splits=3, workspace=small)


def test_sparse_mla_decode_takes_caches_of_fp8_type_and_four_dimensions(
    inputs: SparseInputs, target: str
) -> None:
    dtype = inputs["kv_dtype"]
    inputs["cache"] = inputs["cache"][:, :, None].view(dtype)
    del inputs["kv_dtype"], inputs["extra_kv_dtype"]  # type: ignore[misc]
    out, lse = hipdecode.sparse_mla_decode(**inputs, return_lse=True)
    inputs.update(kv_dtype=dtype, extra_kv_dtype=torch.float8_e4m3fn)
    assert_sparse_matches(inputs, out, lse, target, "fp8 tensor")


@pytest.mark.parametrize(
    ("form", "main", "name"),
    [
        (V4, "fp8_e4m3fn", "v4-bf16-fp8_e4m3fn-fp8_e4m3fn"),
        (V4, "fp8_e4m3fnuz", "v4-bf16-fp8_e4m3fnuz-fp8_e4m3fn"),
        ("v32", "fp8_e4m3fnuz", "v32-bf16-fp8_e4m3fnuz-fp8_e4m3fnuz"),
    ],
)
def test_warmup_sparse_loads_the_kernel_of_a_format(
    form: CacheFormat | str, main: str, name: str, target: str, device: torch.device
) -> None:
    found = sparse.warmup_sparse(form, kv_dtype=DTYPES[main], device=device)
    rows = registry.wanted_rows(targets.resolve(target).family, 128)
    assert found == f"sparse_mla_decode/{name}-{rows}"
    assert found in hipdecode.ops.loaded_kernels()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": torch.zeros(2, 12, 576, dtype=torch.bfloat16)}, r"q: expected \[tokens, .*512\]"),
        ({"q": torch.zeros(2, 12, 512)}, "q: expected .* bf16"),
        ({"q": torch.zeros(2, 129, 512, dtype=torch.bfloat16)}, "q: expected"),
        ({"q": torch.zeros(2, 512, dtype=torch.bfloat16)}, "q: expected a 3-D tensor"),
        ({"cache": torch.zeros(2, 4, 600, dtype=torch.uint8)}, "cache: expected"),
        ({"cache": None}, "cache: expected a tensor"),
        ({"extra_cache": torch.zeros(2, 4, 656, dtype=torch.uint8)}, "extra_cache: expected 584"),
        ({"extra_cache": None}, "extra_cache: expected a tensor beside extra_indices"),
        ({"extra_indices": None}, "extra_indices: expected a tensor, got None"),
        ({"indices": torch.zeros(2, 9)}, "indices: expected a contiguous torch.int32"),
        (
            {"indices": torch.zeros(9, dtype=torch.int32)},
            r"indices: expected \[2, topk\] or indptr",
        ),
        ({"indptr": torch.zeros(3, dtype=torch.int32)}, r"indptr: expected \[3\] and no lengths"),
        (
            {"indptr": torch.zeros(2, dtype=torch.int32), "lengths": None},
            r"indptr: expected \[3\]",
        ),
        ({"lengths": torch.zeros(3, dtype=torch.int32)}, r"lengths: expected \[2\]"),
        ({"lengths": torch.zeros(2)}, "lengths: expected"),
        ({"attn_sink": torch.zeros(11)}, r"attn_sink: expected \[12\]"),
        ({"attn_sink": torch.zeros(12, dtype=torch.bfloat16)}, "attn_sink: expected"),
        ({"sm_scale": float("nan")}, "sm_scale: expected"),
        ({"sm_scale": torch.ones(())}, "sm_scale: expected"),
        ({"out": torch.zeros(2, 12, 511, dtype=torch.bfloat16)}, "out: expected"),
        ({"lse": torch.zeros(2, 11), "return_lse": True}, "lse: expected"),
        ({"num_splits": 0}, "num_splits: expected"),
        ({"num_splits": 1025}, "num_splits: expected"),
        ({"max_keys": -1}, "max_keys: expected"),
        ({"kv_dtype": torch.float8_e5m2}, "kv_dtype"),
        ({"workspace": 3}, "workspace: expected"),
    ],
)
def test_sparse_mla_decode_names_the_argument_that_is_wrong(
    changed: dict[str, Any], message: str, inputs: SparseInputs, device: torch.device
) -> None:
    out = torch.full((2, 12, 512), 7.0, dtype=torch.bfloat16, device=device)
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in changed.items()}
    with pytest.raises(BadArgument, match=message):
        hipdecode.sparse_mla_decode(**{**inputs, "out": out, **moved})
    assert (out == 7.0).all()


def test_sparse_mla_decode_lists_the_flavours_it_has(inputs: SparseInputs) -> None:
    inputs.update(kv_dtype=torch.float8_e4m3fn, extra_kv_dtype=FNUZ)
    with pytest.raises(UnsupportedShape, match="expected for v4 one of fp8_e4m3fn and fp8_e4m3fn;"):
        hipdecode.sparse_mla_decode(**inputs)


@pytest.mark.parametrize(
    ("tokens", "nhead", "units", "keys", "splits"),
    [
        (1, 128, 1, 2048, 1),
        (1, 128, 2, 2048, 2),
        (2, 128, 2, 2048, 1),
        (3, 128, 2, 2048, 2),
        (1, 128, 132, 2048, 11),
        (64, 128, 132, 2048, 2),
        (128, 64, 132, 2048, 1),
        (1, 16, 304, 40, 1),
        (1, 16, 304, 0, 1),
        (0, 16, 304, 2048, 11),
    ],
)
def test_sparse_splits_leave_no_compute_unit_idle_that_pays(
    tokens: int, nhead: int, units: int, keys: int, splits: int
) -> None:
    got = sparse_route.sparse_splits(tokens=tokens, nhead=nhead, compute_units=units, max_keys=keys)
    assert got == splits


def test_sparse_splits_never_make_pieces_that_are_less_than_the_least() -> None:
    for tokens, units, keys in itertools.product((1, 7, 130), (2, 80, 256), range(0, 3000, 61)):
        splits = sparse_route.sparse_splits(
            tokens=tokens, nhead=64, compute_units=units, max_keys=keys
        )
        assert 1 <= splits <= sparse_route.MAX_SPLITS
        assert splits == 1 or keys > (splits - 1) * split_rule.MIN_PIECE
