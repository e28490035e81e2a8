#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Decode steps of all attention layers inside SGLang, with and without hipdecode.

Layers, pools, batches and the backends beside ours are SGLang's own: `triton`, and `flashinfer`
(bf16) where that is importable. In every layer the new tokens are stored and attended, the parts of
queries and keys given as SGLang's DeepSeek model gives them to that backend; a step is what the
backend does with lengths and pages beforehand and the replay of one graph of all layers. The caches
hold random latents of the lengths asked for. Needs SGLang: make test-clients.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clients"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

from sglang_engine import (
    ATTENTION_BACKENDS,
    FORWARD_ABSORB_CORE_ATTENTION_BACKENDS,
    HEAD_DIM_QK,
    HEAD_DIM_V,
    NAME,
    Engine,
    ForwardMode,
    indexable,
)

# isort: split
import sglang

from hipdecode.testing import layer_steps
from hipdecode.testing.layer_steps import Contender, Setup


class Model:
    """The layers of one setup, their pools full, and a step's batch."""

    def __init__(self, setup: Setup) -> None:
        lengths, page = setup.lengths, setup.page_size
        self.setup = setup
        self.engine = Engine(
            setup.device,
            batch=len(lengths),
            context=max(lengths) + page,
            nhead=setup.nhead,
            page_size=page,
            fp8=setup.kv_dtype == "fp8",
            layers=setup.layers,
            tokens=sum(-(-n // page) * page for n in lengths) + page,
        )
        self.rows = self.engine.serve(lengths)
        self._fill()
        self.batch = self.engine.batch(ForwardMode.DECODE, lengths, self.rows, 1)
        # SGLang's scheduler knows these
        self.batch.seq_lens_cpu = torch.tensor(lengths)
        self.batch.positions = self.batch.seq_lens - 1
        q, k = self.engine.inputs(len(lengths))
        sizes = (HEAD_DIM_V, HEAD_DIM_QK - HEAD_DIM_V)
        self.q = q.view(len(lengths), setup.nhead, HEAD_DIM_QK)
        self.q_parts = [part.contiguous() for part in self.q.split(sizes, -1)]
        self.k_parts = [part.contiguous() for part in k.split(sizes, -1)]

    def _fill(self) -> None:
        """Every layer holds what the first one does; pages that nobody owns, too."""
        pool = self.engine.runner.token_to_kv_pool
        first = indexable(pool.get_key_buffer(0))
        free = first == 0x7F if first.dtype is torch.uint8 else first.isnan()
        first.masked_fill_(free, 0)
        for layer in range(1, self.setup.layers):
            indexable(pool.get_key_buffer(layer)).copy_(first)

    def contender(self, name: str) -> Contender:
        """A backend of SGLang's registry on these pools."""
        engine, graph = self.engine, self.setup.device.type == "cuda"
        backend = engine.backend if name == NAME else ATTENTION_BACKENDS[name](engine.runner)
        attend = partial(self._attend, name in FORWARD_ABSORB_CORE_ATTENTION_BACKENDS)
        outputs: list[torch.Tensor] = []

        def begin() -> None:
            if graph:
                backend.init_cuda_graph_state(len(self.setup.lengths), len(self.setup.lengths))
                backend.init_forward_metadata_out_graph(self.batch, in_capture=True)
            else:
                backend.init_forward_metadata(self.batch)

        def prepare() -> None:
            if graph:
                backend.init_forward_metadata_out_graph(self.batch)
            else:
                backend.init_forward_metadata(self.batch)

        def layers() -> None:
            if graph:
                backend.init_forward_metadata_in_graph(self.batch)
            with engine.served_by(backend):
                outputs[:] = [attend(layer) for layer in engine.layers][:1]

        return Contender(begin, prepare, layers, lambda: self._check(outputs[0]))

    def _attend(self, in_parts: bool, layer: Any) -> torch.Tensor:
        """One layer, called as `forward_absorb_core` of SGLang's DeepSeek model does."""
        (q, q_rope), (k, k_rope) = self.q_parts, self.k_parts
        if in_parts:
            return layer(q, k, k, self.batch, q_rope=q_rope, k_rope=k_rope)
        q, rows = torch.cat([q, q_rope], -1), torch.cat([k, k_rope], -1)
        return layer(q, rows, k, self.batch)

    def _check(self, out: torch.Tensor) -> layer_steps.Checked:
        shape = (len(self.setup.lengths), self.setup.nhead)
        table, cache = self.engine.runner.req_to_token_pool.req_to_token, self.engine.cache

        def keys_of(request: int) -> torch.Tensor:
            slots = table[self.rows[request], : self.setup.lengths[request]].long()
            return indexable(cache)[slots].view(cache.dtype)[:, 0]

        return layer_steps.check_first_and_last(
            out.view(*shape, HEAD_DIM_V),
            self.q,
            keys_of,
            self.engine.layer.scaling,
        )


def build(setup: Setup) -> Mapping[str, Callable[[], Contender]]:
    """hipdecode and SGLang's backends that run on this machine."""
    model = Model(setup)
    names = [NAME, "triton" if setup.device.type == "cuda" else "torch_native"]
    # with fp8 it would widen whole pools in every layer
    if setup.device.type == "cuda" and setup.kv_dtype == "bf16" and find_spec("flashinfer"):
        names.append("flashinfer")
    return {name: partial(model.contender, name) for name in names}


@click.command(help=__doc__)
@layer_steps.options
def main(**given: object) -> None:
    """Times all backends and prints them."""
    layer_steps.run(build, {"sglang": sglang.__version__}, **given)


if __name__ == "__main__":
    main()
