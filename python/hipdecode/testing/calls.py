# SPDX-License-Identifier: MIT
"""One decode call of a test, plain or checked against the oracle."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import hipdecode
from hipdecode.testing import cases, compare, reference
from hipdecode.testing.cases import Case, MlaInputs
from hipdecode.testing.reference import Attention


@functools.lru_cache(maxsize=8)
def prepared(case: Case) -> tuple[MlaInputs, Attention]:
    """Inputs and oracle of a case; shared by the calls, so nobody may write to them."""
    inputs = cases.make_inputs(case)
    return inputs, reference.mla_decode(**inputs)


def decode(inputs: MlaInputs, call: str, **more: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Runs `hipdecode.mla_decode` with LSE.

    Args:
        inputs: the tensors, on the device of the target.
        call: a route, with a split count after a dash where it takes one: "hk-3".
        more: further keyword arguments of mla_decode.

    Returns:
        (o, lse).
    """
    route, _, splits = call.partition("-")
    num_splits = int(splits) if splits else None
    o, lse = hipdecode.mla_decode(
        **inputs, **more, route=route, num_splits=num_splits, return_lse=True
    )
    return o, lse


def captured(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """What replays one call: a graph on a GPU, the call itself on a CPU."""
    call()
    if device.type == "cpu":
        return call
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def bits(*tensors: Tensor) -> list[Tensor]:
    """Copies to compare bit for bit, NaN included."""
    return [tensor.contiguous().view(torch.uint8).clone() for tensor in tensors]


def assert_alone_or_at_once(calls: Sequence[tuple[Callable[[], object], Tensor, Tensor]]) -> None:
    """Run calls on a CUDA stream each, many times in turns, and compare with each run alone.

    Args:
        calls: a call, and the output and log-sum-exp that it writes.

    Raises:
        AssertionError: the bits of a result depend on what the other streams did.
    """
    alone = []
    for call, out, lse in calls:
        call()
        torch.cuda.synchronize()
        alone.append(bits(out, lse))
        out.zero_()
    streams = [torch.cuda.Stream() for _ in calls]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    for _ in range(50):
        for (call, *_), stream in zip(calls, streams, strict=True):
            with torch.cuda.stream(stream):
                call()
    torch.cuda.synchronize()
    for (_, out, lse), wanted in zip(calls, alone, strict=True):
        assert all(map(torch.equal, bits(out, lse), wanted))


@dataclass(frozen=True, slots=True)
class Checker:
    """Runs cases into NaN-filled outputs and compares o and lse with the oracle.

    Attributes:
        target: resolved target name, for tolerances.
        device: where its tensors live.
    """

    target: str
    device: torch.device

    def __call__(self, case: Case, call: str, **more: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Runs and compares one case; `call` and `more` as in decode()."""
        print(f"{case} {call} seed {case.seed}")
        inputs, want = prepared(case)
        shape = (inputs["q"].shape[0], case.nhead, case.head_dim_v)
        out = torch.full(shape, float("nan"), dtype=case.out_dtype, device=self.device)
        lse = torch.full(shape[:2], float("nan"), device=self.device)
        placed = cases.to_device(inputs, self.device)
        got, got_lse = decode(placed, call, out=out, lse=lse, **more)
        for name, had, has in (("out", out, got), ("lse", lse, got_lse)):
            if had.data_ptr() != has.data_ptr():
                raise compare.Mismatch(f"{name}: expected the caller's storage, got another")
        compare.assert_decode_matches(
            case, inputs, out, lse, target=self.target, want=want, call=call
        )
        return out, lse
