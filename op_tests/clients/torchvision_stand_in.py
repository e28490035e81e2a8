# SPDX-License-Identifier: MIT
"""Import it before SGLang: where torchvision does not load, empty modules take its name.

SGLang imports it for image models alone; its wheels from the index want a PyTorch for GPUs.
transformers is asked first whether it is there, and remembers the answer.
"""

from __future__ import annotations

import enum
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from transformers.utils import is_torchvision_available, is_torchvision_v2_available


class InterpolationMode(enum.Enum):
    """The one name that configurations of image models read when they are imported."""

    BICUBIC = "bicubic"


def stand_in() -> None:
    """Registers the modules, each with the one name."""
    is_torchvision_available()
    is_torchvision_v2_available()
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        module = sys.modules[name] = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        module.InterpolationMode = InterpolationMode
        package, _, own = name.rpartition(".")
        if package:
            setattr(sys.modules[package], own, module)


try:
    import torchvision.transforms  # noqa: F401
except (ImportError, RuntimeError):
    stand_in()
