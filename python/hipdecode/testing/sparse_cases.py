# SPDX-License-Identifier: MIT
"""Inputs for sparse MLA decode, and one checked call.

Memory that no list names holds 0xff: NaN as a scale, as bf16 and as OCP fp8. Behind the part of a
list that counts lie slots of such memory. A kernel that looks there fails every comparison.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

import hipdecode
from hipdecode import target as targets
from hipdecode.sparse_cache import FORMATS, CacheFormat
from hipdecode.testing import compare, sparse_reference
from hipdecode.testing.cases import DTYPES, one_thread, unusual_fields
from hipdecode.testing.reference import Attention

_POISON = 0xFF
_SPARE_BLOCKS = 2
_INF = float("inf")
_SINKS = {"none": (), "normal": (-3.0, 0.0, 2.5, 9.0), "mixed": (-_INF, 0.0, _INF, -200.0, 200.0)}


class SparseInputs(TypedDict):
    """Arguments of `hipdecode.sparse_mla_decode` and of its reference."""

    q: Tensor
    cache: Tensor
    indices: Tensor
    indptr: Tensor | None
    lengths: Tensor | None
    extra_cache: Tensor | None
    extra_indices: Tensor | None
    extra_indptr: Tensor | None
    extra_lengths: Tensor | None
    attn_sink: Tensor | None
    sm_scale: float | None
    kv_dtype: torch.dtype
    extra_kv_dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class SparseCase:
    """One call.

    Attributes:
        form: `v32` or `v4`.
        lens: slots of each token in the main cache.
        extra_lens: likewise in the extra cache; None: there is none.
        block_size: tokens of a block; extra_block_size likewise.
        gap: bytes between two blocks.
        layout: "ragged", "lengths" (a table, its rows end where lengths say), "table" (without
            lengths: rows end in -1 and in slots that the cache has not).
        tokens_per_length: tokens that share an entry of lengths, and so their number of slots.
        holes: every n-th slot is none; 0 for none.
        repeat: tokens share slots, and a list may name one twice.
        sink: "none", "normal" or "mixed" (infinities, and logits far from the keys').
        power_of_two: V3.2 scales are powers of two.
        content: "normal" or "large" (logits to a hundred and more).
    """

    form: str = "v32"
    nhead: int = 16
    lens: tuple[int, ...] = (100, 70)
    extra_lens: tuple[int, ...] | None = None
    block_size: int = 64
    extra_block_size: int = 4
    gap: int = 0
    layout: str = "ragged"
    tokens_per_length: int = 1
    holes: int = 0
    repeat: bool = False
    kv_dtype: str = "fp8_e4m3fn"
    extra_dtype: str = "fp8_e4m3fn"
    sink: str = "none"
    sm_scale: float | None = None
    power_of_two: bool = True
    content: str = "normal"
    seed: int = 0

    def __str__(self) -> str:
        """A readable test id: format, heads and whatever is not the default."""
        unusual = unusual_fields(self, ("form", "nhead"))
        return "-".join((self.form, f"nh{self.nhead}", *unusual))

    @property
    def layout_of(self) -> CacheFormat:
        """The format's facts."""
        return FORMATS[self.form]


def for_target(case: SparseCase, target: str) -> SparseCase:
    """The case in the flavours of fp8 that a target has, where it asks for OCP throughout."""
    if targets.resolve(target).family != "gfx942" or case.kv_dtype != "fp8_e4m3fn":
        return case
    extra = "fp8_e4m3fn" if case.form == "v4" else "fp8_e4m3fnuz"
    return dataclasses.replace(case, kv_dtype="fp8_e4m3fnuz", extra_dtype=extra)


@one_thread()
def make_sparse_inputs(case: SparseCase) -> SparseInputs:
    """Builds the tensors of a case; equal cases give equal tensors."""
    gen = torch.Generator().manual_seed(case.seed)
    tokens, form = len(case.lens), case.layout_of
    q = torch.randn(tokens, case.nhead, form.head_dim_qk, generator=gen)
    if case.content == "large":
        q *= 16
    main = _Side(case, case.lens, case.block_size, DTYPES[case.kv_dtype])
    cache, indices, indptr, lengths = main.build(gen)
    extra: tuple[Tensor | None, ...] = (None, None, None, None)
    if case.extra_lens is not None:
        side = _Side(case, case.extra_lens, case.extra_block_size, DTYPES[case.extra_dtype])
        extra = side.build(gen)
    logits = _SINKS[case.sink]
    sink = torch.tensor([logits[h % len(logits)] for h in range(case.nhead)]) if logits else None
    return SparseInputs(
        q=q.to(torch.bfloat16),
        cache=cache,
        indices=indices,
        indptr=indptr,
        lengths=lengths,
        extra_cache=extra[0],
        extra_indices=extra[1],
        extra_indptr=extra[2],
        extra_lengths=extra[3],
        attn_sink=sink,
        sm_scale=case.sm_scale,
        kv_dtype=DTYPES[case.kv_dtype],
        extra_kv_dtype=DTYPES[case.extra_dtype],
    )


@dataclass(frozen=True, slots=True)
class _Side:
    """One cache of a case and its lists."""

    case: SparseCase
    lens: tuple[int, ...]
    block_size: int
    dtype: torch.dtype

    def build(self, gen: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        live = sum(self.lens)
        kept = max(1, live // 3) if self.case.repeat else live
        blocks = -(-kept // self.block_size) + _SPARE_BLOCKS
        order = torch.randperm(blocks * self.block_size, generator=gen)
        used, unused = order[:kept], order[kept:]
        slots = used
        if self.case.repeat:
            slots = used[torch.randint(0, kept, (live,), generator=gen)]
        lists = list(torch.split(slots.to(torch.int32), list(self.lens)))
        missing = (-1, blocks * self.block_size, -(2**31), 2**31 - 1)
        if self.case.holes:
            for entries in lists:
                entries[self.case.holes - 1 :: self.case.holes] = missing[len(entries) % 4]
        cache = self._cache(blocks, used, gen)
        stale = unused.to(torch.int32)
        if self.case.layout == "ragged":
            indptr = torch.tensor([0, *self.lens], dtype=torch.int32).cumsum(0).to(torch.int32)
            return cache, torch.cat([*lists, stale[:7]]), indptr, None
        return cache, *self._table(lists, stale, missing)

    def _table(
        self, lists: list[Tensor], stale: Tensor, missing: tuple[int, ...]
    ) -> tuple[Tensor, None, Tensor | None]:
        topk = max((0, *self.lens)) + 5
        table = torch.empty(len(lists), topk, dtype=torch.int32)
        for row, entries in zip(table, lists, strict=True):
            row[: len(entries)] = entries
            rest = torch.arange(topk - len(entries))
            ends = torch.tensor(missing, dtype=torch.int32)
            behind = stale[rest % len(stale)] if self.case.layout == "lengths" else ends[rest % 4]
            row[len(entries) :] = behind
        if self.case.layout == "table":
            return table, None, None
        lengths = torch.tensor(self.lens[:: self.case.tokens_per_length], dtype=torch.int32)
        return table, None, lengths

    def _cache(self, blocks: int, used: Tensor, gen: torch.Generator) -> Tensor:
        """A pool in which only the used slots hold numbers; groups differ in magnitude."""
        form = self.case.layout_of
        step = -(-(self.block_size * form.token_bytes + self.case.gap) // 16) * 16
        cache = hipdecode.new_sparse_cache(form, blocks, self.block_size, block_bytes=step)
        memory = cache.as_strided((blocks, step), (step, 1))
        memory.fill_(_POISON)
        kv = torch.randn(len(used), form.head_dim_qk, generator=gen)
        powers = torch.randint(-5, 3, (len(used), form.groups), generator=gen)
        kv[:, : form.latent] *= torch.pow(2.0, powers).repeat_interleave(form.group, dim=1)
        if form.name == "v32":
            hipdecode.quantize_v32(
                kv, cache, used, dtype=self.dtype, power_of_two=self.case.power_of_two
            )
        else:
            hipdecode.quantize_v4(kv, cache, used, dtype=self.dtype)
            scales = memory[:, self.block_size * 576 : self.block_size * 584]
            scales[:, 7::8] = _POISON  # the byte of padding
        return cache


def to_device(inputs: SparseInputs, device: torch.device | str) -> SparseInputs:
    """The same inputs with every tensor on `device`; blocks keep their distance."""
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    for name in ("cache", "extra_cache"):
        value = inputs[name]
        if value is not None and value.device != torch.device(device):
            step = value.stride(0)
            memory = torch.full((value.shape[0] * step,), _POISON, dtype=torch.uint8, device=device)
            placed = memory.as_strided(value.shape, value.stride())
            moved[name] = placed.copy_(value.view(torch.uint8)).view(value.dtype)
    return moved  # type: ignore[return-value]


class SparseBuffers:
    """A step's tensors at their largest; `fill` gives them the contents of another case.

    What a case leaves of a cache is poison, of a list -1.

    Args:
        case: the largest.
        target: resolved target name.
        device: where they lie.
    """

    def __init__(self, case: SparseCase, target: str, device: torch.device) -> None:
        """Holds the contents of `case`, and NaN as results."""
        self.inputs = to_device(make_sparse_inputs(for_target(case, target)), device)
        shape = (len(case.lens), case.nhead, 512)
        self.out = torch.full(shape, float("nan"), dtype=torch.bfloat16, device=device)
        self.lse = torch.full(shape[:2], float("nan"), device=device)
        self._target = target

    def fill(self, case: SparseCase) -> None:
        """Overwrites all but addresses and shapes."""
        new = make_sparse_inputs(for_target(case, self._target))
        for name, buffer in self.inputs.items():
            value = new[name]  # type: ignore[literal-required]
            if name in ("cache", "extra_cache") and isinstance(buffer, Tensor):
                _flat(buffer).fill_(_POISON)
                _flat(buffer)[: len(value)].copy_(_flat(value))
            elif isinstance(buffer, Tensor):
                buffer.fill_(-1)
                buffer[tuple(slice(0, n) for n in value.shape)] = value.to(buffer.device)
        for result in (self.out, self.lse):
            result.fill_(float("nan"))


def _flat(cache: Tensor) -> Tensor:
    """[num_blocks, bytes]: blocks of V4 are no rows of tokens."""
    return cache.as_strided((cache.shape[0], cache.stride(0)), (cache.stride(0), 1))


def assert_sparse_matches(
    inputs: SparseInputs,
    out: Tensor,
    lse: Tensor,
    target: str,
    what: str,
    want: Attention | None = None,
) -> None:
    """Compares one call with the oracle.

    Args:
        inputs: what the kernel was given.
        out: [tokens, nhead, 512].
        lse: [tokens, nhead].
        target: resolved target name, for the rounding of the weights.
        what: the case and the call, for the message.
        want: the oracle's answer where the caller has it.
    """
    on_host = to_device(inputs, "cpu")
    want = sparse_reference.sparse_mla_decode(**on_host) if want is None else want
    names = compare.plain_names("token", "head", "column")
    allowed = compare.allowed_output(want, out.dtype, target, torch.bfloat16)
    compare.assert_close(
        lse, want.lse, compare.allowed_lse(want), what="lse", names=names, repro=what
    )
    compare.assert_close(out, want.o, allowed, what="o", names=names, repro=what)


def check_sparse(
    case: SparseCase, num_splits: int | None, target: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Runs a case into NaN-filled outputs and compares them with the oracle."""
    case = for_target(case, target)
    inputs = make_sparse_inputs(case)
    placed = to_device(inputs, device)
    shape = (len(case.lens), case.nhead, 512)
    out = torch.full(shape, float("nan"), dtype=torch.bfloat16, device=device)
    lse = torch.full(shape[:2], float("nan"), device=device)
    got = hipdecode.sparse_mla_decode(
        **placed, num_splits=num_splits, out=out, lse=lse, return_lse=True
    )
    if got[0].data_ptr() != out.data_ptr() or got[1].data_ptr() != lse.data_ptr():
        raise compare.Mismatch("out, lse: expected the caller's storage, got another")
    assert_sparse_matches(inputs, out, lse, target, f"make_sparse_inputs({case!r}), {num_splits}")
    return out, lse
