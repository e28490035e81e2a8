# SPDX-License-Identifier: MIT
"""Comparison with the oracle: derived tolerances, and a failure message that ends the search."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from hipdecode.paths import configs_dir
from hipdecode.testing import cases, reference
from hipdecode.testing.reference import Attention

Names = Callable[[tuple[int, ...]], str]

_DTYPE_NAMES = {dtype: name for name, dtype in cases.DTYPES.items()}
_FP8_ROUNDING = 2.0**-4  # of e4m3 weights, which have a smallest step besides


class Mismatch(AssertionError):
    """An output differs from the oracle by more than its roundings explain."""


@cache
def tolerances() -> dict[str, Any]:
    """configs/tolerances.json; its `derivation` says what each number is."""
    text = (configs_dir() / "tolerances.json").read_text(encoding="utf-8")
    return cast("dict[str, Any]", json.loads(text))


def probability_rounding(target: str, q_dtype: torch.dtype | None = None) -> float:
    """Rounding of the softmax weights before the second product on a resolved target.

    Args:
        target: its name; a simulated one rounds as the real one does.
        q_dtype: type of the query, which is that of the weights on GPUs; None: not rounded there.
    """
    table = tolerances()["probability"]
    rounding = table.get(target.removeprefix("sim:"), table["default"])
    if isinstance(rounding, dict):
        name = _DTYPE_NAMES[q_dtype] if q_dtype is not None else ""
        rounding = rounding.get(name, table["default"])
    return float(rounding)


def allowed_output(
    want: Attention, dtype: torch.dtype, target: str, q_dtype: torch.dtype | None = None
) -> Tensor:
    """Largest admissible |o - reference| of each element, float64, the shape of o.

    Args:
        want: the oracle's answer.
        dtype: of the output.
        target: resolved name of the target.
        q_dtype: as in `probability_rounding`.
    """
    rules = tolerances()
    output = rules["output"][_DTYPE_NAMES[dtype]]
    size = want.o.abs()
    independent = size + rules["spread"] * want.l2
    allowed: Tensor = (
        output["u_out"] * size
        + output["tiny"]
        + probability_rounding(target, q_dtype) * torch.minimum(want.l1, independent)
        + (rules["u_acc"] + rules["u_logit"] * want.logit_bound[..., None]) * (want.l1 + size)
    )
    if probability_rounding(target, q_dtype) >= _FP8_ROUNDING:
        return allowed + want.faint[..., 0]
    # GPUs take weights in fp16 where the cache is fp16 or, on sm_90, fp8
    gpu = isinstance(rules["probability"].get(target.removeprefix("sim:")), dict)
    return allowed + want.faint[..., 1] if gpu else allowed


def allowed_lse(want: Attention) -> Tensor:
    """Largest admissible |lse - reference| of each element, float64, the shape of lse."""
    rules = tolerances()
    finite = torch.where(want.lse.isfinite(), want.lse.abs(), torch.zeros_like(want.lse))
    allowed: Tensor = (
        rules["lse_abs"] + rules["lse_rel"] * finite + rules["u_logit"] * want.logit_bound
    )
    return allowed


def logical_names(qo_indptr: Sequence[int]) -> Names:
    """Turns an index of o or lse into (batch, row, head, column) of the request it belongs to."""

    def name(index: tuple[int, ...]) -> str:
        row = index[0]
        batch = bisect.bisect_right(qo_indptr, row) - 1
        inside = f"batch {batch}, row {row - qo_indptr[batch]} (token row {row})"
        if row >= qo_indptr[-1]:
            inside = f"padding row {row}"
        labels = [
            inside,
            *(f"{n} {i}" for n, i in zip(("head", "column"), index[1:], strict=False)),
        ]
        return ", ".join(labels)

    return name


def plain_names(*labels: str) -> Names:
    """Turns an index into `label value` pairs."""
    return lambda index: ", ".join(f"{n} {i}" for n, i in zip(labels, index, strict=False))


def ulps(actual: float, expected: float, dtype: torch.dtype) -> float:
    """Distance in units of the last place of `dtype` at `expected`; inf if either is not finite."""
    if not (math.isfinite(actual) and math.isfinite(expected)):
        return 0.0 if actual == expected else math.inf
    info = torch.finfo(dtype)
    exponent = math.floor(math.log2(max(abs(expected), info.tiny)))
    return abs(actual - expected) / (info.eps * 2.0**exponent)


@cases.one_thread()
def assert_close(
    actual: Tensor,
    expected: Tensor,
    allowed: Tensor,
    *,
    what: str,
    names: Names | None = None,
    seed: int | None = None,
    repro: str = "",
) -> None:
    """Raises Mismatch when an element differs by more than `allowed`.

    NaN must meet NaN and an infinity the same infinity.

    Args:
        actual: what the kernel wrote, any float dtype and device.
        expected: float64, the same shape.
        allowed: float64, the same shape.
        what: the name of the tensor, for the message.
        names: turns an index into logical names.
        seed: the seed of the inputs, for the message.
        repro: one line of Python that rebuilds the inputs, for the message.
    """
    if actual.shape != expected.shape:
        raise Mismatch(f"{what}: expected shape {list(expected.shape)}, got {list(actual.shape)}")
    got = actual.detach().cpu().to(torch.float64)
    same = (got == expected) | (got.isnan() & expected.isnan())
    excess = (got - expected).abs() / allowed.clamp(min=1e-300)
    excess = torch.where(same, torch.zeros_like(excess), excess)
    excess = torch.where(excess.isnan(), torch.full_like(excess, math.inf), excess)
    wrong = excess > 1.0
    count = int(wrong.sum())
    if count == 0:
        return
    index = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
    a, e, limit = float(got[index]), float(expected[index]), float(allowed[index])
    where = names(index) if names else f"index {index}"
    lines = [
        f"{what}: {count} of {wrong.numel()} elements differ; the worst is at {where}",
        f"  got {a:.9g}, expected {e:.9g}: |difference| {abs(a - e):.3g}, allowed {limit:.3g}, "
        f"{ulps(a, e, actual.dtype):.1f} ulps of {_DTYPE_NAMES[actual.dtype]}",
    ]
    if seed is not None:
        lines.append(f"  seed {seed}")
    if repro:
        lines.append(f"  repro: {repro}")
    raise Mismatch("\n".join(lines))


@cases.one_thread()
def assert_decode_matches(
    case: cases.Case,
    inputs: cases.MlaInputs,
    o: Tensor,
    lse: Tensor | None,
    *,
    target: str,
    want: Attention | None = None,
    call: str = "",
) -> None:
    """Compares one decode call with the oracle.

    Args:
        case: where the inputs come from; only for tolerances and messages.
        inputs: what the kernel was given.
        o: [rows, nhead, head_dim_v].
        lse: [rows, nhead] fp32 natural log, or None.
        target: resolved target name, for the rounding of the weights.
        want: the oracle's answer where the caller has it already.
        call: how the call was made (route, splits), for the message.
    """
    on_host = cases.to_device(inputs, "cpu")
    want = reference.mla_decode(**on_host) if want is None else want
    names = logical_names(inputs["qo_indptr"].tolist())
    repro = f"{cases.repro(case)}  # {call}" if call else cases.repro(case)
    if lse is not None:
        assert_close(
            lse, want.lse, allowed_lse(want), what="lse", names=names, seed=case.seed, repro=repro
        )
    allowed = allowed_output(want, o.dtype, target, inputs["q"].dtype)
    assert_close(o, want.o, allowed, what="o", names=names, seed=case.seed, repro=repro)
