# SPDX-License-Identifier: MIT
"""Scratch memory of decode calls: partial results, arrival counters and plans.

A step must not allocate once it is warm. So scratch is kept between calls, one workspace per thread
and device (or the caller's own), and grows only when a larger step comes, never inside a graph
capture. On a GPU what it has outgrown stays: a graph captured before writes to it at every replay.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import NotWarmed, WorkspaceError
from .plan import MlaPlan

_MAX_KEPT = 16
_NOT_WARMED = (
    "workspace: expected enough memory from before the capture, got a larger step; "
    "run the largest step once before capturing"
)
_RESERVE = 1 << 18  # counters: one for each request and tile of 16 query rows


class SplitScratch(NamedTuple):
    """What `mla_decode_hk` needs beside its output when contexts are split.

    Attributes:
        partial_output: [rows * num_splits, nhead, head_dim_v] fp32.
        partial_lse: [rows * num_splits, nhead] fp32, natural log.
        arrivals: [batch * row tiles] int32, zero between calls.
    """

    partial_output: Tensor
    partial_lse: Tensor
    arrivals: Tensor


class Workspace:
    """Scratch that decode calls share; not for two calls at once.

    Args:
        device: where the tensors live.
        max_bytes: growing beyond this raises WorkspaceError; None for no bound.
    """

    def __init__(self, device: torch.device | str = "cpu", max_bytes: int | None = None) -> None:
        """Starts empty."""
        self.device = torch.device(device)
        self.max_bytes = max_bytes
        self._floats = torch.empty(0, dtype=torch.float32, device=self.device)
        self._arrivals = torch.zeros(0, dtype=torch.int32, device=self.device)
        self._splits: OrderedDict[tuple[int, ...], SplitScratch] = OrderedDict()
        self._plans: OrderedDict[tuple[object, ...], MlaPlan] = OrderedDict()
        self._outgrown: list[Tensor] = []
        self._packed: bytes | None = None
        self.last_plan: MlaPlan | None = None
        """The plan of the last call that made its own here."""
        _all.add(self)

    @property
    def nbytes(self) -> int:
        """Bytes held, plans included."""
        plans = sum(_list_bytes(plan) for plan in self._plans.values())
        outgrown = sum(tensor.nbytes for tensor in self._outgrown)
        return self._floats.nbytes + self._arrivals.nbytes + outgrown + plans

    def packed(self, pack: Callable[..., bytes | None]) -> bytes | None:
        """What the short way of a call needs of it, made once; `pack` is its pack_scratch."""
        if self._packed is None:
            self._packed = pack(self._floats, self._arrivals)
        return self._packed

    def splits(
        self, rows: int, nhead: int, head_dim_v: int, num_splits: int, counters: int
    ) -> SplitScratch:
        """Scratch for `rows` query rows in `num_splits` pieces.

        Raises:
            WorkspaceError: it would exceed max_bytes.
            NotWarmed: it would have to grow during a graph capture.
        """
        key = (rows, nhead, head_dim_v, num_splits, counters)
        found = self._splits.get(key)
        if found is not None:
            return found
        partials = self.partials(rows * num_splits, nhead, head_dim_v)
        if counters > self._arrivals.numel():
            self._arrivals = self._more_counters(counters)
        if len(self._splits) >= _MAX_KEPT:
            self._splits.popitem(last=False)
        found = self._splits[key] = SplitScratch(*partials, self._arrivals)
        return found

    def partials(self, rows: int, nhead: int, head_dim_v: int) -> tuple[Tensor, Tensor]:
        """[rows, nhead, head_dim_v] and [rows, nhead] fp32; the same memory in every call.

        Raises:
            WorkspaceError: it would exceed max_bytes.
            NotWarmed: it would have to grow during a graph capture.
        """
        values = rows * nhead
        outputs = values * head_dim_v
        if outputs + values > self._floats.numel():
            self._floats = self._grown(self._floats, outputs + values)
        return (
            self._floats[:outputs].view(rows, nhead, head_dim_v),
            self._floats[outputs : outputs + values].view(rows, nhead),
        )

    def plan(self, key: tuple[object, ...]) -> MlaPlan | None:
        """The plan kept under a key, most recently used last; None for a new key."""
        found = self._plans.get(key)
        if found is not None:
            self._plans.move_to_end(key)
        return found

    def keep_plan(self, key: tuple[object, ...], plan: MlaPlan) -> None:
        """Keeps a plan, whose partial results lie here, for the next call with this key.

        Raises:
            WorkspaceError: it would exceed max_bytes.
        """
        self._check_growth(_list_bytes(plan))
        if not self._graphs and len(self._plans) >= _MAX_KEPT:
            self._plans.popitem(last=False)
        self._plans[key] = plan

    @property
    def _graphs(self) -> bool:
        """Whether a graph may hold addresses of this memory."""
        return self.device.type == "cuda"

    def _grown(self, tensor: Tensor, count: int) -> Tensor:
        """A larger tensor in the place of one that is too small."""
        self._check_growth(count * tensor.element_size())
        twice = 2 * tensor.numel()  # what stays behind is never more than what is in use
        size = tensor.element_size()
        within = self.max_bytes is None or self.nbytes + twice * size <= self.max_bytes
        larger = torch.empty(
            max(count, twice) if self._graphs and within else count,
            dtype=tensor.dtype,
            device=self.device,
        )
        if self._graphs:
            self._outgrown.append(tensor)
        self._splits.clear()
        self._packed = None
        return larger

    def _more_counters(self, count: int) -> Tensor:
        return self._grown(self._arrivals, count).zero_()

    def _check_growth(self, more: int) -> None:
        if _is_capturing(self.device):
            raise NotWarmed(_NOT_WARMED)
        if self.max_bytes is not None and self.nbytes + more > self.max_bytes:
            raise WorkspaceError(
                f"workspace: expected at most {self.max_bytes} bytes, got a step that needs "
                f"{self.nbytes + more}; raise max_bytes or lower num_splits"
            )


def _list_bytes(plan: MlaPlan) -> int:
    tensors = (
        plan.work_metadata_ptrs,
        plan.work_indptr,
        plan.work_info_set,
        plan.reduce_indptr,
        plan.reduce_final_map,
        plan.reduce_partial_map,
    )
    return sum(tensor.nbytes for tensor in tensors)


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class _StreamWorkspace(Workspace):
    """A stream's own. It may grow in a capture, whose stream is rarely the one that was warm.

    The memory is then the graph's, and is kept. Counters must be zero before the first replay, so
    they come from a reserve that an earlier call has filled.
    """

    def _more_counters(self, count: int) -> Tensor:
        if not _is_capturing(self.device):
            return super()._more_counters(count)
        reserve = _mine.zeros.get(str(self.device))
        if reserve is None or reserve.numel() < count:
            raise NotWarmed(_NOT_WARMED)
        _mine.zeros[str(self.device)] = reserve[count:]
        return reserve[:count]

    def _check_growth(self, more: int) -> None:
        if not _is_capturing(self.device):
            super()._check_growth(more)


class _PerThread(threading.local):
    """Threads decode at once, so each has workspaces of its own."""

    def __init__(self) -> None:
        self.by_device: dict[tuple[str, int], Workspace] = {}
        self.zeros: dict[str, Tensor] = {}


_all: weakref.WeakSet[Workspace] = weakref.WeakSet()
_mine = _PerThread()


def default_workspace(device: torch.device) -> Workspace:
    """This thread's persistent workspace for a device (on GPUs: for its current stream)."""
    stream = torch.cuda.current_stream(device).stream_id if device.type == "cuda" else 0
    key = (str(device), stream)
    found = _mine.by_device.get(key)
    if found is None:
        if device.type == "cuda" and str(device) not in _mine.zeros and not _is_capturing(device):
            _mine.zeros[str(device)] = torch.zeros(_RESERVE, dtype=torch.int32, device=device)
        found = _mine.by_device[key] = _StreamWorkspace(device)
    return found


def split_scratch(
    q: Tensor,
    shape: tuple[int, int, int],
    num_splits: int,
    counters: int,
    workspace: Workspace | None,
) -> SplitScratch | tuple[None, None, None]:
    """Scratch of a call that cuts its keys into pieces; of the caller's workspace or this thread's.

    Args:
        q: of the call; where the scratch lies.
        shape: (rows, nhead, head_dim_v) of the output.
        num_splits: pieces; nothing is needed for one.
        counters: arrival counters at least.
        workspace: the caller's.

    Raises:
        WorkspaceError: it would exceed max_bytes.
        NotWarmed: it would have to grow during a graph capture.
    """
    if num_splits == 1:
        return None, None, None
    rows, nhead, head_dim_v = shape
    if workspace is None and torch.compiler.is_compiling():  # the compiler plans this memory
        return SplitScratch(
            q.new_empty((rows * num_splits, nhead, head_dim_v), dtype=torch.float32),
            q.new_empty((rows * num_splits, nhead), dtype=torch.float32),
            q.new_zeros((counters,), dtype=torch.int32),
        )
    if workspace is None:
        workspace = default_workspace(q.device)
    return workspace.splits(rows, nhead, head_dim_v, num_splits, counters)


def workspace_bytes() -> int:
    """Bytes held by all workspaces of this process."""
    return sum(workspace.nbytes for workspace in _all)
