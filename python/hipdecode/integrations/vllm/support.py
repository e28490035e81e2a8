# SPDX-License-Identifier: MIT
"""What both of vLLM's backends here support: machines, sizes of a block, options of a layer."""

from __future__ import annotations

from vllm.platforms import current_platform
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backend import AttentionType, MultipleOf
from vllm.v1.kv_cache_interface import AttentionSpec

from hipdecode.errors import UnsupportedShape
from hipdecode.support import MAX_NHEAD

BLOCK_SIZES = [16, 32, 64, 128, 256]
PREFERRED_BLOCK_SIZE = 64
"""The tuned tables were measured with it, and a quarter of the pages of 16 are listed per step."""
CAPABILITIES = {"cuda": ((9, 0),), "rocm": ((9, 4), (9, 5))}
"""Compute capabilities that there are kernels for: sm_90; gfx942 and gfx950 as vLLM counts them."""


class Supported:
    """The answers of a backend that do not depend on whether attention is sparse."""

    @staticmethod
    def get_name() -> str:
        """The name that it is registered under."""
        return "CUSTOM"

    @staticmethod
    def get_supported_kernel_block_sizes(
        kv_cache_spec: AttentionSpec | None = None,
    ) -> list[int | MultipleOf]:
        """Tokens of a block; multiples of these are cut by vLLM."""
        return list(BLOCK_SIZES)

    @classmethod
    def get_preferred_block_size(cls, default_block_size: int) -> int:
        """Where `--block-size` says nothing."""
        return PREFERRED_BLOCK_SIZE

    @classmethod
    def supports_compute_capability(cls, capability: DeviceCapability) -> bool:
        """Whether there are kernels for this GPU."""
        if current_platform.is_cpu():
            return True
        kind = "rocm" if current_platform.is_rocm() else "cuda"
        return (capability.major, capability.minor) in CAPABILITIES[kind]


def check_layer(nhead: int, attn_type: str, **options: object) -> None:
    """Refuses what no kernel does.

    Args:
        nhead: query heads that a rank attends with.
        attn_type: vLLM's.
        options: by vLLM's name; anything but None or nothing is refused.

    Raises:
        UnsupportedShape: names the option.
    """
    for name, value in options.items():
        if value:
            raise UnsupportedShape(
                f"{name}: expected None, got {value}; do choose another --attention-backend"
            )
    if attn_type != AttentionType.DECODER:
        raise UnsupportedShape(f"attn_type: expected decoder, got {attn_type}")
    if nhead > MAX_NHEAD:
        raise UnsupportedShape(
            f"query heads of a rank: expected at most {MAX_NHEAD}, got {nhead}; do raise "
            "--tensor-parallel-size or lower --decode-context-parallel-size"
        )
