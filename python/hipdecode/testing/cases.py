# SPDX-License-Identifier: MIT
"""Inputs for MLA decode: one frozen description, one seed, every hazard of a serving engine.

Memory that a call must not read holds NaN: unused pages, page 0, the rest of last pages. Tails of
kv_indices hold -1 or stale ids. A kernel that looks there fails every comparison.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypedDict, cast

import torch
from torch import Tensor

from hipdecode import registry
from hipdecode import target as targets

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fnuz": torch.float8_e4m3fnuz,
    "fp32": torch.float32,
}
"""Names of dtypes as the registry, the tables and the command line spell them."""

DTYPE_PAIRS = (
    ("bf16", "bf16"),
    ("fp16", "fp16"),
    ("bf16", "fp8_e4m3fn"),
    ("bf16", "fp8_e4m3fnuz"),
    ("fp16", "fp8_e4m3fn"),
    ("fp16", "fp8_e4m3fnuz"),
    ("fp8_e4m3fn", "fp8_e4m3fn"),
    ("fp8_e4m3fnuz", "fp8_e4m3fnuz"),
)
"""(q, kv) dtype pairs that MLA decode has kernels for."""


@cache
def dtype_pairs(target: str) -> tuple[tuple[str, str], ...]:
    """The (q, kv) dtype pairs that a target, such as `cpu` or `sim:gfx950`, has kernels for."""
    known = registry.default()
    built = known.kernels(known.module("mla_decode_hk"), targets.resolve(target).artefact)
    kernels = {(kernel.by_name["q_dtype"], kernel.by_name["kv_dtype"]) for kernel in built}
    return tuple(pair for pair in DTYPE_PAIRS if pair in kernels)


_SHORT = {"fp8_e4m3fn": "fn", "fp8_e4m3fnuz": "fnuz"}
_NAN_BYTE = {torch.float8_e4m3fn: 0x7F, torch.float8_e4m3fnuz: 0x80}


class MlaInputs(TypedDict):
    """Keyword arguments of `hipdecode.mla_decode` and of `reference.mla_decode`."""

    q: Tensor
    kv_buffer: Tensor
    qo_indptr: Tensor
    kv_indptr: Tensor
    kv_indices: Tensor
    max_seqlen_q: int
    kv_last_page_lens: Tensor | None
    sm_scale: float | None
    causal: bool
    q_scale: Tensor | None
    kv_scale: Tensor | None


@dataclass(frozen=True, slots=True)
class Case:
    """One decode call.

    Attributes:
        q_lens: query rows of each request.
        kv_lens: tokens of each request, new ones included; same length as q_lens.
        q_scale: value of the q scale, None to pass no tensor; kv_scale likewise.
        scale_shape: () or (1,).
        sm_scale: factor on logits; None passes None.
        tail: entries of kv_indices past kv_indptr[-1]: "none", "minus_one", "stale" or "capacity"
            (stale ids, eight times as long as the live part).
        holes: every n-th page id inside the lists is -1; 0 for none.
        repeat_pages: requests share pages, and a request may name a page twice.
        last_page_lens: "given", "none" (page 1, or full last pages) or "garbage" (page 1 only).
        padding_rows: rows of q past qo_indptr[-1].
        poison: NaN in all memory that is not part of a request.
        content: "normal", "large" (logits to a hundred and more) or "one_hot" (one key takes all).
    """

    nhead: int = 16
    q_lens: tuple[int, ...] = (1,)
    kv_lens: tuple[int, ...] = (100,)
    page_size: int = 1
    q_dtype: str = "bf16"
    kv_dtype: str = "bf16"
    head_dim_qk: int = 576
    head_dim_v: int = 512
    causal: bool = True
    q_scale: float | None = None
    kv_scale: float | None = None
    scale_shape: tuple[int, ...] = (1,)
    sm_scale: float | None = 192**-0.5
    tail: str = "none"
    holes: int = 0
    repeat_pages: bool = False
    last_page_lens: str = "given"
    padding_rows: int = 0
    poison: bool = True
    content: str = "normal"
    seed: int = 0

    def __str__(self) -> str:
        """A readable test id: dtypes, heads, lengths and whatever is not the default."""
        q, kv = _SHORT.get(self.q_dtype, self.q_dtype), _SHORT.get(self.kv_dtype, self.kv_dtype)
        parts = [q if q == kv else f"{q}_{kv}", f"nh{self.nhead}"]
        parts.append("q" + _lengths(self.q_lens))
        parts.append("kv" + _lengths(self.kv_lens))
        shown = {"nhead", "q_lens", "kv_lens", "q_dtype", "kv_dtype"}
        return "-".join((*parts, *unusual_fields(self, shown)))

    @property
    def out_dtype(self) -> torch.dtype:
        """The dtype of o: that of q, bf16 for fp8."""
        dtype = DTYPES[self.q_dtype]
        return torch.bfloat16 if dtype.itemsize == 1 else dtype


def unusual_fields(case: DataclassInstance, shown: Container[str]) -> Iterator[str]:
    """Fields of a case that have not their default, for its test id; without those `shown`."""
    for field in dataclasses.fields(case):
        value = getattr(case, field.name)
        if field.name not in shown and value != field.default:
            text = "many" if isinstance(value, tuple) and len(value) > 6 else value
            yield f"{field.name}={text}".replace(" ", "").replace("fp8_e4m3", "")


def _lengths(values: tuple[int, ...]) -> str:
    if len(values) > 1 and len(set(values)) == 1:
        return f"{values[0]}x{len(values)}"
    return "_".join(map(str, values)) if len(values) < 7 else f"ragged{len(values)}"


def repro(case: Case) -> str:
    """Python that rebuilds the inputs of a case; only what differs from the defaults."""
    changed = [
        f"{f.name}={getattr(case, f.name)!r}"
        for f in dataclasses.fields(case)
        if getattr(case, f.name) != f.default
    ]
    return f"cases.make_inputs(cases.Case({', '.join(changed)}))"


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch on the calling thread, also usable as a decorator.

    The tensors of a test are small: a second thread saves little, and on a busy machine waiting for
    it costs a hundred times the work.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def make_inputs(case: Case) -> MlaInputs:
    """Builds the tensors of a case on torch's default device; equal cases give equal tensors.

    Returns:
        The keyword arguments of one call.
    """
    gen = torch.Generator(torch.get_default_device()).manual_seed(case.seed)
    pages = [-(-n // case.page_size) for n in case.kv_lens]
    kv_indptr = _prefix(pages)
    kv_indices, num_pages = _page_table(case, pages, gen)
    q_rows = sum(case.q_lens) + case.padding_rows
    q = _random((q_rows, case.nhead, case.head_dim_qk), case.q_dtype, gen)
    last = [
        n - (p - 1) * case.page_size if p else 0 for n, p in zip(case.kv_lens, pages, strict=True)
    ]
    kv_buffer = _pool(case, num_pages, kv_indices[: sum(pages)], last, pages, gen)
    _shape_logits(case, q, kv_buffer, kv_indices, kv_indptr)
    last_page_lens = None
    if case.last_page_lens == "given":
        last_page_lens = torch.tensor(last, dtype=torch.int32)
    elif case.last_page_lens == "garbage":
        last_page_lens = torch.tensor(
            [(0, 77, -3)[b % 3] for b in range(len(last))], dtype=torch.int32
        )
    return MlaInputs(
        q=q,
        kv_buffer=kv_buffer,
        qo_indptr=_prefix(list(case.q_lens)),
        kv_indptr=kv_indptr,
        kv_indices=kv_indices,
        max_seqlen_q=max((1, *case.q_lens)),
        kv_last_page_lens=last_page_lens,
        sm_scale=case.sm_scale,
        causal=case.causal,
        q_scale=_scale(case.q_scale, case.scale_shape),
        kv_scale=_scale(case.kv_scale, case.scale_shape),
    )


def to_device(inputs: MlaInputs, device: torch.device | str) -> MlaInputs:
    """The same inputs with every tensor on `device`."""
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    return cast("MlaInputs", moved)


def _prefix(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts], dtype=torch.int32).cumsum(0).to(torch.int32)


def _scale(value: float | None, shape: tuple[int, ...]) -> Tensor | None:
    return None if value is None else torch.full(shape, value, dtype=torch.float32)


def _page_table(case: Case, pages: list[int], gen: torch.Generator) -> tuple[Tensor, int]:
    """Permuted page ids, never page 0, with the tail and the holes the case asks for."""
    live = sum(pages)
    num_pages = live + 3
    if case.repeat_pages:
        num_pages = max(2, live // 2) + 1
        ids = torch.randint(1, num_pages, (live,), generator=gen)
    else:
        ids = torch.randperm(num_pages - 1, generator=gen)[:live] + 1
    if case.holes:
        ids[case.holes - 1 :: case.holes] = -1
    extra = {"none": 0, "minus_one": 5, "stale": 5, "capacity": 7 * live + 64}[case.tail]
    tail = torch.randint(0, num_pages, (extra,), generator=gen)
    if case.tail == "minus_one":
        tail.fill_(-1)
    return torch.cat([ids, tail]).to(torch.int32), num_pages


def _random(shape: tuple[int, ...], dtype: str, gen: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=gen).to(DTYPES[dtype])


def _pool(
    case: Case,
    num_pages: int,
    live_ids: Tensor,
    last: list[int],
    pages: list[int],
    gen: torch.Generator,
) -> Tensor:
    """A KV pool in which only the tokens of requests hold numbers."""
    shape = (num_pages, case.page_size, 1, case.head_dim_qk)
    pool = _random(shape, case.kv_dtype, gen)
    if not case.poison:
        return pool
    used = torch.zeros(num_pages, case.page_size, dtype=torch.bool)
    at = 0
    for count, tokens in zip(pages, last, strict=True):
        ids = live_ids[at : at + count].long()
        at += count
        full, cut = ids[:-1], ids[-1:]
        used[full[full >= 0]] = True
        used[cut[cut >= 0], :tokens] = True
    poison(pool, ~used)
    return pool


def poison(pool: Tensor, where: Tensor) -> None:
    """Writes NaN into the rows of a KV pool that `where` [num_pages, page_size] selects."""
    if pool.dtype in _NAN_BYTE:
        pool.view(torch.uint8)[where] = _NAN_BYTE[pool.dtype]
    else:
        pool[where] = float("nan")


def _shape_logits(
    case: Case, q: Tensor, kv_buffer: Tensor, kv_indices: Tensor, kv_indptr: Tensor
) -> None:
    """Rewrites q so that logits are large, or so that one key of each request takes all."""
    if case.content == "normal":
        return
    if case.content == "large":
        q.copy_((q.float() * 16).to(q.dtype))
        return
    for b, first in enumerate(_prefix(list(case.q_lens))[:-1].tolist()):
        pages = kv_indices[int(kv_indptr[b]) : int(kv_indptr[b + 1])]
        ids = [page for page in pages.tolist() if page >= 0]
        for i in range(case.q_lens[b] if ids else 0):
            key = kv_buffer[ids[(i * 7) % len(ids)], 0, 0].float()
            q[first + i] = (key * 4).to(q.dtype)
