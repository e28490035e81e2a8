# SPDX-License-Identifier: MIT
"""Everyone else's MLA decode on a GPU: plain torch, FlashInfer, FlashMLA, SGLang's Triton kernel.

An engine's kernel is a contender where its package is importable; none is a dependency. What an
engine does once per step (work lists, page tables) is made beforehand, as ours is.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hipdecode.testing.bench_case import DecodeCase, Peer
from hipdecode.testing.torch_peers import causal_tail

_FLASHINFER_BYTES = 128 << 20
_FLASHMLA_PAGE = 64


@dataclass(frozen=True, slots=True)
class TorchGathered:
    """Plain torch: one gather for all requests, batched products and a softmax.

    torch's own attention has no fast form for keys of 576 columns.
    """

    name: str = "torch_bmm"
    version: str = f"torch {torch.__version__}"

    def supports(self, case: DecodeCase) -> str | None:
        """One length for all requests; more would need padding."""
        return None if len(set(case.spec.kv_lens)) == 1 else "contexts of several lengths"

    def prepare(self, case: DecodeCase) -> Callable[[], Tensor]:
        """See Peer."""
        slots = torch.stack([case.slots(b) for b in range(case.batch)])
        pool = case.inputs["kv_buffer"].view(-1, case.spec.head_dim_qk)
        tail, out = causal_tail(case), case.new_output()
        q = case.inputs["q"].view(case.batch, -1, case.spec.head_dim_qk)

        def run() -> Tensor:
            keys = _rows(pool, slots.flatten()).to(q.dtype).view(*slots.shape, -1)
            scores = torch.bmm(q, keys.mT).float().mul_(case.scale)
            if tail is not None:
                scores[..., -tail.shape[1] :].masked_fill_(tail, -torch.inf)
            values = keys[..., : case.spec.head_dim_v]
            out.copy_(torch.bmm(scores.softmax(-1).to(q.dtype), values).view(out.shape))
            return out

        return run


def _rows(pool: Tensor, slots: Tensor) -> Tensor:
    # torch gathers no fp8: the same bytes under another name.
    if pool.element_size() > 1:
        return pool.index_select(0, slots)
    return pool.view(torch.uint8).index_select(0, slots).view(pool.dtype)


@dataclass(frozen=True, slots=True)
class FlashInfer:
    """FlashInfer's BatchMLAPagedAttentionWrapper.

    Attributes:
        module: the imported package.
        backend: `fa2` or `fa3`.
    """

    module: ModuleType
    backend: str

    @property
    def name(self) -> str:
        """See Peer."""
        return f"flashinfer_{self.backend}"

    @property
    def version(self) -> str:
        """Of the package."""
        return f"flashinfer {self.module.__version__}"

    def supports(self, case: DecodeCase) -> str | None:
        """Head dims 576/512; 16-bit q, KV of its dtype or bf16 beside e4m3fn."""
        return _unlike_deepseek(case) or (
            None
            if case.spec.q_dtype == case.spec.kv_dtype != "fp8_e4m3fn"
            or (case.spec.q_dtype, case.spec.kv_dtype) == ("bf16", "fp8_e4m3fn")
            else f"{case.spec.q_dtype} q beside {case.spec.kv_dtype} KV"
        )

    def prepare(self, case: DecodeCase) -> Callable[[], Tensor]:
        """See Peer."""
        inputs, dim_v = case.inputs, case.spec.head_dim_v
        scratch = torch.empty(_FLASHINFER_BYTES, dtype=torch.int8, device=case.device)
        wrapper = self.module.mla.BatchMLAPagedAttentionWrapper(scratch, backend=self.backend)
        q, pool = inputs["q"], inputs["kv_buffer"].squeeze(2)
        wrapper.plan(
            inputs["qo_indptr"],
            inputs["kv_indptr"],
            inputs["kv_indices"],
            _kv_lens(case),
            case.spec.nhead,
            dim_v,
            case.spec.head_dim_qk - dim_v,
            case.spec.page_size,
            case.q_len > 1,
            case.scale,
            q.dtype,
            pool.dtype,
        )
        parts = (q[..., :dim_v], q[..., dim_v:], pool[..., :dim_v], pool[..., dim_v:])
        scales = {"ckv_scale": 1.0, "kpe_scale": 1.0} if pool.element_size() == 1 else {}
        out = case.new_output()

        def run() -> Tensor:
            wrapper.run(*parts, out=out, **scales)
            return out

        return run


@dataclass(frozen=True, slots=True)
class FlashMla:
    """DeepSeek's FlashMLA, dense decode.

    Attributes:
        module: the imported package.
    """

    module: ModuleType
    name: str = "flashmla"

    @property
    def version(self) -> str:
        """Of the package."""
        return f"flash_mla {getattr(self.module, '__version__', 'unnamed')}"

    def supports(self, case: DecodeCase) -> str | None:
        """Head dims 576/512, pages of 64, 16-bit q and KV."""
        if case.spec.page_size != _FLASHMLA_PAGE:
            return f"pages of {_FLASHMLA_PAGE} only"
        if case.spec.q_dtype != case.spec.kv_dtype or case.spec.q_dtype.startswith("fp8"):
            return "no fp8"
        return _unlike_deepseek(case)

    def prepare(self, case: DecodeCase) -> Callable[[], Tensor]:
        """See Peer."""
        pool, dim_v = case.inputs["kv_buffer"], case.spec.head_dim_v
        q = case.inputs["q"].view(case.batch, case.q_len, case.spec.nhead, -1)
        table, lens = _page_table(case), _kv_lens(case)
        schedule, _ = self.module.get_mla_metadata()
        causal = case.q_len > 1

        def run() -> Tensor:
            out: Tensor = self.module.flash_mla_with_kvcache(
                q, pool, table, lens, dim_v, schedule, softmax_scale=case.scale, causal=causal
            )[0]
            return out.view(-1, case.spec.nhead, dim_v)

        return run


@dataclass(frozen=True, slots=True)
class SglangTriton:
    """SGLang's Triton decode kernel on token slots; each query token is a sequence of its own.

    Attributes:
        kernel: decode_attention_fwd.
        version: of the package.
        name: see Peer.
    """

    kernel: Callable[..., None]
    version: str
    name: str = "sglang_triton"

    def supports(self, case: DecodeCase) -> str | None:
        """Head dims 576/512, bf16 q."""
        return _unlike_deepseek(case) or ("fp8 q" if case.spec.q_dtype != "bf16" else None)

    def prepare(self, case: DecodeCase) -> Callable[[], Tensor]:
        """See Peer."""
        q, dim_v = case.inputs["q"], case.spec.head_dim_v
        pool = case.inputs["kv_buffer"].view(-1, 1, case.spec.head_dim_qk)
        slots = [
            case.slots(b)[: length - case.q_len + 1 + i].int()
            for b, length in enumerate(case.spec.kv_lens)
            for i in range(case.q_len)
        ]
        lens = torch.tensor([0, *(one.numel() for one in slots)], device=case.device)
        splits = self._splits(case)
        rows, nhead = q.shape[:2]
        partial = torch.empty(rows, nhead, splits, dim_v, device=case.device)
        partial_lse = torch.empty(rows, nhead, splits, device=case.device)
        counts = torch.full((rows,), splits, dtype=torch.int32, device=case.device)
        indptr, indices, out = lens.cumsum(0).int(), torch.cat(slots), case.new_output()
        fixed = (partial, partial_lse, counts, splits, case.scale, 1.0, 1.0)

        def run() -> Tensor:
            self.kernel(q, pool, pool[..., :dim_v], out, indptr, indices, *fixed, has_mla=True)
            return out

        return run

    def _splits(self, case: DecodeCase) -> int:
        """As many as give each multiprocessor two blocks, at most SGLang's default of 16."""
        blocks = case.q_len * case.batch * -(-case.spec.nhead // 16)
        units = torch.cuda.get_device_properties(case.device).multi_processor_count
        return max(1, min(16, 2 * units // blocks, -(-case.spec.kv_lens[0] // 32)))


def _unlike_deepseek(case: DecodeCase) -> str | None:
    dims = (case.spec.head_dim_qk, case.spec.head_dim_v)
    return None if dims == (576, 512) else f"head dims {dims}"


def _kv_lens(case: DecodeCase) -> Tensor:
    return torch.tensor(case.spec.kv_lens, dtype=torch.int32, device=case.device)


def _page_table(case: DecodeCase) -> Tensor:
    """[batch, most pages] int32: the pages of each request, zeros behind them."""
    starts = case.inputs["kv_indptr"].tolist()
    rows = [case.inputs["kv_indices"][a:b] for a, b in itertools.pairwise(starts)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _flashinfer() -> list[Peer]:
    module = importlib.import_module("flashinfer")
    importlib.import_module("flashinfer.mla")
    return [FlashInfer(module, "fa3"), FlashInfer(module, "fa2")]


def _flashmla() -> list[Peer]:
    return [FlashMla(importlib.import_module("flash_mla"))]


def _sglang() -> list[Peer]:
    version = importlib.import_module("sglang.version").__version__
    module: Any = importlib.import_module("sglang.kernels.ops.attention.decode_attention")
    return [SglangTriton(module.decode_attention_fwd, f"sglang {version}")]


_ENGINES = {"flashinfer": _flashinfer, "flash_mla": _flashmla, "sglang": _sglang}


def gpu_peers() -> tuple[list[Peer], dict[str, str]]:
    """Plain torch and the engines importable here, and why the others are absent."""
    found: list[Peer] = [TorchGathered()]
    absent: dict[str, str] = {}
    for name, load in _ENGINES.items():
        try:
            found += load()
        except Exception as error:  # a package may be there and fail in any way
            absent[name] = str(error) or type(error).__name__
    return found, absent
