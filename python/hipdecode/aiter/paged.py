# SPDX-License-Identifier: MIT
"""AITER's entries of paged attention; all of them route, see `hipdecode.paged_route`."""

from __future__ import annotations

import torch
from torch import Tensor

from hipdecode import ops
from hipdecode.arguments import describe
from hipdecode.errors import BadArgument
from hipdecode.paged import PagedOptions, paged_attention

_FP8_WORDS = ("fp8", "fp8_e4m3")
_FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
_NAMES_OF_ASM = {
    "q": "Q",
    "key_cache": "K",
    "value_cache": "V",
    "max_seqlen_q": "max_qlen",
    "k_scale": "K_QScale",
    "v_scale": "V_QScale",
    "o": "out_",
}
_NAMES_OF_DECODE = {
    "q": "query",
    "o": "out",
    "max_seqlen_q": "mtp",
    "sm_scale": "scale",
    "out_scale": "fp8_out_scale",
}


def pa_fwd_asm(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    block_tables_stride0: int,
    max_qlen: int = 1,
    K_QScale: Tensor | None = None,
    V_QScale: Tensor | None = None,
    out_: Tensor | None = None,
    qo_indptr: Tensor | None = None,
    high_precision: int = 1,
    kernelName: str | None = None,
) -> Tensor:
    """Paged attention of one step, softmax scale 1 / sqrt(head_dim); contexts are split.

    Args:
        Q: [rows, nhead, 128 or 64] bf16 or fp16.
        K: [num_blocks, nhead_kv, head_dim / x, block_size, x], x = 16 / element size.
        V: [num_blocks, nhead_kv, block_size / x, head_dim, x] or [.., head_dim, block_size].
        block_tables: [batch, max_blocks] int32.
        context_lens: [batch] int32, the tokens of this step included.
        block_tables_stride0: elements from row to row of block_tables.
        max_qlen: query tokens of a request at most.
        K_QScale: fp32, one or [num_blocks, nhead_kv, block_size(, 1)] in the blocks' order.
        V_QScale: likewise.
        out_: like Q; allocated if None.
        qo_indptr: [batch + 1] int32 rows of Q; None: max_qlen rows a request.
        high_precision: any of AITER's levels: there is one here, products of 16-bit operands.
        kernelName: None.

    Returns:
        out_.

    Raises:
        BadArgument: an argument has a wrong type, shape or range; nothing was written.
    """
    if kernelName is not None:
        raise BadArgument(f"kernelName: expected None, got {kernelName!r}; the route names kernels")
    if high_precision not in (0, 1, 2):
        raise BadArgument(f"high_precision: expected 0, 1 or 2, got {high_precision!r}")
    with _Renamed(_NAMES_OF_ASM):
        tables = _restrided(block_tables, block_tables_stride0)
        if max_qlen == 1 and isinstance(context_lens, Tensor):
            tables = tables[: context_lens.numel()]
        return paged_attention(
            Q, K, V, tables, context_lens,
            options=PagedOptions(max_seqlen_q=max_qlen),
            qo_indptr=qo_indptr,
            k_scale=_scales(K_QScale, K),
            v_scale=_scales(V_QScale, K),
            out=out_,
        )  # fmt: skip


def paged_attention_rocm(
    out: Tensor,
    exp_sums: Tensor | None,
    max_logits: Tensor | None,
    tmp_out: Tensor | None,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_kv_heads: int,
    scale: float,
    block_tables: Tensor,
    context_lens: Tensor,
    block_size: int,
    max_context_len: int,
    alibi_slopes: Tensor | None,
    kv_cache_dtype: str,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    fp8_out_scale: Tensor | None = None,
    partition_size: int = 256,
    q_scale: Tensor | None = None,
    mtp: int = 1,
) -> None:
    """Paged attention of `mtp` tokens a request into `out`.

    Args:
        out: [batch * mtp, nhead, head_dim] bf16 or fp16, or fp8 with fp8_out_scale.
        exp_sums: not used: the splits' partial results have scratch of their own.
        max_logits: not used.
        tmp_out: not used.
        query: [batch * mtp, nhead, head_dim] bf16 or fp16.
        key_cache: [num_blocks, num_kv_heads, head_dim / x, block_size, x].
        value_cache: [num_blocks, num_kv_heads, block_size / x, head_dim, x] or
            [num_blocks, num_kv_heads, head_dim, block_size].
        num_kv_heads: kv heads.
        scale: softmax scale.
        block_tables: [batch, max_blocks] int32, rows apart as they are.
        context_lens: [batch] int32, the tokens of this step included.
        block_size: tokens of a block.
        max_context_len: tokens of a request at most, for the number of splits alone.
        alibi_slopes: None.
        kv_cache_dtype: "auto": that of the cache; "fp8", "fp8_e4m3": uint8 is fp8 as well.
        k_scale: fp32 dequantisation scale of fp8 keys, one or one a token and kv head.
        v_scale: likewise of values.
        fp8_out_scale: [1] fp32; the output is divided by it and saturated to fp8.
        partition_size: not used: splits follow from the shape.
        q_scale: not used in the arithmetic: queries are not quantised.
        mtp: query tokens of a request.

    Raises:
        BadArgument: an argument has a wrong type, shape or range; nothing was written.
    """
    _check_heads(key_cache, num_kv_heads, block_size)
    with _Renamed(_NAMES_OF_DECODE):
        _decode(
            query, key_cache, value_cache, block_tables, context_lens, out, None, scale,
            (k_scale, v_scale, q_scale, fp8_out_scale), alibi_slopes, kv_cache_dtype,
            (mtp, max_context_len),
        )  # fmt: skip


_SCHEMA = (
    "paged_attention_rocm(Tensor(a!) out, Tensor? exp_sums, Tensor? max_logits, Tensor? tmp_out, "
    "Tensor query, Tensor key_cache, Tensor value_cache, int num_kv_heads, float scale, Tensor "
    "block_tables, Tensor context_lens, int block_size, int max_context_len, Tensor? alibi_slopes, "
    "str kv_cache_dtype, Tensor? k_scale, Tensor? v_scale, Tensor? fp8_out_scale=None, int "
    "partition_size=256, Tensor? q_scale=None, int mtp=1) -> ()"
)
_libraries: list[torch.library.Library] = []  # what is registered lives as long as they do


def register_as_aiter_op() -> bool:
    """Makes `torch.ops.aiter.paged_attention_rocm` this one, unless there is such an operator.

    Returns:
        Whether it is.
    """
    if not _libraries and hasattr(torch.ops.aiter, "paged_attention_rocm"):
        return False
    if not _libraries:
        name, key = "paged_attention_rocm", "CompositeExplicitAutograd"
        library = torch.library.Library("aiter", "FRAGMENT")  # type: ignore[no-untyped-call]
        library.define(_SCHEMA)  # type: ignore[no-untyped-call]
        library.impl(name, paged_attention_rocm, key)  # type: ignore[no-untyped-call]
        _libraries.append(library)
    return True


class PagedAttention:
    """AITER's class of that name, as far as decode goes."""

    @staticmethod
    def forward_decode(
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        block_tables: Tensor,
        seq_lens: Tensor,
        max_seq_len: int,
        kv_cache_dtype: str,
        num_kv_heads: int,
        scale: float,
        alibi_slopes: Tensor | None,
        k_scale: Tensor | None,
        v_scale: Tensor | None,
        q_scale: Tensor | None = None,
        tp_rank: int = 0,
        blocksparse_local_blocks: int = 0,
        blocksparse_vert_stride: int = 0,
        blocksparse_block_size: int = 64,
        blocksparse_head_sliding_step: int = 0,
        fp8_out_scale: Tensor | None = None,
        mtp: int = 1,
        output_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Paged attention of `mtp` tokens a request; multi-token fp8 decode takes its own kernel.

        Args:
            query: [batch * mtp, nhead, head_dim] bf16 or fp16.
            key_cache: as in paged_attention_rocm.
            value_cache: likewise; 5-D where it is shuffled.
            block_tables: [batch, max_blocks] int32.
            seq_lens: [batch] int32, the tokens of this step included.
            max_seq_len: tokens of a request at most.
            kv_cache_dtype: as in paged_attention_rocm.
            num_kv_heads: kv heads.
            scale: softmax scale.
            alibi_slopes: None.
            k_scale: as in paged_attention_rocm.
            v_scale: likewise.
            q_scale: likewise.
            tp_rank: not used without block sparsity.
            blocksparse_local_blocks: not used without block sparsity.
            blocksparse_vert_stride: 0 or 1: there is no block sparsity.
            blocksparse_block_size: not used without block sparsity.
            blocksparse_head_sliding_step: not used without block sparsity.
            fp8_out_scale: [1] fp32: the output is fp8.
            mtp: query tokens of a request.
            output_dtype: bf16 or fp16; default that of query.

        Returns:
            [batch * mtp, nhead, head_dim], or [batch * mtp, nhead * head_dim] fp8.

        Raises:
            BadArgument: an argument has a wrong type, shape or range.
        """
        if blocksparse_vert_stride > 1:
            raise BadArgument(
                f"blocksparse_vert_stride: expected 0 or 1, got {blocksparse_vert_stride}; block "
                "sparsity is not done here"
            )
        rank = key_cache.dim() if isinstance(key_cache, Tensor) else 0
        _check_heads(key_cache, num_kv_heads, key_cache.shape[3] if rank == 5 else 0)
        if fp8_out_scale is not None and isinstance(query, Tensor):
            output_dtype = _own_fp8(query.device)
        with _Renamed(_NAMES_OF_DECODE | {"context_lens": "seq_lens"}):
            out = _decode(
                query, key_cache, value_cache, block_tables, seq_lens, None, output_dtype, scale,
                (k_scale, v_scale, q_scale, fp8_out_scale), alibi_slopes, kv_cache_dtype,
                (mtp, max_seq_len),
            )  # fmt: skip
        return out if fp8_out_scale is None else out.view(out.shape[0], -1)


def _decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    out: Tensor | None,
    out_dtype: torch.dtype | None,
    scale: float,
    scales: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    alibi_slopes: Tensor | None,
    kv_cache_dtype: str,
    sizes: tuple[int, int],
) -> Tensor:
    """One step; `scales` are those of keys, values, query and output, `sizes` mtp and context."""
    if alibi_slopes is not None:
        raise BadArgument("alibi_slopes: expected None, got slopes; biases are not done here")
    _check_word(kv_cache_dtype, key_cache)
    k_scale, v_scale, q_scale, out_scale = scales
    mtp, longest = sizes
    return paged_attention(
        query, key_cache, value_cache, block_tables, context_lens,
        options=PagedOptions(max_seqlen_q=mtp, max_seq_len=longest, q_scale=q_scale is not None),
        k_scale=_scales(k_scale, key_cache),
        v_scale=_scales(v_scale, key_cache),
        sm_scale=scale,
        out=out,
        out_dtype=out_dtype,
        out_scale=out_scale,
    )  # fmt: skip


def _check_heads(cache: Tensor, num_kv_heads: int, block_size: int) -> None:
    if not isinstance(cache, Tensor) or cache.dim() != 5:
        return  # refused by name later
    have = (cache.shape[1], cache.shape[3])
    if have != (num_kv_heads, block_size):
        raise BadArgument(
            f"num_kv_heads, block_size: expected {have} as in key_cache, got "
            f"{(num_kv_heads, block_size)}"
        )


def _check_word(word: str, cache: Tensor) -> None:
    if word not in ("auto", *_FP8_WORDS):
        known = ", ".join(("auto", *_FP8_WORDS))
        raise BadArgument(f"kv_cache_dtype: expected one of {known}, got {word!r}")
    if not isinstance(cache, Tensor):
        return
    fp8 = cache.dtype in _FP8_DTYPES
    if (word == "auto" and cache.dtype == torch.uint8) or (
        word != "auto" and not fp8 and cache.dtype != torch.uint8
    ):
        raise BadArgument(f"kv_cache_dtype: expected that of key_cache, got {word!r} beside "
                          f"{describe(cache)}")  # fmt: skip


def _scales(scale: Tensor | None, cache: Tensor) -> Tensor | None:
    """A scale a token as [num_blocks, nhead_kv, block_size], from [nhead_kv, tokens] as well."""
    if not isinstance(scale, Tensor) or not isinstance(cache, Tensor) or cache.dim() != 5:
        return scale
    blocks, heads, _, size, _ = cache.shape
    if scale.numel() == 1 or scale.numel() != blocks * heads * size:
        return scale
    if scale.dim() == 2 and tuple(scale.shape) == (heads, blocks * size):
        return scale.view(heads, blocks, size).transpose(0, 1)
    return scale.view(blocks, heads, size) if scale.dim() == 1 else scale


def _restrided(tables: Tensor, stride: int) -> Tensor:
    """The table with the row stride that the caller names, inside the memory of its own."""
    if not isinstance(tables, Tensor) or tables.dim() != 2 or tables.stride(0) == stride:
        return tables
    batch, width = tables.shape
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 0:
        raise BadArgument(f"block_tables_stride0: expected an int of 0 or more, got {stride!r}")
    if batch <= 1:
        return tables
    if stride > tables.stride(0):
        raise BadArgument(
            f"block_tables_stride0: expected at most {tables.stride(0)}, the distance of the rows "
            f"of block_tables, got {stride}"
        )
    return tables.as_strided((batch, width), (stride, tables.stride(1)))


def _own_fp8(device: torch.device) -> torch.dtype:
    return _FP8_DTYPES[ops.family_and_units(device)[0] == "gfx942"]


class _Renamed:
    """Speaks of arguments by the caller's names."""

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, BadArgument):
            return
        subject, colon, rest = str(error).partition(":")
        words = [self._names.get(word, word) for word in subject.split(", ")]
        raise type(error)(", ".join(words) + colon + rest) from error
