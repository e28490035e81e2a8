# SPDX-License-Identifier: MIT
"""The short way of a decode call: from Python's objects to the launch, without torch's dispatcher.

Reading seventeen arguments takes the dispatcher 3 us; the binding reads the same tensors through
DLPack's C exchange in half a microsecond. A call goes the short way where an earlier one of the
same shape went the long way, so building, routing and complaints are the long way's alone. Anything
that wants to see operators (a dispatch mode, a trace, a profiler) gets them: then this module
stands back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch

LONG_WAY, SERVED, SCRATCH_MISSING, PLAN_MISSING = range(4)
"""What becomes of a call, as Outcome in csrc/torch/short_way.h."""


@dataclass(frozen=True, slots=True)
class ShortWay:
    """Functions of the binding; csrc/torch/short_way.h says what each takes.

    Attributes:
        decode: tensors, choices, scratch and plan of one call; returns what became of it.
        learn: the same, the route's name and its splits: such calls are served from now on.
        pack_plan: the tensors and numbers of a plan as the bytes that `decode` takes.
        pack_scratch: likewise those of a workspace.
        plan: packed arguments of mla_plan and new lengths; returns whether it was launched.
        pack_planning: the arguments of the operator mla_plan as the bytes that `plan` takes.
        sparse: the arguments of the operator sparse_mla_decode; returns what became of the call.
    """

    decode: Callable[..., int]
    learn: Callable[..., None]
    pack_plan: Callable[..., bytes | None]
    pack_scratch: Callable[..., bytes | None]
    plan: Callable[..., int]
    pack_planning: Callable[..., bytes | None]
    sparse: Callable[..., int]


def open_short_way(path: str) -> ShortWay | None:
    """The short way of a binding; None where torch (before 2.11) cannot exchange tensors in C."""
    capsule = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return None
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    make = ctypes.PyDLL(path).hipdecode_short_way
    make.restype = ctypes.c_void_p
    make.argtypes = [ctypes.c_void_p, ctypes.py_object, ctypes.py_object]
    exchange = pointer(capsule, b"dlpack_exchange_api")
    made = make(exchange, torch.Tensor, torch.nn.Parameter)
    if not made:
        return None
    functions = ctypes.cast(made, ctypes.py_object).value
    return ShortWay(*functions)


def is_watched() -> bool:
    """Whether somebody wants to see operators: a dispatch mode, a trace or a profiler."""
    return bool(_dispatch_modes() or _profiler_enabled() or _tracing_state() is not None)


_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
_profiler_enabled = torch._C._autograd._profiler_enabled
