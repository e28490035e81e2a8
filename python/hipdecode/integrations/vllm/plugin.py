# SPDX-License-Identifier: MIT
"""vLLM's plugin: MLA through hipdecode, chosen by `--attention-backend CUSTOM`.

vLLM calls `register` through its entry-point group `vllm.general_plugins` in each of its processes.
The backend then stands under CUSTOM, the name that vLLM keeps for backends of others: it is known
in every process before plugins are loaded, which names added later are not.

A CPU build of vLLM always takes CPU_MLA. There, vLLM's `register_backend` puts hipdecode in its
place: `register_backend(AttentionBackendEnum.CPU_MLA, BACKEND)`.
"""

from __future__ import annotations

import logging

BACKEND = "hipdecode.integrations.vllm.backend.HipdecodeMLABackend"
"""The backend's class, as vLLM names classes."""
SPARSE_BACKEND = "hipdecode.integrations.vllm.sparse_backend.HipdecodeSparseMLABackend"
"""That of sparse attention."""
CHOICE = "hipdecode.integrations.vllm.choice.Backend"
"""The one of the two that the model wants."""

logger = logging.getLogger("hipdecode.vllm")


def register() -> None:
    """Puts the backend under CUSTOM unless another plugin has taken it; may be called again."""
    try:
        from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

        custom = AttentionBackendEnum.CUSTOM
    except (ImportError, AttributeError) as error:
        logger.warning(
            "vllm: expected 0.32 or newer, whose registry of attention backends has CUSTOM, got "
            "one without it (%s); hipdecode is not registered",
            error,
        )
        return
    if custom.is_overridden() and custom.get_path() != CHOICE:
        logger.warning(
            "--attention-backend CUSTOM: expected to be free, got %s of another plugin; name one "
            "of the two in VLLM_PLUGINS",
            custom.get_path(),
        )
        return
    register_backend(custom, CHOICE)
