# SPDX-License-Identifier: MIT
"""Decode context parallel: the ranks of a torch.distributed group share the keys of each request.

Every rank decodes all query rows over its own keys, the partial results change places, and the
merge kernel of planned decodes makes one of them, in the order of the ranks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from . import ops
from .arguments import OUTPUT_DTYPES, check_int, check_lse, check_output, describe
from .decode import mla_decode
from .errors import BadArgument
from .shard import KvShard, check_deal

# PyTorch 2.13 has another name for it
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class _Results(NamedTuple):
    """Partial results of some ranks, and the bytes that are both."""

    flat: Tensor  # [blocks, bytes]
    out: Tensor  # [blocks, rows, heads, head_dim_v]
    lse: Tensor  # [blocks, rows, heads] fp32, natural log


class _Views(NamedTuple):
    """The memory of a step of so many rows."""

    part: _Results
    sent: _Results
    received: _Results
    partial: Tensor  # [ranks, rows, heads, head_dim_v] fp32
    partial_lse: Tensor  # [ranks, rows, heads] fp32


class RankedDecode:
    """Decode steps whose keys lie on several ranks; holds all memory that a step needs.

    All ranks of the group make the same calls in the same order. A call reads no length on the
    host and, once its kernels are loaded, allocates nothing: on GPUs it can be captured in a graph,
    collectives included.

    Args:
        max_rows: query rows of one step at most.
        nhead: query heads of a step, those of all ranks together.
        head_dim_v: columns of the output.
        dtype: bf16 or fp16, of the output and of the partial results on their way.
        device: where the tensors live; the group's backend must serve it (gloo: CPUs, NCCL: GPUs).
        group: of torch.distributed; by default all ranks.
        kv_interleave: tokens that lie together; token t of a request is on rank
            (t // kv_interleave) % ranks.
        scatter_heads: each rank gets its own nhead / ranks heads of the result, by an all-to-all
            that moves 1 / ranks of the bytes. False: every rank gets all heads, with equal bits.

    Raises:
        BadArgument: an argument is out of its range, or there is no group.
    """

    def __init__(
        self,
        max_rows: int,
        nhead: int,
        *,
        head_dim_v: int = 512,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        group: dist.ProcessGroup | None = None,
        kv_interleave: int = 1,
        scatter_heads: bool = False,
    ) -> None:
        """Allocates for the largest step."""
        if not dist.is_available() or not dist.is_initialized():
            raise BadArgument(
                "group: expected torch.distributed to be initialised, got none; call "
                "torch.distributed.init_process_group"
            )
        check_int("max_rows", max_rows, 1)
        check_int("nhead", nhead, 1, 128)
        check_int("head_dim_v", head_dim_v, 1, 1024)
        if dtype not in OUTPUT_DTYPES:
            raise BadArgument(f"dtype: expected bf16 or fp16, got {dtype}")
        self.group = group
        self.world_size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        check_deal(self.world_size, self.rank, kv_interleave)
        if scatter_heads and nhead % self.world_size:
            raise BadArgument(
                f"nhead: expected a multiple of the group's {self.world_size} ranks where each "
                f"gets its own heads, got {nhead}; pass scatter_heads=False"
            )
        self.kv_interleave, self.scatter_heads = kv_interleave, scatter_heads
        self.max_rows, self.nhead, self.head_dim_v, self.dtype = max_rows, nhead, head_dim_v, dtype
        self.device = torch.device(device)
        self.own_heads = nhead // self.world_size if scatter_heads else nhead
        """Heads of the result on this rank."""
        self._allocate()

    def _allocate(self) -> None:
        most = self.max_rows * self.nhead
        received = self.world_size * self.max_rows * self.own_heads
        size = self.head_dim_v * self.dtype.itemsize + torch.float32.itemsize  # of a row and head

        def new(count: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(count, dtype=dtype, device=self.device)

        self._sent = new(most * size, torch.uint8)
        self._received = new(received * size, torch.uint8)
        self._own = new(most * size if self.scatter_heads else 0, torch.uint8)
        self._partial = new(received * self.head_dim_v, torch.float32)
        self._partial_lse = new(received, torch.float32)
        ranks = torch.arange(self.world_size, dtype=torch.int32)
        rows = torch.arange(self.max_rows + 1, dtype=torch.int32)
        # one tile of all rows; its partials begin a multiple of the rows apart
        self._maps = (rows[:, None] * ranks).to(self.device)
        self._indptr = torch.tensor([0, self.world_size], dtype=torch.int32, device=self.device)
        self._views: dict[int, _Views] = {}

    def decode(
        self,
        q: Tensor,
        kv_buffer: Tensor,
        qo_indptr: Tensor,
        kv_indptr: Tensor,
        kv_indices: Tensor,
        *,
        max_seqlen_q: int,
        g_kv_indptr: Tensor,
        out: Tensor | None = None,
        lse: Tensor | None = None,
        return_lse: bool = False,
        **options: Any,  # noqa: ANN401
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One decode step over the keys of all ranks.

        Args:
            q: [rows, nhead, head_dim_qk], the same on every rank.
            kv_buffer: this rank's pages.
            qo_indptr: [batch + 1] int32, the same on every rank.
            kv_indptr: [batch + 1] int32, this rank's pages of each request (see `shard_indptr`).
            kv_indices: int32, this rank's page ids.
            max_seqlen_q: query rows of one request at most.
            g_kv_indptr: [batch + 1] int32, tokens of each request over all ranks, new ones
                included.
            out: [rows, nhead or nhead / ranks, head_dim_v], written in place.
            lse: [rows, nhead or nhead / ranks] fp32 to write the log-sum-exp to.
            return_lse: also return it.
            options: kv_last_page_lens, sm_scale, causal, q_scale, kv_scale, plan, kv_len, route,
                num_splits, tile_rows, batch_invariant and workspace, as of `mla_decode`.

        Returns:
            out, or (out, lse): the result over all keys; of all heads, or of this rank's with
            `scatter_heads`: head rank * nhead / ranks and on.

        Raises:
            BadArgument: an argument is wrong. The other ranks then wait in vain.
        """
        rows = self._check_rows(q)
        views = self._views_of(rows)
        part, part_lse = views.part.out[0], views.part.lse[0]
        shard = KvShard(g_kv_indptr, self.world_size, self.rank, self.kv_interleave)
        out, lse = self._results(rows, out, lse, return_lse)
        if self.world_size == 1:
            part, part_lse = out, part_lse if lse is None else lse
        # stage 0: this rank's keys
        mla_decode(
            q, kv_buffer, qo_indptr, kv_indptr, kv_indices, max_seqlen_q=max_seqlen_q, shard=shard,
            out=part, lse=part_lse, return_lse=True, **options,
        )  # fmt: skip
        if self.world_size > 1 and rows > 0:
            self._exchange(views)
            self._merge(views, out, lse)
        return (out, lse) if return_lse and lse is not None else out

    def merge(
        self,
        o: Tensor,
        o_lse: Tensor,
        *,
        out: Tensor | None = None,
        lse: Tensor | None = None,
        return_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Merges what every rank's own decode returned over its keys.

        Args:
            o: [rows, nhead, head_dim_v] bf16 or fp16, normalised.
            o_lse: [rows, nhead] fp32, natural log; -inf where a row saw no key here.
            out: as in `decode`.
            lse: likewise.
            return_lse: likewise.

        Returns:
            As `decode`.

        Raises:
            BadArgument: an argument is wrong. The other ranks then wait in vain.
        """
        rows = self._check_rows(o)
        check_output("o", o, rows, self.nhead, self.head_dim_v, self.device)
        check_lse(o_lse, rows, self.nhead, self.device, name="o_lse")
        if o_lse is None:
            raise BadArgument("o_lse: expected a tensor, got None; decode with return_lse=True")
        out, lse = self._results(rows, out, lse, return_lse)
        if self.world_size == 1:
            out.copy_(o)
            if lse is not None:
                lse.copy_(o_lse.view_as(lse))
        elif rows > 0:
            views = self._views_of(rows)
            views.part.out[0].copy_(o)
            views.part.lse[0].copy_(o_lse.view(rows, self.nhead))
            self._exchange(views)
            self._merge(views, out, lse)
        return (out, lse) if return_lse and lse is not None else out

    def _check_rows(self, q: Tensor) -> int:
        if not isinstance(q, Tensor) or q.dim() != 3 or q.shape[1] != self.nhead:
            raise BadArgument(f"q: expected [rows, {self.nhead}, columns], got {describe(q)}")
        if q.shape[0] > self.max_rows or q.device.type != self.device.type:
            raise BadArgument(
                f"q: expected at most {self.max_rows} rows on {self.device}, got {describe(q)}"
            )
        return q.shape[0]

    def _results(
        self, rows: int, out: Tensor | None, lse: Tensor | None, return_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        shape = (rows, self.own_heads, self.head_dim_v)
        if out is None:
            out = torch.empty(shape, dtype=self.dtype, device=self.device)
        else:
            check_output("out", out, *shape, out.device)
        if lse is None and return_lse:
            lse = torch.empty(shape[:2], dtype=torch.float32, device=self.device)
        check_lse(lse, rows, self.own_heads, out.device)
        return out, lse

    def _views_of(self, rows: int) -> _Views:
        found = self._views.get(rows)
        if found is None:
            ranks, scatters = self.world_size, self.scatter_heads
            shape = (rows, self.own_heads)
            count = ranks * rows * self.own_heads
            found = self._views[rows] = _Views(
                part=self._cut(self._own if scatters else self._sent, 1, (rows, self.nhead)),
                sent=self._cut(self._sent, ranks if scatters else 1, shape),
                received=self._cut(self._received, ranks, shape),
                partial=self._partial[: count * self.head_dim_v].view(
                    ranks, *shape, self.head_dim_v
                ),
                partial_lse=self._partial_lse[:count].view(ranks, *shape),
            )
        return found

    def _cut(self, memory: Tensor, blocks: int, shape: tuple[int, int]) -> _Results:
        """The first blocks of `memory` as they travel, each an output before its LSE."""
        values = shape[0] * shape[1]
        first = values * self.head_dim_v * self.dtype.itemsize
        size = first + values * torch.float32.itemsize
        flat = memory[: blocks * size].view(blocks, size)
        out = flat[:, :first].view(self.dtype).view(blocks, *shape, self.head_dim_v)
        return _Results(flat, out, flat[:, first:].view(torch.float32).view(blocks, *shape))

    def _exchange(self, views: _Views) -> None:
        """stage 1: partial results change places, an output and its LSE as one."""
        _, out, lse = views.part
        sent, received = views.sent, views.received
        if self.scatter_heads:
            rows, ranks = out.shape[1], self.world_size
            sent.out.copy_(out.view(rows, ranks, self.own_heads, -1).transpose(0, 1))
            sent.lse.copy_(lse.view(rows, ranks, self.own_heads).transpose(0, 1))
            dist.all_to_all_single(received.flat, sent.flat, group=self.group)
        else:
            _all_gather(received.flat, sent.flat, group=self.group)

    def _merge(self, views: _Views, out: Tensor, lse: Tensor | None) -> None:
        rows, heads = out.shape[:2]
        # stage 2: the merge kernel reads fp32
        views.partial.copy_(views.received.out)
        views.partial_lse.copy_(views.received.lse)
        # stage 3: one result, in the order of the ranks
        ops.ensure_kernel("mla_reduce", self.device)
        torch.ops.hipdecode.mla_reduce.default(
            views.partial.view(-1, heads, self.head_dim_v), views.partial_lse, self._indptr, None,
            self._maps[rows], out, lse, rows, self.world_size,
        )  # fmt: skip
