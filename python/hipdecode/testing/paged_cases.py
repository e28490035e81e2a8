# SPDX-License-Identifier: MIT
"""Inputs for paged attention, and one checked call.

Memory that no visible token owns holds NaN, in caches and in scales; so do gaps between blocks and
heads. Table entries behind a context name such blocks. A kernel that looks there fails.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from hipdecode import target as targets
from hipdecode.paged import PagedOptions, paged_attention
from hipdecode.testing import compare, paged_reference
from hipdecode.testing.cases import DTYPES, one_thread, unusual_fields
from hipdecode.testing.reference import Attention

_FP8_MAX = {"fp8_e4m3fn": 448.0, "fp8_e4m3fnuz": 240.0}
_SPARE_BLOCKS = 3


class PagedInputs(TypedDict):
    """Arguments of `hipdecode.paged_attention` and of its reference."""

    q: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_tables: Tensor
    context_lens: Tensor
    qo_indptr: Tensor | None
    k_scale: Tensor | None
    v_scale: Tensor | None
    sm_scale: float | None


@dataclass(frozen=True, slots=True)
class PagedCase:
    """One call.

    Attributes:
        lens: context of each request, the tokens of this step included.
        mtp: query tokens of a request at most.
        q_lens: query tokens of each request; None: mtp each, without qo_indptr.
        padding: rows of q behind the last request; with q_lens only.
        value_dims: 5 or 4.
        scales: "none", "tensor" or "token".
        gap: chunks of 16 bytes between two blocks and between two heads.
        spare_columns: columns that the table was sliced off.
        holes: every n-th block of a request does not exist; 0 for none.
        repeat: requests share physical blocks.
        content: "normal" or "large" (logits to a hundred and more).
    """

    lens: tuple[int, ...] = (100, 33)
    mtp: int = 1
    gqa: int = 8
    nhead_kv: int = 2
    head_dim: int = 128
    block_size: int = 16
    q_dtype: str = "bf16"
    kv_dtype: str = "fp8_e4m3fn"
    value_dims: int = 5
    scales: str = "token"
    q_lens: tuple[int, ...] | None = None
    padding: int = 0
    gap: int = 0
    spare_columns: int = 0
    holes: int = 0
    repeat: bool = False
    sm_scale: float | None = None
    content: str = "normal"
    seed: int = 0

    def __str__(self) -> str:
        """A readable test id: whatever is not the default."""
        unusual = unusual_fields(self, ("gqa", "mtp"))
        return "-".join((f"gqa{self.gqa}", f"mtp{self.mtp}", *unusual))

    @property
    def x(self) -> int:
        """Elements of a chunk."""
        return 16 // DTYPES[self.kv_dtype].itemsize


def for_target(case: PagedCase, target: str) -> PagedCase:
    """The case in the flavour of fp8 that a target has."""
    if targets.resolve(target).family != "gfx942" or case.kv_dtype != "fp8_e4m3fn":
        return case
    return dataclasses.replace(case, kv_dtype="fp8_e4m3fnuz")


def _bits(t: Tensor) -> Tensor:
    return t.view(torch.uint8 if t.element_size() == 1 else torch.int16)


def _poisoned(shape: tuple[int, ...], gap: int, dtype: torch.dtype) -> Tensor:
    """NaN everywhere; dimensions 0 and 1 are `gap` elements further apart than they need be."""
    inner = 1
    for size in shape[2:]:
        inner *= size
    head = inner + gap
    block = head * shape[1] + gap
    memory = torch.empty(shape[0] * block, dtype=dtype)
    if dtype.itemsize == 1:
        _bits(memory).fill_(0x80 if dtype == torch.float8_e4m3fnuz else 0xFF)
    else:
        memory.fill_(float("nan"))
    strides, step = [], 1
    for size in reversed(shape[2:]):
        strides.append(step)
        step *= size
    return memory.as_strided(shape, (block, head, *reversed(strides)))


@dataclass(frozen=True, slots=True)
class _Slots:
    """Which tokens exist, and where."""

    tables: Tensor
    block: Tensor  # of each written slot
    position: Tensor
    num_blocks: int


def _slots(case: PagedCase, gen: torch.Generator) -> _Slots:
    size, batch = case.block_size, len(case.lens)
    blocks_of = [-(-n // size) for n in case.lens]
    live = max(sum(blocks_of), 1)
    kept = max(1, max(blocks_of, default=1)) if case.repeat else live
    num_blocks = kept + _SPARE_BLOCKS
    order = torch.randperm(num_blocks, generator=gen).to(torch.int32)
    used, spare = order[:kept], order[kept:]
    columns = max(blocks_of, default=0) + 2
    wide = torch.full((batch, columns + case.spare_columns), -(2**31), dtype=torch.int32)
    written, next_block = [], 0
    missing = (-1, num_blocks, 2**31 - 1, -(2**31))
    for request, (length, count) in enumerate(zip(case.lens, blocks_of, strict=True)):
        if case.repeat:
            ids = used[torch.randperm(kept, generator=gen)[:count]]
        else:
            ids = used[next_block : next_block + count]
        next_block += count
        wide[request, :columns] = spare[torch.arange(columns) % len(spare)]
        wide[request, :count] = ids
        token = torch.arange(length)
        written.append(torch.stack((ids.long()[token // size], token % size)))
        if case.holes:
            wide[request, case.holes - 1 : count : case.holes] = missing[request % 4]
    slots = torch.unique(torch.cat([*written, torch.empty(2, 0, dtype=torch.long)], dim=1), dim=1)
    return _Slots(wide[:, :columns], slots[0], slots[1], num_blocks)


def _scales_of(
    case: PagedCase, x: Tensor, slots: _Slots, gen: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """What is stored of [slots, nhead_kv, head_dim], and the scale tensor."""
    dtype = DTYPES[case.kv_dtype]
    if case.kv_dtype not in _FP8_MAX:
        return x.to(dtype), None
    top = _FP8_MAX[case.kv_dtype]
    if case.scales == "token":
        each = x.abs().amax(2).clamp(min=1e-6) / top
        shape = (slots.num_blocks, case.nhead_kv, case.block_size)
        scale = torch.full(shape, float("nan"))
        scale[slots.block, :, slots.position] = each
        return (x / each[..., None]).clamp(-top, top).to(dtype), scale
    factor = 1.0 if case.scales == "none" else 0.037
    one = None if case.scales == "none" else torch.tensor([factor])
    return (x / factor).clamp(-top, top).to(dtype), one


@one_thread()
def make_paged_inputs(case: PagedCase) -> PagedInputs:
    """Builds the tensors of a case; equal cases give equal tensors."""
    gen = torch.Generator().manual_seed(case.seed)
    dtype, x = DTYPES[case.kv_dtype], case.x
    slots = _slots(case, gen)
    wide = (len(slots.block), case.nhead_kv, case.head_dim)
    nb, hkv, d, size = slots.num_blocks, case.nhead_kv, case.head_dim, case.block_size
    gap = case.gap * x
    magnitude = torch.pow(2.0, torch.randint(-3, 2, (*wide[:2], 1), generator=gen))
    k, k_scale = _scales_of(case, torch.randn(wide, generator=gen) * magnitude, slots, gen)
    v, v_scale = _scales_of(case, torch.randn(wide, generator=gen) * magnitude, slots, gen)
    keys = _poisoned((nb, hkv, d // x, size, x), gap, dtype)
    _bits(keys)[slots.block, :, :, slots.position] = _bits(k).view(-1, hkv, d // x, x)
    if case.value_dims == 5:
        values = _poisoned((nb, hkv, size // x, d, x), gap, dtype)
        chunk, element = slots.position // x, slots.position % x
        _bits(values)[slots.block, :, chunk, :, element] = _bits(v)
    else:
        values = _poisoned((nb, hkv, d, size), gap, dtype)
        _bits(values)[slots.block, :, :, slots.position] = _bits(v)
    q_lens = case.q_lens or (case.mtp,) * len(case.lens)
    rows = sum(q_lens) + case.padding
    q = torch.randn(rows, hkv * case.gqa, d, generator=gen)
    q *= 16 if case.content == "large" else 1
    starts = torch.tensor([0, *q_lens], dtype=torch.int32).cumsum(0).to(torch.int32)
    return PagedInputs(
        q=q.to(DTYPES[case.q_dtype]),
        key_cache=keys,
        value_cache=values,
        block_tables=slots.tables,
        context_lens=torch.tensor(case.lens, dtype=torch.int32),
        qo_indptr=None if case.q_lens is None else starts,
        k_scale=k_scale,
        v_scale=v_scale,
        sm_scale=case.sm_scale,
    )


def to_device(inputs: PagedInputs, device: torch.device | str) -> PagedInputs:
    """The same inputs on a device, strides, gaps and what lies in them included."""

    def moved(t: object) -> object:
        if not isinstance(t, Tensor) or t.device == torch.device(device):
            return t
        memory = torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage())
        flat = memory.to(device).view(t.dtype)
        return flat.as_strided(t.shape, t.stride(), t.storage_offset())

    return {k: moved(v) for k, v in inputs.items()}  # type: ignore[return-value]


def check_paged(
    case: PagedCase,
    target: str,
    device: torch.device,
    *,
    num_splits: int | None = None,
    route: str | None = None,
) -> tuple[Tensor, Tensor, Attention]:
    """Runs a case into NaN-filled outputs and compares them with the oracle."""
    case = for_target(case, target)
    inputs = make_paged_inputs(case)
    shape = tuple(inputs["q"].shape)
    out = torch.full(shape, float("nan"), dtype=inputs["q"].dtype, device=device)
    lse = torch.full(shape[:2], float("nan"), device=device)
    options = PagedOptions(max_seqlen_q=case.mtp, num_splits=num_splits, route=route)
    got = paged_attention(**to_device(inputs, device), options=options, out=out, lse=lse)
    if got.data_ptr() != out.data_ptr():
        raise compare.Mismatch("out: expected the caller's storage, got another")
    want = paged_reference.paged_attention(**inputs, max_seqlen_q=case.mtp)
    what = f"make_paged_inputs({case!r}), num_splits {num_splits}, route {route}"
    names = compare.plain_names("row", "head", "column")
    allowed = compare.allowed_output(want, out.dtype, target, out.dtype)
    compare.assert_close(
        lse, want.lse, compare.allowed_lse(want), what="lse", names=names, repro=what
    )
    compare.assert_close(out, want.o, allowed, what="o", names=names, repro=what)
    return out, lse, want
