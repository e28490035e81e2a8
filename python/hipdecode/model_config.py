# SPDX-License-Identifier: MIT
"""A model's attention out of its config.json, as its authors publish it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .errors import BadArgument
from .models import ModelShape, find_model

_WORDS = {"bfloat16": "bf16", "float16": "fp16"}
_V4 = "deepseek_v4"


def read_model(name: str) -> ModelShape:
    """The attention of a model, on one rank.

    Args:
        name: one of `configs/models.json`, or the path of a config.json or of its folder.

    Raises:
        BadArgument: neither is there, or the file does not describe an attention.
    """
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        if path.suffix == ".json" or len(path.parts) > 1:
            raise BadArgument(f"model: expected a readable config.json, got none at {path}")
        return find_model(name)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadArgument(f"model: expected JSON in {path}, got {error}; correct it") from error
    if not isinstance(config, dict):
        raise BadArgument(f"model: expected an object in {path}, got {type(config).__name__}")
    nested = config.get("text_config")
    return _shape_of({**config, **nested} if isinstance(nested, dict) else config, path)


def on_rank(model: ModelShape, ranks: int) -> ModelShape:
    """The share of one of `ranks` tensor-parallel ranks.

    Raises:
        BadArgument: the heads cannot be divided so.
    """
    if ranks < 1 or model.nhead % ranks:
        raise BadArgument(
            f"tp: expected a divisor of the {model.nhead} heads of {model.name}, got {ranks}; "
            "choose one"
        )
    # Ranks beyond the kv heads hold copies of them.
    nhead_kv = None if model.nhead_kv is None else max(1, model.nhead_kv // ranks)
    return replace(model, nhead=model.nhead // ranks, nhead_kv=nhead_kv)


def _shape_of(config: Mapping[str, Any], path: Path) -> ModelShape:
    kind = str(config.get("model_type", path.parent.name))
    nhead = _positive(config, "num_attention_heads", path)
    nhead_kv = None
    sparse = None
    if kind.startswith(_V4):
        sparse, head_dim_qk, head_dim_v = "v4", 512, 512
    elif config.get("kv_lora_rank") is not None:
        head_dim_v = _positive(config, "kv_lora_rank", path)
        head_dim_qk = head_dim_v + _positive(config, "qk_rope_head_dim", path)
        sparse = "v32" if config.get("index_topk") else None
    else:
        nhead_kv = _positive({"num_key_value_heads": nhead, **config}, "num_key_value_heads", path)
        given = config.get("head_dim")
        head_dim_qk = int(given) if given else _positive(config, "hidden_size", path) // nhead
        head_dim_v = head_dim_qk
    drafts = config.get("num_nextn_predict_layers") or 0
    word = _WORDS.get(str(config.get("dtype") or config.get("torch_dtype")), "bf16")
    return ModelShape(
        name=kind,
        summary=str(path),
        nhead=nhead,
        head_dim_qk=head_dim_qk,
        head_dim_v=head_dim_v,
        q_len=(1, 1 + int(drafts)) if drafts else (1,),
        page_size=64,
        dtypes=() if sparse else ((word, word), (word, "fp8")),
        sparse=sparse,
        nhead_kv=nhead_kv,
    )


def _positive(config: Mapping[str, Any], key: str, path: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise BadArgument(f"{key}: expected a number of 1 or more in {path}, got {value!r}")
    return value
