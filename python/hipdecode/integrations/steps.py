# SPDX-License-Identifier: MIT
"""What one decode step needs beside its tensors, kept at fixed addresses between steps.

Engines hand a padded table of blocks and a length per request; the kernels read lists of pages.
Everything here is made on the device, without reading a length on the host, once per step: outside
of an engine's graphs, or within one that holds a whole step. A captured graph replays with the
addresses of its capture, so lists and plans of captured sizes are filled anew in place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hipdecode import ops
from hipdecode.arguments import DTYPE_NAMES
from hipdecode.dispatch import DecodeShape, route_mla_decode
from hipdecode.errors import WorkspaceError
from hipdecode.plan import MlaPlan, plan_mla_decode
from hipdecode.workspace import Workspace, default_workspace

_LENGTH_BITS = 3  # an average context is known to one part in eight: steps repeat, routes are kept


class PageLists:
    """Lists of pages of up to `max_batch` requests of up to `max_blocks` blocks.

    Args:
        max_batch: requests at most, padding included.
        max_blocks: blocks of a request at most.
        page_size: tokens of a block, a power of two.
        device: of the engine's tensors.
    """

    def __init__(
        self, max_batch: int, max_blocks: int, page_size: int, device: torch.device
    ) -> None:
        """Allocates all of it."""
        self._max_batch, self._max_blocks, self._page_size = max_batch, max_blocks, page_size
        self._capacity = max_batch * max_blocks
        int32 = torch.int32
        self._indptr = torch.zeros(max_batch + 1, dtype=int32, device=device)
        self._last_page_lens = torch.zeros(max_batch, dtype=int32, device=device)
        # the last place takes what lies past a request's pages
        self._indices = torch.full((self._capacity + 1,), -1, dtype=int32, device=device)
        self._columns = torch.arange(max_blocks, device=device)
        if device.type == "cuda":  # compiles the kernel before the first step
            self.fill(self._indices[:1, None], self._indices[:1], 0)

    def fill(
        self, block_table: Tensor, seq_lens: Tensor, max_seq_len: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Makes the lists of one step.

        Args:
            block_table: [batch, any] int32, blocks of each request; read up to its length.
            seq_lens: [batch] int32 tokens of each request; 0 for padding.
            max_seq_len: tokens of a request at most, as the host knows it.

        Returns:
            kv_indptr [batch + 1], kv_indices [any] and kv_last_page_lens [batch] of mla_decode.

        Raises:
            WorkspaceError: more requests or longer ones than there is room for.
        """
        batch = seq_lens.shape[0]
        wanted = max(-(-max_seq_len // self._page_size), 1)
        blocks = min(wanted, block_table.shape[1])
        if batch > self._max_batch or blocks > self._max_blocks:
            raise WorkspaceError(
                f"block_table: expected at most {self._max_batch} requests of {self._max_blocks} "
                f"blocks, got {batch} of {blocks}; raise --max-num-seqs or --max-model-len"
            )
        size = self._page_size
        indptr, last = self._indptr[: batch + 1], self._last_page_lens[:batch]
        if seq_lens.is_cuda and block_table.stride(1) == 1:
            from .pages_triton import fill

            lists = (indptr, self._indices, last)
            fill(block_table, seq_lens, blocks * size, size, lists, self._max_batch)
            return lists
        lens = seq_lens.clamp(0, blocks * size)
        pages = (lens + (size - 1)) >> (size.bit_length() - 1)
        torch.cumsum(pages, 0, dtype=torch.int32, out=indptr[1:])
        torch.sub(lens, pages, alpha=size, out=last).add_(size)
        columns = self._columns[:blocks]
        places = indptr[:-1, None] + columns
        places.masked_fill_(columns >= pages[:, None], self._capacity)
        table = block_table[:, :blocks].to(torch.int32)
        self._indices.scatter_(0, places.flatten(), table.flatten())
        return indptr, self._indices, last


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a plan or a route follows from.

    Attributes:
        batch: requests, padding included.
        q_len: query rows of one request at most.
        causal: row i of n sees all keys but the last n - 1 - i.
    """

    batch: int
    q_len: int
    causal: bool


class StepPlans:
    """Plans of the steps of one engine: one each for captured sizes, and one for all others.

    Args:
        max_batch: requests at most, padding included.
        nhead: query heads.
        head_dim_qk: columns of the cache.
        head_dim_v: leading columns of it that are V.
        page_size: tokens of a block.
        q_dtype: of the queries.
        kv_dtype: of the cache.
        device: of the engine's tensors.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        nhead: int,
        head_dim_qk: int,
        head_dim_v: int,
        page_size: int,
        q_dtype: torch.dtype,
        kv_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Nothing is planned yet; the scratch of captured calls is put aside."""
        self._max_batch = max_batch
        self._nhead, self._page_size = nhead, page_size
        self._head_dims = (head_dim_qk, head_dim_v)
        self._dtypes = (q_dtype, kv_dtype)
        self._device = device
        self._partials = Workspace(device)
        self._captured: dict[StepShape, MlaPlan] = {}
        self._spare: dict[tuple[int, bool], MlaPlan] = {}
        default_workspace(device)

    def capture(self, shape: StepShape, qo_indptr: Tensor, lists: tuple[Tensor, ...]) -> MlaPlan:
        """The plan that a graph is about to be captured with; `follow` fills it from now on."""
        if shape not in self._captured:
            self._captured[shape] = self._planned(shape, qo_indptr, lists, None)
        return self._captured[shape]

    def follow(
        self,
        shape: StepShape,
        qo_indptr: Tensor,
        lists: tuple[Tensor, ...],
        kv_len: int,
        max_kv_len: int | None = None,
    ) -> MlaPlan | None:
        """The plan of a step, or None where its route needs none.

        Args:
            shape: of the step.
            qo_indptr: [batch + 1] int32 query rows.
            lists: of `PageLists.fill`.
            kv_len: average context in tokens, for the route alone.
            max_kv_len: longest context, where the host knows it; likewise.

        Returns:
            That of the captured graph of this shape, which may be about to be replayed; else a
            plan where the tables choose the persistent route.
        """
        captured = self._captured.get(shape)
        if captured is not None:
            return self._planned(shape, qo_indptr, lists, captured)
        if shape.batch == 0:
            return None
        route = step_route(
            self._device,
            batch=shape.batch,
            nhead=self._nhead,
            q_len=shape.q_len,
            kv_len=kv_len,
            max_kv_len=max_kv_len,
            dtypes=self._dtypes,
            page_size=self._page_size,
            head_dims=self._head_dims,
        )
        if route != "persistent":
            return None
        key = (shape.q_len, shape.causal)
        if key not in self._spare:  # of the largest batch: room for all
            largest = StepShape(self._max_batch, shape.q_len, shape.causal)
            none = qo_indptr.new_zeros(self._max_batch + 1)
            self._spare[key] = self._planned(largest, none, (none, none, none[1:]), None)
        return self._planned(shape, qo_indptr, lists, self._spare[key])

    def _planned(
        self, shape: StepShape, qo_indptr: Tensor, lists: tuple[Tensor, ...], out: MlaPlan | None
    ) -> MlaPlan:
        return plan_mla_decode(
            qo_indptr,
            lists[0],
            nhead=self._nhead,
            max_seqlen_q=shape.q_len,
            page_size=self._page_size,
            kv_last_page_lens=lists[2],
            causal=shape.causal,
            head_dim_v=self._head_dims[1],
            out=out,
            workspace=None if out is not None else self._partials,
        )


def step_route(
    device: torch.device,
    *,
    batch: int,
    nhead: int,
    q_len: int,
    kv_len: int | None,
    max_kv_len: int | None,
    dtypes: tuple[torch.dtype, torch.dtype],
    page_size: int,
    head_dims: tuple[int, int],
    batch_invariant: bool = False,
) -> str:
    """The route of an engine's step; its lengths may be rounded each by itself.

    Args:
        device: of the engine's tensors.
        batch: see DecodeShape, likewise those that are not named here.
        nhead: of a rank.
        q_len: of each request.
        kv_len: the average.
        max_kv_len: the longest; below the average it counts as that.
        dtypes: of q and of the cache.
        page_size: tokens.
        head_dims: head_dim_qk, head_dim_v.
        batch_invariant: likewise.
    """
    family, compute_units = ops.family_and_units(device)
    shape = DecodeShape(
        family=family,
        compute_units=compute_units,
        batch=batch,
        nhead=nhead,
        q_len=q_len,
        kv_len=kv_len,
        max_kv_len=None if max_kv_len is None else max(kv_len or 0, max_kv_len),
        q_dtype=DTYPE_NAMES[dtypes[0]],
        kv_dtype=DTYPE_NAMES[dtypes[1]],
        page_size=page_size,
        head_dim_qk=head_dims[0],
        head_dim_v=head_dims[1],
        batch_invariant=batch_invariant,
    )
    return route_mla_decode(shape).route


def coarse_length(tokens: int, requests: int) -> int:
    """The average context, rounded up to one part in eight, so that steps resemble each other."""
    average = max(-(-tokens // max(requests, 1)), 1)
    shift = max(average.bit_length() - 1 - _LENGTH_BITS, 0)
    return ((average - 1 >> shift) + 1) << shift


def slots_of_tokens(tokens: Tensor, request: Tensor, block_table: Tensor, size: int) -> Tensor:
    """The slots of a cache that positions of requests lie in.

    Args:
        tokens: [rows, topk] int32 positions within the request of each row; negative: none.
        request: [rows] int32, whose block list a row uses.
        block_table: [batch, width] int32 blocks of each request.
        size: tokens of a block.

    Returns:
        [rows, topk] int32, -1 where there is no token or no block.
    """
    block = tokens.long().div(size, rounding_mode="floor")
    known = (tokens >= 0) & (block < block_table.shape[1])
    blocks = block_table.long()[request.long()].gather(1, block.where(known, 0))
    slots = blocks * size + tokens.long().remainder(size)
    return slots.where(known & (blocks >= 0), -1).int()
