# SPDX-License-Identifier: MIT
"""The two planners once more, in plain Python on host lengths: what the device must write."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class Step:
    """One planner call. `pages` and `qlens` are per request, `last` the tokens in its last page."""

    qlens: list[int]
    pages: list[int]
    last: list[int] | None = None
    nhead: int = 16
    max_seqlen_q: int = 1
    page_size: int = 1
    kv_granularity: int = 16
    clusters: int = 8
    causal: bool = True
    intra_batch_mode: bool = False
    num_kv_splits: int = 32
    max_split_per_batch: int = -1
    topk: int = -1


class Tile(NamedTuple):
    """Query rows [q0, q1) of a request and the keys they see, in pages and tokens."""

    batch: int
    q0: int
    q1: int
    stride: int  # partial rows per partial
    kv0: int
    pages: int  # that some row of the tile sees
    blocks: int  # of the whole request
    tokens: int  # of the whole request
    extra: int  # sparse: undoes the causal trim


@dataclass
class Schedule:
    """The live part of the metadata tensors."""

    works: list[tuple[int, ...]] = field(default_factory=list)
    work_indptr: list[int] = field(default_factory=lambda: [0])
    reduce_indptr: list[int] = field(default_factory=lambda: [0])
    final_map: list[tuple[int, int]] = field(default_factory=list)
    partial_map: list[int] = field(default_factory=list)
    payload: int = 0
    tiles: list[Tile] = field(default_factory=list)

    def emit(self, tile: Tile, page_size: int, begin: int, end: int, partial: int) -> None:
        after = max(tile.tokens - end * page_size, 0)
        kv = (tile.kv0 + begin, tile.kv0 + end)
        self.works.append((tile.batch, partial, tile.q0, tile.q1, *kv, after + tile.extra, 0))

    def finish(self, tile: Tile) -> None:
        self.final_map.append((tile.q0, tile.q1))
        self.reduce_indptr.append(len(self.partial_map))


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def request_tokens(step: Step, b: int) -> int:
    """Tokens of request b; the last page may be partly filled."""
    pages = step.pages[b]
    if pages == 0:
        return 0
    full = step.page_size == 1 or step.last is None
    return (pages - 1) * step.page_size + (step.page_size if full else step.last[b])


def dense_tiles(step: Step) -> list[Tile]:
    cap = max(128 // step.nhead, 1)
    out = []
    row = kv0 = 0
    for b, (qlen, pages) in enumerate(zip(step.qlens, step.pages, strict=True)):
        count = ceil_div(qlen, cap)
        for t in range(count):
            stride = ceil_div(qlen, count)
            hidden = count - 1 - t if step.causal and step.page_size == 1 else 0
            q0 = row + t * stride
            out.append(
                Tile(
                    batch=b,
                    q0=q0,
                    q1=min(q0 + stride, row + qlen),
                    stride=stride,
                    kv0=kv0,
                    pages=max(pages - hidden, 0),
                    blocks=ceil_div(pages, step.kv_granularity),
                    tokens=request_tokens(step, b),
                    extra=0,
                )
            )
        row += qlen
        kv0 += pages
    return out


def sparse_tiles(step: Step) -> list[Tile]:
    qlen = step.qlens[0] if step.qlens else 0
    out = []
    for b in range(len(step.qlens)):
        for i in range(qlen):
            token = b * qlen + i
            pages = min(step.pages[b], ceil_div(step.topk, step.page_size))
            tokens = min(request_tokens(step, b), step.topk)
            blocks = ceil_div(pages, step.kv_granularity)
            kv0 = token * step.topk
            out.append(Tile(b, token, token + 1, 1, kv0, pages, blocks, tokens, qlen - 1 - i))
    return out


def balanced(step: Step, tiles: list[Tile]) -> Schedule:
    """Planner v1_2: greedy, in order, a payload per cluster."""
    out = Schedule(tiles=tiles)
    gran, overhead = step.kv_granularity, max(1, ceil_div(16, step.page_size))
    total = sum(t.blocks + overhead for t in tiles)
    budget = step.clusters
    if step.max_split_per_batch > 0:
        requests = len(tiles) if step.topk >= 0 else len(step.qlens)
        budget = min(budget, step.max_split_per_batch * requests)
    out.payload = ceil_div(total, max(budget, 1)) + overhead
    i = done = nsplit = prow = 0
    tail = False
    for _ in range(step.clusters):
        room = out.payload
        while i < len(tiles):
            tile = tiles[i]
            rest = tile.blocks - done
            if room >= rest + overhead or tail:
                out.emit(tile, step.page_size, done * gran, tile.pages, prow if nsplit else -1)
                if nsplit:
                    out.partial_map += [
                        prow - (nsplit - k) * tile.stride for k in range(nsplit + 1)
                    ]
                    prow += tile.stride
                out.finish(tile)
                room -= rest + overhead
                i, done, nsplit, tail = i + 1, 0, 0, False
                continue
            if room > overhead:
                take = room - overhead
                end = min((done + take) * gran, tile.pages)
                if step.page_size == 1 and tile.pages - end < step.max_seqlen_q:
                    tail = True
                elif step.page_size > 1 and tile.tokens <= end * step.page_size:
                    tail = True  # an empty last page; offset 0 must mean that the tail is here
                else:
                    out.emit(tile, step.page_size, done * gran, end, prow)
                    prow += tile.stride
                    done += take
                    nsplit += 1
            if not tail:
                break
        out.work_indptr.append(len(out.works))
    return out


def intra_batch(step: Step, tiles: list[Tile]) -> Schedule:
    """Planner v1_0: every tile cut evenly by itself, works dealt by number."""
    out = Schedule(tiles=tiles)
    prow = 0
    for tile in tiles:
        tokens = min(tile.pages * step.page_size, tile.tokens)
        limits = [tokens // 196, ceil_div(step.clusters, len(tiles)), step.num_kv_splits]
        if step.max_split_per_batch > 0:
            limits.append(step.max_split_per_batch)
        blocks = ceil_div(tile.pages, step.kv_granularity)
        payload = max(ceil_div(blocks, max(min(limits), 1)), 1)
        cuts = [s * payload * step.kv_granularity for s in range(ceil_div(blocks, payload))]
        if len(cuts) > 1 and tokens - cuts[-1] * step.page_size <= 4:
            cuts.pop()
        if len(cuts) < 2:
            out.emit(tile, step.page_size, 0, tile.pages, -1)
            out.partial_map.append(-1)
        else:
            for begin, end in zip(cuts, [*cuts[1:], tile.pages], strict=True):
                out.emit(tile, step.page_size, begin, end, prow)
                out.partial_map.append(prow)
                prow += tile.stride
        out.finish(tile)
    each, rest = divmod(len(out.works), step.clusters)
    for c in range(step.clusters):
        out.work_indptr.append(out.work_indptr[-1] + each + (c < rest))
    return out


def plan(step: Step) -> Schedule:
    tiles = dense_tiles(step) if step.topk < 0 else sparse_tiles(step)
    return (intra_batch if step.intra_batch_mode else balanced)(step, tiles)
