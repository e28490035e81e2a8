# SPDX-License-Identifier: MIT
"""Every implementation that can be timed on a decode case: ours, torch's, the engines', plug-ins.

The CPU kernels of serving engines are there when their package is importable; anything else comes
from a plug-in, a function named on the command line that returns a peer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import hipdecode
from hipdecode import dispatch, target
from hipdecode.errors import BadArgument
from hipdecode.testing.bench_case import DecodeCase, Peer
from hipdecode.testing.torch_peers import torch_peers


def route_of(
    case: DecodeCase,
    where: target.Target,
    forced: str | None,
    num_splits: int | None = None,
    tile_rows: int | None = None,
) -> dispatch.Route:
    """What the tables say about a case, or what is forced on it."""
    spec = case.spec
    return dispatch.route_mla_decode(
        dispatch.DecodeShape(
            family=where.family,
            compute_units=where.compute_units(),
            batch=case.batch,
            nhead=spec.nhead,
            q_len=case.q_len,
            kv_len=-(-case.tokens // case.batch),
            max_kv_len=max(spec.kv_lens),
            q_dtype=spec.q_dtype,
            kv_dtype=spec.kv_dtype,
            page_size=spec.page_size,
            head_dim_qk=spec.head_dim_qk,
            head_dim_v=spec.head_dim_v,
            route=forced,
            num_splits=num_splits,
            tile_rows=tile_rows,
        )
    )


@dataclass(frozen=True, slots=True)
class Hipdecode:
    """This package.

    Attributes:
        name: see Peer.
        route: the kernel to force, None for what the tables choose. Where that is `persistent` its
            plan is made beforehand, as a serving engine makes it once per step for all layers.
        num_splits: the split count to force on hk, None for what the package chooses.
        tile_rows: likewise the query rows of a tile.
    """

    name: str = "hipdecode"
    route: str | None = None
    num_splits: int | None = None
    tile_rows: int | None = None

    def supports(self, case: DecodeCase) -> str | None:
        """Every case here is drawn from what the package supports."""
        del case
        return None

    def prepare(self, case: DecodeCase) -> Callable[[], Tensor]:
        """See Peer."""
        inputs, out = case.inputs, case.new_output()
        workspace = hipdecode.Workspace(case.device)
        plan = None
        choice = (self.route, self.num_splits, self.tile_rows)
        if route_of(case, target.current(), *choice).route == "persistent":
            plan = hipdecode.plan_mla_decode(
                inputs["qo_indptr"],
                inputs["kv_indptr"],
                nhead=case.spec.nhead,
                max_seqlen_q=inputs["max_seqlen_q"],
                page_size=case.spec.page_size,
                kv_last_page_lens=inputs["kv_last_page_lens"],
            )
        # a call with a plan and without a context walks the plan
        kv_len = None if plan is not None else case.tokens // case.batch

        def run() -> Tensor:
            hipdecode.mla_decode(
                **inputs,
                out=out,
                plan=plan,
                route=self.route,
                num_splits=self.num_splits,
                tile_rows=self.tile_rows,
                kv_len=kv_len,
                workspace=workspace,
            )
            return out

        return run


@dataclass(frozen=True, slots=True)
class BlockTableKernel:
    """The call shape of vLLM's `mla_decode_kvcache` (CPU): pages of 16, one query per sequence.

    Several query tokens run as sequences of their own, each one key longer than the one before.

    Attributes:
        kernel: (out, query, kv_cache, scale, block_tables, seq_lens) -> None.
        name: see Peer.
    """

    kernel: Callable[..., None]
    name: str = "vllm"

    def supports(self, case: DecodeCase) -> str | None:
        """bf16, fp16 or fp32, head dims 576/512."""
        if _fp8_or_mixed(case):
            return "no fp8 KV"
        dims = (case.spec.head_dim_qk, case.spec.head_dim_v)
        return None if dims == (576, 512) else f"head dims {dims}"

    def prepare(self, case: DecodeCase) -> Callable[[], Tensor]:
        """See Peer."""
        block = 16
        q, pool = case.inputs["q"], case.inputs["kv_buffer"]
        blocks = [-(-n // block) for n in case.spec.kv_lens]
        order = torch.randperm(sum(blocks), generator=torch.Generator().manual_seed(1)).int()
        cache = torch.zeros(sum(blocks), block, q.shape[-1], dtype=q.dtype)
        table = torch.zeros(case.batch, max(blocks), dtype=torch.int32)
        taken = 0
        for request, count in enumerate(blocks):
            mine = order[taken : taken + count]
            taken += count
            table[request, :count] = mine
            keys = torch.zeros(count * block, q.shape[-1], dtype=q.dtype)
            slots = case.slots(request)
            keys[: slots.numel()] = pool.view(-1, q.shape[-1])[slots]
            cache[mine.long()] = keys.view(count, block, -1)
        table = table.repeat_interleave(case.q_len, 0)
        lens = _row_lens(case).int()
        out = case.new_output()

        def run() -> Tensor:
            self.kernel(out, q, cache, case.scale, table, lens)
            return out

        return run


@dataclass(frozen=True, slots=True)
class TokenPoolKernel:
    """The call shape of SGLang's `decode_attention_cpu`: a pool of tokens, fp32 split partials.

    Attributes:
        kernel: the op, called with the arguments of its schema.
        name: see Peer.
        splits: KV splits; SGLang's backend uses 8.
    """

    kernel: Callable[..., None]
    name: str = "sglang"
    splits: int = 8

    def supports(self, case: DecodeCase) -> str | None:
        """bf16 or fp16 with head_dim_qk = head_dim_v + 64."""
        if _fp8_or_mixed(case):
            return "no fp8 KV"
        dims = (case.spec.head_dim_qk, case.spec.head_dim_v)
        return None if dims[0] == dims[1] + 64 else f"head dims {dims}"

    def prepare(self, case: DecodeCase) -> Callable[[], Tensor]:
        """See Peer."""
        q = case.inputs["q"]
        rows, head_dim_v = q.shape[0], case.spec.head_dim_v
        table = torch.zeros(case.batch, max(case.spec.kv_lens), dtype=torch.int32)
        for request, length in enumerate(case.spec.kv_lens):
            table[request, :length] = case.slots(request).int()
        table = table.repeat_interleave(case.q_len, 0)
        lens = _row_lens(case)
        keys = case.inputs["kv_buffer"].view(-1, 1, q.shape[-1])
        values = keys[..., :head_dim_v]
        out = case.new_output()
        partial = torch.empty(rows, case.spec.nhead, self.splits, head_dim_v + 1)
        which, loc = torch.arange(rows), torch.zeros(rows, dtype=torch.int64)
        fixed = (which, lens, case.scale, 0.0, False, -1, None, None)

        def run() -> Tensor:
            self.kernel(q, keys, values, out, None, None, loc, partial, table, *fixed)
            return out

        return run


def _fp8_or_mixed(case: DecodeCase) -> bool:
    return case.spec.kv_dtype.startswith("fp8") or case.spec.q_dtype != case.spec.kv_dtype


def _row_lens(case: DecodeCase) -> Tensor:
    """[batch * q_len] int64: keys that each query token sees."""
    ends = torch.tensor(case.spec.kv_lens)[:, None] - case.q_len + 1 + torch.arange(case.q_len)
    return ends.flatten()


def cpu_peers() -> tuple[list[Peer], dict[str, str]]:
    """Plain torch and the engines' CPU kernels importable here, and why the others are absent."""
    found = torch_peers()
    absent: dict[str, str] = {}
    try:
        importlib.import_module("vllm._C")
        found.append(BlockTableKernel(torch.ops._C.mla_decode_kvcache))
    except (ImportError, OSError, AttributeError) as error:
        absent["vllm"] = str(error)
    try:
        importlib.import_module("sgl_kernel")
        found.append(TokenPoolKernel(torch.ops.sgl_kernel.decode_attention_cpu))
    except (ImportError, OSError, AttributeError) as error:
        absent["sglang"] = str(error)
    return found, absent


def load_peer(spec: str) -> Peer:
    """The peer of a plug-in `name=module:function`; the function takes nothing and returns a Peer.

    Raises:
        BadArgument: the text is not of that form, or there is no such module or function.
    """
    name, equals, target = spec.partition("=")
    module, colon, function = target.partition(":")
    if not (name and equals and module and colon and function):
        raise BadArgument(f"--peer: expected name=module:function, got {spec!r}; name a plug-in so")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise BadArgument(
            f"--peer {spec}: expected a function that can be imported, got {error}; "
            "put its folder on PYTHONPATH"
        ) from error
    peer: Peer = make()
    if peer.name != name:
        raise BadArgument(
            f"--peer: expected {name!r} to name its peer, got {peer.name!r}; use that"
        )
    return peer
