# SPDX-License-Identifier: MIT
"""What a call runs, as torch's dispatcher sees it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every op, and the addresses of the tensors that hipdecode's ops get.

    Attributes:
        ops: by name, in order.
        work: those that are no views: they launch a kernel, or allocate.
        addresses: of the arguments of hipdecode's ops, None for what is no tensor.
    """

    def __init__(self) -> None:
        """Starts empty."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[str] = []
        self.work: list[str] = []
        self.addresses: list[tuple[int | None, ...]] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Notes an op and runs it."""
        name = str(func)
        self.ops.append(name)
        if not func.is_view:
            self.work.append(name)
        if name.startswith("hipdecode"):
            pointers = [a.data_ptr() if isinstance(a, Tensor) else None for a in args]
            self.addresses.append(tuple(pointers))
        return func(*args, **(kwargs or {}))
