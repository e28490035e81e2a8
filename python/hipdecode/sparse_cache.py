# SPDX-License-Identifier: MIT
"""The two cache formats of sparse MLA: what lies where in a block of tokens, and their writers.

Both keep the latent part of a key as fp8 with a scale per group and the rotary part as bf16. `v32`
is DeepSeek-V3.2's form (FlashMLA's fp8 cache): all of a token lies together. `v4` is DeepSeek-V4's:
a block holds the data of all its tokens first and their scales behind, so that a row of the
[num_blocks, block_size, 584] tensor is not a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import check_tensor, describe
from .errors import BadArgument

FP8_MAX = {torch.float8_e4m3fn: 448.0, torch.float8_e4m3fnuz: 240.0}
LEAST_AMAX = 1e-4
"""Groups whose largest magnitude is below this take the scale of one that has it."""
ALIGNMENT = 16
"""Bytes that blocks start at multiples of: vector loads and bulk copies need it."""
_SLOT_DTYPES = (torch.int32, torch.int64)


@dataclass(frozen=True, slots=True)
class CacheFormat:
    """Where the parts of a token lie.

    Attributes:
        name: as in kernel names.
        latent: leading columns of a key, stored as fp8.
        rope: columns behind them, stored as bf16, never scaled.
        group: latent columns that share a scale.
        head_dim_v: leading columns that are the value.
        scale_bytes: of one token, padding included.
        scales_apart: scales lie behind the data of the block's tokens, not within the token.
    """

    name: str
    latent: int
    rope: int
    group: int
    head_dim_v: int
    scale_bytes: int
    scales_apart: bool

    @property
    def head_dim_qk(self) -> int:
        """Columns of a query and of a key."""
        return self.latent + self.rope

    @property
    def groups(self) -> int:
        """Scales of a token."""
        return self.latent // self.group

    @property
    def token_bytes(self) -> int:
        """Bytes of a token, scales included: the last dimension of a cache tensor."""
        return self.latent + 2 * self.rope + self.scale_bytes

    @property
    def data_bytes(self) -> int:
        """Distance of two tokens of a block."""
        return self.token_bytes - (self.scale_bytes if self.scales_apart else 0)


V32 = CacheFormat("v32", 512, 64, 128, 512, 16, scales_apart=False)
V4 = CacheFormat("v4", 448, 64, 64, 512, 8, scales_apart=True)
FORMATS = {V32.name: V32, V4.name: V4}
_BY_BYTES = {form.token_bytes: form for form in FORMATS.values()}


def format_of(cache: Tensor, name: str = "cache") -> CacheFormat:
    """The format of a cache tensor, by the bytes of a token.

    Args:
        cache: [num_blocks, block_size, bytes] or [num_blocks, block_size, 1, bytes], uint8 or fp8;
            blocks may lie apart, within one the memory is dense.
        name: of the argument, for messages.

    Raises:
        BadArgument: it is something else.
    """
    good = isinstance(cache, Tensor) and cache.element_size() == 1 and cache.dim() in (3, 4)
    form = _BY_BYTES.get(cache.shape[-1]) if good else None
    dense = form is not None and cache.stride(-1) == 1
    dense = dense and (cache.dim() == 3 or cache.shape[2] == 1)
    if form is None or not dense or not _blocks_apart(cache, form):
        sizes = " or ".join(f"{f.token_bytes} ({f.name})" for f in FORMATS.values())
        raise BadArgument(
            f"{name}: expected [num_blocks, block_size, bytes] of uint8 with {sizes} bytes, dense "
            f"blocks of a power of two of tokens at multiples of {ALIGNMENT} bytes, got "
            f"{describe(cache)}; make it with new_sparse_cache"
        )
    return form


def _blocks_apart(cache: Tensor, form: CacheFormat) -> bool:
    blocks, size = cache.shape[:2]
    if size < 1 or size & (size - 1) or (size > 1 and cache.stride(1) != form.token_bytes):
        return False
    if cache.device.type != "meta" and cache.data_ptr() % ALIGNMENT:
        return False
    step = cache.stride(0)
    return blocks <= 1 or (step >= size * form.token_bytes and step % ALIGNMENT == 0)


def format_named(form: CacheFormat | str) -> CacheFormat:
    """V32 or V4, by itself or by its name.

    Raises:
        BadArgument: there is no such format.
    """
    found = FORMATS.get(form) if isinstance(form, str) else form
    if not isinstance(found, CacheFormat):
        raise BadArgument(f"form: expected one of {', '.join(FORMATS)}, got {form!r}")
    return found


def new_sparse_cache(
    form: CacheFormat | str,
    num_blocks: int,
    block_size: int,
    *,
    block_bytes: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """A cache of zeros.

    Args:
        form: V32, V4 or their names.
        num_blocks: blocks.
        block_size: tokens of a block, a power of two.
        block_bytes: distance of two blocks; default the least that keeps blocks aligned. FlashMLA
            pads V4 blocks to multiples of 576.
        device: where it lies.

    Returns:
        [num_blocks, block_size, bytes] uint8.

    Raises:
        BadArgument: no such format, or blocks that do not fit or are not aligned.
    """
    found = format_named(form)
    least = block_size * found.token_bytes
    step = -(-least // ALIGNMENT) * ALIGNMENT if block_bytes is None else block_bytes
    if block_size < 1 or block_size & (block_size - 1) or step < least or step % ALIGNMENT:
        raise BadArgument(
            f"block_size, block_bytes: expected a power of two and a multiple of {ALIGNMENT} from "
            f"{least} on, got {block_size} and {block_bytes}"
        )
    memory = torch.zeros(num_blocks * step, dtype=torch.uint8, device=device)
    shape = (num_blocks, block_size, found.token_bytes)
    return memory.as_strided(shape, (step, found.token_bytes, 1))


def quantize_v32(
    kv: Tensor,
    cache: Tensor,
    slots: Tensor,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    power_of_two: bool = True,
) -> None:
    """Writes tokens into a DeepSeek-V3.2 cache: 512 fp8, 4 fp32 scales, 64 bf16 a token.

    Nothing synchronises: it can be captured.

    Args:
        kv: [tokens, 576] bf16, fp16 or fp32: latent, then rope.
        cache: [num_blocks, block_size, 656] uint8, written at the slots.
        slots: [tokens] int32 or int64, block * block_size + position; others than those of the
            cache are left out. Of two tokens with one slot either may be what is there afterwards.
        dtype: torch.float8_e4m3fn, or torch.float8_e4m3fnuz (gfx942).
        power_of_two: scales are powers of two, as FlashMLA writes them; else amax / the largest
            fp8 number.

    Raises:
        BadArgument: an argument has a wrong type or shape; nothing was written.
    """
    slots = _check_writer(kv, cache, slots, dtype, V32)
    codes, exponent, amax = _quantize(kv, V32, dtype)
    scale = torch.ldexp(torch.ones_like(amax), exponent)
    if not power_of_two:
        scale = amax / FP8_MAX[dtype]
        codes = _codes(kv[:, : V32.latent].float(), scale, dtype)
    record = torch.cat((codes, scale.view(torch.uint8), _rope_bytes(kv, V32)), dim=1)
    _put(cache, ((_region(cache, V32.token_bytes, 0), record),), slots)


def quantize_v4(
    kv: Tensor,
    cache: Tensor,
    slots: Tensor,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> None:
    """Writes tokens into a DeepSeek-V4 cache: 448 fp8 and 64 bf16 a token, UE8M0 scales apart.

    Nothing synchronises: it can be captured.

    Args:
        kv: [tokens, 512] bf16, fp16 or fp32: latent, then rope.
        cache: [num_blocks, block_size, 584] uint8, written at the slots.
        slots: as in quantize_v32.
        dtype: torch.float8_e4m3fn, or torch.float8_e4m3fnuz (the sliding window on gfx942).

    Raises:
        BadArgument: an argument has a wrong type or shape; nothing was written.
    """
    slots = _check_writer(kv, cache, slots, dtype, V4)
    codes, exponent, _ = _quantize(kv, V4, dtype)
    biased = (exponent + 127).clamp(0, 254).to(torch.uint8)
    scales = torch.nn.functional.pad(biased, (0, V4.scale_bytes - V4.groups))
    data = torch.cat((codes, _rope_bytes(kv, V4)), dim=1)
    block_size = cache.shape[1]
    regions = (
        (_region(cache, V4.data_bytes, 0), data),
        (_region(cache, V4.scale_bytes, block_size * V4.data_bytes), scales),
    )
    _put(cache, regions, slots)


def _check_writer(
    kv: Tensor, cache: Tensor, slots: Tensor, dtype: torch.dtype, form: CacheFormat
) -> Tensor:
    """Checks a writer's arguments; returns the slots as int64."""
    if dtype not in FP8_MAX:
        names = " or ".join(map(str, FP8_MAX))
        raise BadArgument(f"dtype: expected {names}, got {dtype}")
    if format_of(cache) is not form:
        raise BadArgument(
            f"cache: expected {form.token_bytes} bytes a token, got {describe(cache)}"
        )
    check_tensor("cache", cache, torch.uint8, kv.device)
    if kv.dim() != 2 or kv.shape[1] != form.head_dim_qk or not kv.dtype.is_floating_point:
        raise BadArgument(
            f"kv: expected [tokens, {form.head_dim_qk}] of a float dtype, got {describe(kv)}"
        )
    same = slots.device == kv.device and slots.dtype in _SLOT_DTYPES
    if not same or slots.shape != kv.shape[:1]:
        raise BadArgument(
            f"slots: expected [{kv.shape[0]}] int32 or int64 on {kv.device}, got {describe(slots)}"
        )
    return slots.long()


def _quantize(kv: Tensor, form: CacheFormat, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [tokens, latent] uint8 by power-of-two scales, their exponents and each group's amax.

    The scale is the least power of two that brings the group into fp8's range.
    """
    latent = kv[:, : form.latent].float()
    grouped = latent.view(latent.shape[0], form.groups, form.group)
    amax = grouped.abs().nan_to_num(nan=0.0).amax(2).clamp(min=LEAST_AMAX)
    mantissa, exponent = torch.frexp(amax / FP8_MAX[dtype])  # mantissa in [0.5, 1)
    exponent = exponent - (mantissa == 0.5).to(exponent.dtype)
    scale = torch.ldexp(torch.ones_like(amax), exponent)
    return _codes(latent, scale, dtype), exponent, amax


def _codes(latent: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """fp8 bytes [tokens, latent] of latent / scale, nearest even; out of range saturates."""
    top = FP8_MAX[dtype]
    group = latent.shape[1] // scale.shape[1]
    scaled = (latent / scale.repeat_interleave(group, dim=1)).clamp(-top, top)
    return scaled.to(dtype).view(torch.uint8)


def _rope_bytes(kv: Tensor, form: CacheFormat) -> Tensor:
    rope = kv[:, form.latent :].to(torch.bfloat16).contiguous()
    return rope.view(torch.uint8)


def _region(cache: Tensor, width: int, offset: int) -> Tensor:
    """[num_blocks, block_size, width] bytes of a part of each block, `width` apart."""
    blocks, size = cache.shape[:2]
    step = cache.stride(0)
    return cache.as_strided(
        (blocks, size, width), (step, width, 1), cache.storage_offset() + offset
    )


def _put(cache: Tensor, regions: tuple[tuple[Tensor, Tensor], ...], slots: Tensor) -> None:
    """Writes records [tokens, width] at their slots without asking on the host which are valid.

    A slot outside of the cache repeats the first valid record, or where there is none rewrites what
    slot 0 holds.
    """
    blocks, size = cache.shape[:2]
    if slots.shape[0] == 0 or blocks == 0:
        return
    valid = (slots >= 0) & (slots < blocks * size)
    own = torch.arange(slots.shape[0], device=slots.device)
    source = torch.where(valid, own, valid.to(torch.int8).argmax())
    target = slots[source].clamp(0, blocks * size - 1)
    block, position = target // size, target % size
    kept = valid[source, None]
    for region, records in regions:
        merged = torch.where(kept, records[source], region[block, position])
        region.index_put_((block, position), merged)
