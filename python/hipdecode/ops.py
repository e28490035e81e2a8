# SPDX-License-Identifier: MIT
"""Loads the torch binding and gives its operators fake kernels; feeds kernels to it on demand.

Nothing happens at import: the binding is loaded (and built, where no prebuilt one is found) by the
first call. The operators, all of which write into tensors of the caller:

* `mla_decode_hk`, `mla_decode_persistent`: one decode step, see `hipdecode.mla_decode`
* `mla_reduce`: merges partial results, see `hipdecode.mla_reduce`
* `mla_plan`: fills a work list, see `hipdecode.plan_mla_decode`
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

import torch

from . import settings, target
from .errors import BuildError, HipdecodeError

_CPU = 0
_MESSAGE_BYTES = 4096
_OPERATORS = ("mla_decode_hk", "mla_decode_persistent", "mla_reduce", "mla_plan")
_Function = TypeVar("_Function", bound=Callable[..., object])

_lock = threading.RLock()
_library: ctypes.CDLL | None = None
_loaded: set[str] = set()
_callbacks: list[object] = []  # ctypes callbacks must outlive the library
_cpu_target: str | None = None


def constant_when_traced(function: _Function) -> _Function:
    """Marks a pure function of constants that torch.compile calls while tracing, not in the graph.

    Same effect as torch.compiler.assume_constant_result, which would import the compiler (a second
    or more) just to set this attribute.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_traced
def load_binding() -> bool:
    """Makes torch.ops.hipdecode.* available; a no-op after the first call.

    Raises:
        BuildError: the binding is not there and could not be built.
    """
    global _library
    if _library is None:
        with _lock:
            if _library is None:
                _library = _load()
    return True


def _load() -> ctypes.CDLL:
    from .jit import ensure_binding

    path = str(ensure_binding())
    torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    library = ctypes.CDLL(path)
    prototype = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_int32, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64
    )
    callback = prototype(_load_on_demand)
    _callbacks.append(callback)
    library.hipdecode_set_loader(callback)
    for name in _OPERATORS:
        torch.library.register_fake(f"hipdecode::{name}", _writes_only)
    return library


def _writes_only(*arguments: object) -> None:
    """The fake of every operator: they return nothing and the schema says what they write.

    A call that mixes a meta tensor with real ones ends here too, and must not pass for a decode.
    """
    devices = {value.device for value in arguments if isinstance(value, torch.Tensor)}
    if len(devices) > 1:
        raise RuntimeError(f"expected all tensors on one device, got {sorted(map(str, devices))}")


def _load_on_demand(device: int, name: bytes, message: int, message_bytes: int) -> int:
    """Answers the binding's miss; an exception here would be lost, so it travels as text."""
    try:
        ensure_kernel(name.decode())
    except Exception as error:
        text = str(error).encode()[: message_bytes - 1] + b"\0"
        ctypes.memmove(message, text, len(text))
        return 1
    return 0


@constant_when_traced
def ensure_kernel(name: str) -> bool:
    """Loads a kernel for CPU tensors, building it first where it is not cached.

    Args:
        name: module and template values, e.g. `mla_decode_hk/576-512-bf16-bf16`.

    Raises:
        BuildError: it could not be built or loaded.
    """
    if name in _loaded:
        return True
    load_binding()
    with _lock:
        if name in _loaded or _library is None:
            return True
        from .jit import ensure_kernel as build

        artefact = build(cpu_target(), name)
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        failed = _library.hipdecode_load_kernel(
            ctypes.c_int32(_CPU),
            name.encode(),
            str(artefact.path).encode(),
            artefact.symbol.encode(),
            message,
            ctypes.c_int64(_MESSAGE_BYTES),
        )
        if failed:
            raise BuildError(message.value.decode(errors="replace"))
        settings.log(settings.LOG_BUILDS, f"loaded {name} from {artefact.path}")
        _loaded.add(name)
    return True


@constant_when_traced
def compute_units(device_type: str) -> int:
    """Workers that share a decode: torch's threads on a CPU, multiprocessors on a GPU."""
    if device_type == "cpu":
        return torch.get_num_threads()
    return int(torch.cuda.get_device_properties("cuda").multi_processor_count)


def loaded_kernels() -> tuple[str, ...]:
    """Names of the kernels that this process has loaded, sorted."""
    return tuple(sorted(_loaded))


def cpu_target() -> str:
    """The target whose kernels CPU tensors use: that of use_target(), else target.current()."""
    return _cpu_target or target.current().name


def use_target(name: str) -> None:
    """Makes CPU tensors use the kernels of another target of this machine, e.g. `cpu-avx2`.

    Raises:
        HipdecodeError: this machine cannot run it.
    """
    global _cpu_target
    chosen = target.resolve(name)
    if not chosen.runs_here():
        raise HipdecodeError(
            f"target: expected one that this machine runs ({', '.join(target.runnable())}), "
            f"got {chosen.name}"
        )
    with _lock:
        _cpu_target = chosen.name
        if _library is not None:
            _library.hipdecode_clear_kernels()
        _loaded.clear()
