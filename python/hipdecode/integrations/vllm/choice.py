# SPDX-License-Identifier: MIT
"""`Backend`: the class that the model at hand wants, under the one name vLLM keeps for others.

vLLM looks a backend up by its path for each layer, while the configuration is in force.
"""

from __future__ import annotations

from vllm.config import get_current_vllm_config_or_none

from hipdecode.integrations.vllm.backend import HipdecodeMLABackend


def __getattr__(name: str) -> type:
    """The backend of sparse attention where the model has an indexer, else that of dense.

    Raises:
        AttributeError: another name.
    """
    if name != "Backend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    config = get_current_vllm_config_or_none()
    model = None if config is None else config.model_config
    if model is None or not hasattr(model.hf_text_config, "index_topk"):
        return HipdecodeMLABackend
    # imported here: vLLM's part of it exists in newer versions only
    from hipdecode.integrations.vllm.sparse_backend import HipdecodeSparseMLABackend

    return HipdecodeSparseMLABackend
