# SPDX-License-Identifier: MIT
"""What a decode costs per KV token, by execution in the simulator: our kernels and AITER's objects.

One workgroup decodes one request at two context lengths; the difference, divided by the tokens
between them, is the cost of a token, the rest is fixed. Outputs are compared with float64 in the
same runs. Counts are not time.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hipdecode
from hipdecode import ops, settings, sim
from hipdecode.errors import BadArgument, SimulatorError
from hipdecode.paged import PagedOptions

from . import cases, paged_reference, reference, sparse_reference
from .calls import decode
from .cases import Case
from .paged_cases import PagedCase, for_target, make_paged_inputs
from .sparse_cases import SparseCase, make_sparse_inputs

Run = tuple[str, float, dict[str, Any]]
"""A kernel's symbol, its error and what was counted."""

_THREADS = 256  # of AITER's decode kernels
_SLOT = 16  # bytes of an argument in KernelArgs of csrc/py_itfs_cu/asm_mla.cu, ROCm/aiter
# AITER's hand-written kernels leave waits and LDS reuse to timing: the checks say so and would end
# the run. What they read must have been written all the same.
_OBJECT_CHECKS = ("uninitialised",)
_QUANTUM = 1  # near lockstep, for the same reason


@dataclass(frozen=True, slots=True)
class Cost:
    """One row of the comparison.

    Attributes:
        name: what is counted, e.g. `valu`.
        per_token: per KV token of the workgroup's query rows.
        fixed: what a work item costs beside its tokens.
    """

    name: str
    per_token: float
    fixed: float


@dataclass(frozen=True, slots=True)
class Costs:
    """A kernel's costs.

    Attributes:
        kernel: its symbol.
        error: largest absolute error of the output against float64, relative to its maximum.
        rows: the counts.
    """

    kernel: str
    error: float
    rows: tuple[Cost, ...]


def own(target: str, case: Case, kv_lens: tuple[int, int]) -> Costs:
    """Costs of `mla_decode_persistent` on one compute unit of a simulated target.

    Raises:
        HipdecodeError: the target is not simulated here, or a check failed.
    """

    def run(length: int) -> Run:
        inputs = cases.make_inputs(_of_length(case, length))
        sim.journal(clear=True)
        out, _ = decode(inputs, "persistent")
        entry = next(e for e in sim.journal(clear=True) if "persistent" in e["kernel"])
        return entry["kernel"], _error(out, inputs), entry["counts"]

    with settings.override(sim_compute_units=1):
        ops.use_target(target)
        return costs(run, kv_lens)


def own_sparse(target: str, case: SparseCase, lens: tuple[int, int]) -> Costs:
    """Costs of `sparse_mla_decode` for one token, unsplit; see own().

    Raises:
        HipdecodeError: the target is not simulated here, or a check failed.
    """

    def run(length: int) -> Run:
        inputs = make_sparse_inputs(dataclasses.replace(case, lens=(length,)))
        sim.journal(clear=True)
        out, _ = hipdecode.sparse_mla_decode(**inputs, num_splits=1, return_lse=True)
        (entry,) = sim.journal(clear=True)
        want = sparse_reference.sparse_mla_decode(**inputs).o
        return entry["kernel"], error_of(out, want), entry["counts"]

    with settings.override(sim_compute_units=1):
        ops.use_target(target)
        return costs(run, lens)


def own_paged(target: str, case: PagedCase, lens: tuple[int, int], num_splits: int = 1) -> Costs:
    """Costs of `paged_attention` for one request, all its blocks; see own().

    Raises:
        HipdecodeError: the target is not simulated here, or a check failed.
    """

    def run(length: int) -> Run:
        inputs = make_paged_inputs(for_target(dataclasses.replace(case, lens=(length,)), target))
        sim.journal(clear=True)
        options = PagedOptions(max_seqlen_q=case.mtp, num_splits=num_splits)
        out = hipdecode.paged_attention(**inputs, options=options)
        (entry,) = sim.journal(clear=True)
        want = paged_reference.paged_attention(**inputs, max_seqlen_q=case.mtp).o
        return entry["kernel"], error_of(out, want), entry["counts"]

    with settings.override(sim_compute_units=1):
        ops.use_target(target)
        return costs(run, lens)


def aiter_object(file: Path, case: Case, kv_lens: tuple[int, int]) -> Costs:
    """Costs of one of AITER's persistent decode kernels (`hsa/gfx950/mla/*_ps.co`).

    Raises:
        BadArgument: the file is none of them.
        SimulatorError: it cannot be executed.
    """
    if not file.name.endswith("_ps.co"):
        raise BadArgument(
            f"{file.name}: expected a persistent MLA decode kernel (*_ps.co), got another; "
            "choose one of hsa/gfx950/mla"
        )
    program = sim.Program(file)
    kernel = str(program.kernels()[0]["kernel"])

    def run(length: int) -> Run:
        one = _of_length(case, length)
        inputs = cases.make_inputs(one)
        rows = inputs["q"].shape[0]
        out = torch.full((rows, one.nhead, one.head_dim_v), float("nan"), dtype=one.out_dtype)
        kernarg, kept = _kernarg(file.name, one, inputs, out)
        counts = program.launch(
            kernel, kernarg, threads=_THREADS,
            options=sim.SimOptions(checks=_OBJECT_CHECKS, quantum=_QUANTUM),
        )  # fmt: skip
        del kept  # the kernel's own memory must outlive the launch
        return kernel, _error(out, inputs), counts

    return costs(run, kv_lens)


def _kernarg(
    name: str, case: Case, inputs: cases.MlaInputs, out: Tensor
) -> tuple[bytes, list[Tensor]]:
    """The arguments of a launch with one workgroup and one work item per request."""
    q, kv = inputs["q"], inputs["kv_buffer"]
    starts, pages = inputs["qo_indptr"].tolist(), inputs["kv_indptr"].tolist()
    items = [
        (n, -1, starts[n], starts[n + 1], pages[n], pages[n + 1], 0, 0)
        for n in range(len(case.q_lens))
    ]
    work = torch.tensor(items, dtype=torch.int32)
    work_indptr = torch.tensor([0, len(items)], dtype=torch.int32)
    meta = torch.tensor([work_indptr.data_ptr(), work.data_ptr(), *[0] * 8])
    partial = torch.zeros(out.shape, dtype=torch.float32)
    lse = torch.zeros(out.shape[:2])
    kept = [work, work_indptr, meta, partial, lse]
    packed_rows = case.nhead * (1 if "qseqlen" in name else case.q_lens[0])
    last = inputs["kv_last_page_lens"]
    scale = case.sm_scale or case.head_dim_qk**-0.5
    page_bytes = kv.stride(0) * kv.element_size()
    row_bytes = q.stride(0) * q.element_size() * case.q_lens[0]
    slots: list[Tensor | float | int | None] = [
        partial, lse, q, kv, inputs["kv_indptr"], inputs["kv_indices"], last, float(scale),
        packed_rows, 1, row_bytes, page_bytes, case.page_size.bit_length() - 1,
        inputs["qo_indptr"], meta, out, inputs["q_scale"], inputs["kv_scale"], 1, lse, None, 1, 0,
    ]  # fmt: skip
    return b"".join(map(_slot, slots)), kept


def _slot(value: Tensor | float | int | None) -> bytes:
    if isinstance(value, float):
        packed = struct.pack("<f", value)
    elif isinstance(value, int):
        packed = struct.pack("<I", value)
    else:
        packed = struct.pack("<Q", 0 if value is None else value.data_ptr())
    return packed.ljust(_SLOT, b"\0")


def _of_length(case: Case, length: int) -> Case:
    return dataclasses.replace(case, kv_lens=(length,) * len(case.q_lens))


def _error(out: Tensor, inputs: cases.MlaInputs) -> float:
    return error_of(out, reference.mla_decode(**inputs).o)


def error_of(out: Tensor, want: Tensor) -> float:
    """Largest error relative to the largest value.

    Raises:
        SimulatorError: it is no rounding.
    """
    error = (out.double() - want).abs().max() / want.abs().max()
    if not error < 0.1:
        raise SimulatorError(
            f"decode: expected the output within 10 % of float64, got {float(error):.3f}; the "
            "object takes other arguments than these, or has a defect"
        )
    return float(error)


def costs(run: Callable[[int], Run], kv_lens: tuple[int, int]) -> Costs:
    """What a kernel costs, from runs at two context lengths."""
    runs = [run(length) for length in kv_lens]
    counts = [_flat(one[2]) for one in runs]
    short, long = kv_lens
    rows = []
    for name in sorted({*counts[0], *counts[1]}):
        first, second = counts[0].get(name, 0), counts[1].get(name, 0)
        per_token = (second - first) / (long - short)
        rows.append(Cost(name, per_token, first - per_token * short))
    return Costs(runs[0][0], max(error for _, error, _ in runs), tuple(rows))


def _flat(counts: dict[str, Any]) -> dict[str, int]:
    total = counts["sum"]
    flat = {name: value for name, value in total.items() if isinstance(value, int)}
    flat |= {f"class {name}": value for name, value in total["by_class"].items()}
    flat |= {f"opcode {name}": value for name, value in counts["by_mnemonic"].items()}
    return flat
