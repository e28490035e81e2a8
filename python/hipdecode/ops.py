# SPDX-License-Identifier: MIT
"""Loads the torch binding and gives its operators fake kernels; feeds kernels to it on demand.

Nothing happens at import: the binding is loaded (and built, where no prebuilt one is found) by the
first call. The operators, all of which write into tensors of the caller:

* `mla_decode_hk`, `mla_decode_persistent`: one decode step, see `hipdecode.mla_decode`
* `mla_reduce`: merges partial results, see `hipdecode.mla_reduce`
* `mla_plan`: fills a work list, see `hipdecode.plan_mla_decode`
* `sparse_mla_decode`: see `hipdecode.sparse_mla_decode`
* `paged_attention`: see `hipdecode.paged_attention`
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import torch

from . import settings, target
from .errors import BuildError, HipdecodeError, NotWarmed
from .short_way import ShortWay, open_short_way

_KINDS = {"cpu": 0, "hip": 1, "cuda": 2, "sim": 3}  # as runtime::DeviceKind
_MESSAGE_BYTES = 4096
_OPERATORS = (
    "mla_decode_hk", "mla_decode_persistent", "mla_reduce", "mla_reduce_decode",
    "mla_decode_reduce", "mla_plan", "sparse_mla_decode", "paged_attention",
)  # fmt: skip
_Function = TypeVar("_Function", bound=Callable[..., object])

_lock = threading.RLock()
_library: ctypes.CDLL | None = None
_loaded: set[tuple[str, str]] = set()  # device, kernel
_callbacks: list[object] = []  # ctypes callbacks must outlive the library
_cpu_target: target.Target | None = None
short_way: ShortWay | None = None
"""How calls like earlier ones reach their kernels; None before the first call, or for good."""


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

    Returns:
        True: what torch.compile makes of the call is a constant.

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
        ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.c_char_p, ctypes.c_void_p,
        ctypes.c_int64,
    )  # fmt: skip
    callback = prototype(_load_on_demand)
    _callbacks.append(callback)
    library.hipdecode_set_loader(callback)
    _set_devices(library, target_of("cpu"))
    global short_way
    short_way = open_short_way(path)
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


def _set_devices(library: ctypes.CDLL, cpu: target.Target) -> None:
    """Tells the binding which driver serves tensors on the CPU and on torch's `cuda` devices."""
    if cpu.driver == "sim":
        from .jit import ensure_simulator

        now = settings.current()
        library.hipdecode_set_simulator(
            str(ensure_simulator()).encode(),
            cpu.arch.encode(),
            ctypes.c_int64(cpu.compute_units()),
            ctypes.c_uint64(now.sim_seed),
            ctypes.c_uint32(sum(1 << settings.SIM_CHECKS.index(name) for name in now.sim_checks)),
        )
    library.hipdecode_set_tensor_devices(
        ctypes.c_int32(_KINDS[cpu.driver]),
        ctypes.c_int32(_KINDS["hip" if torch.version.hip else "cuda"]),
    )


def _load_on_demand(kind: int, index: int, name: bytes, message: int, message_bytes: int) -> int:
    """Answers the binding's miss; an exception here would be lost, so it travels as text."""
    try:
        on_cpu = kind in (_KINDS["cpu"], _KINDS["sim"])
        ensure_kernel(name.decode(), "cpu" if on_cpu else f"cuda:{index}")
    except Exception as error:
        text = str(error).encode()[: message_bytes - 1] + b"\0"
        ctypes.memmove(message, text, len(text))
        return 1
    return 0


@constant_when_traced
def ensure_kernel(name: str, device: torch.device | str = "cpu") -> bool:
    """Loads a kernel for the tensors of a device, building it first where it is not cached.

    Args:
        name: module and template values, e.g. `mla_decode_hk/576-512-bf16-bf16`.
        device: `cpu`, or torch's `cuda:0`, `cuda:1`, ... (GPUs, on ROCm too).

    Raises:
        BuildError: it could not be built or loaded.
        NotWarmed: the device's current stream is being captured.
    """
    if (str(device), name) in _loaded:
        return True
    load_binding()
    with _lock:
        where = torch.device(device)
        index = _index(where)
        key = ("cpu" if where.type == "cpu" else f"cuda:{index}", name)
        if key in _loaded or _library is None:
            return True
        from .jit import ensure_kernel as build

        _check_not_capturing(where, name)
        owner = target_of(device)
        artefact = build(owner.name, name)
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        failed = _library.hipdecode_load_kernel(
            ctypes.c_int32(_KINDS[owner.driver]),
            ctypes.c_int32(index),
            name.encode(),
            str(artefact.path).encode(),
            artefact.symbol.encode(),
            message,
            ctypes.c_int64(_MESSAGE_BYTES),
        )
        if failed:
            raise BuildError(message.value.decode(errors="replace"))
        settings.log(settings.LOG_BUILDS, f"loaded {name} for {device} from {artefact.path}")
        _loaded.add(key)
    return True


def _check_not_capturing(device: torch.device, name: str) -> None:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise NotWarmed(
            f"kernel {name}: expected it to be loaded before the graph capture, got its first use "
            "inside; call hipdecode.warmup() (sparse: warmup_sparse()) or run the step once before"
        )


def _index(device: torch.device) -> int:
    if device.type == "cpu":
        return 0
    return torch.cuda.current_device() if device.index is None else device.index


def target_of(device: torch.device | str) -> target.Target:
    """The target whose kernels the tensors of a device use.

    On the CPU that of use_target(), else of HIPDECODE_TARGET, else the best of this machine.

    Raises:
        TargetError: no kernels are built for that device.
    """
    where = torch.device(device)
    if where.type != "cpu":
        return target.of_gpu(_index(where))
    return _cpu_target or _named_cpu_target(settings.current().target)


@lru_cache
def _named_cpu_target(name: str | None) -> target.Target:
    """HIPDECODE_TARGET where tensors on the CPU can use it, else the best of this machine."""
    named = target.current()
    return named if named.device_type == "cpu" else target.resolve("cpu")


@constant_when_traced
def family_and_units(device: torch.device) -> tuple[str, int]:
    """Whose dispatch table a device reads, and how many compute units share a decode there."""
    if device.type != "cpu":
        return _gpu_family_and_units(_index(device))
    owner = _cpu_target or _named_cpu_target(settings.current().target)
    return owner.family, owner.compute_units()


def cpu_state() -> tuple[object, ...]:
    """What family_and_units() of the CPU follows from; cheap, for keys of what was found out."""
    now, used = settings.current(), _cpu_target
    return used and used.name, now.target, now.sim_compute_units, torch.get_num_threads()


@lru_cache
def _gpu_family_and_units(index: int) -> tuple[str, int]:
    return target.of_gpu(index).family, target.gpus()[index].compute_units


def compute_units(device: torch.device | str) -> int:
    """Workers that share a decode: torch's threads on a CPU, compute units of a GPU."""
    return family_and_units(torch.device(device))[1]


def loaded_kernels() -> tuple[str, ...]:
    """Names of the kernels that this process has loaded, for whatever device; sorted."""
    return tuple(sorted({name for _, name in _loaded}))


def use_target(name: str) -> None:
    """Makes a target that this machine runs the one in use, e.g. `cpu-avx2` or `sim:gfx950`.

    Tensors on the CPU use its kernels from then on; a GPU's own target is always in use for
    tensors there, so naming it changes nothing.

    Raises:
        HipdecodeError: this machine cannot run it.
    """
    global _cpu_target
    chosen = target.resolve(name)
    if not chosen.runs_here():
        raise HipdecodeError(
            f"target: expected one that this machine runs ({', '.join(target.all_runnable())}), "
            f"got {chosen.name}"
        )
    if chosen.device_type != "cpu":
        return
    with _lock:
        _cpu_target = chosen
        if _library is not None:
            _set_devices(_library, chosen)
            _library.hipdecode_clear_kernels()
        _loaded.clear()
