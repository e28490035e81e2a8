# SPDX-License-Identifier: MIT
"""Routes: the published crossover, purity, the documented rules, head packing, refusals."""

from __future__ import annotations

import dataclasses
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hipdecode import settings
from hipdecode.dispatch import (
    FAMILIES,
    INVARIANT_SPLITS,
    DecodeShape,
    Route,
    clear_route_cache,
    route_mla_decode,
)
from hipdecode.errors import BadArgument, TableError, UnsupportedShape
from hipdecode.hk_splits import auto_splits
from hipdecode.support import DTYPE_PAIRS, HEAD_DIMS
from hipdecode.table_files import MLA_DECODE

SEED = DecodeShape(
    family="gfx950",
    compute_units=256,
    batch=8,
    nhead=32,
    q_len=4,
    kv_len=4096,
    q_dtype="fp8_e4m3fn",
    kv_dtype="fp8_e4m3fn",
)
BF16 = dataclasses.replace(SEED, q_dtype="bf16", kv_dtype="bf16")
quick = hypothesis_settings(max_examples=200, deadline=None)


def route_of(shape: DecodeShape = SEED, **changes: object) -> Route:
    return route_mla_decode(dataclasses.replace(shape, **changes))  # type: ignore[arg-type]


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that stands in for configs/tuned."""
    for family in FAMILIES:
        (tmp_path / family).mkdir()
    with settings.override(tables=tmp_path):
        clear_route_cache()
        yield tmp_path
    clear_route_cache()


@pytest.mark.parametrize(
    ("batch", "kv_len", "route"),
    [(8, 4096, "hk"), (8, 8192, "persistent"), (32, 1024, "hk"), (64, 512, "persistent")],
)
def test_route_matches_the_published_smoke_cases(batch: int, kv_len: int, route: str) -> None:
    assert route_of(batch=batch, kv_len=kv_len).route == route


def published_crossover(batch: int, kv_len: int) -> str:
    """The rule as aiter#3003 words it."""
    limits = ((8, 4096), (16, 2048), (32, 1024), (64, 256), (256, 64))
    limit = next((kv for most, kv in limits if batch <= most), -1)
    return "hk" if kv_len <= limit else "persistent"


@quick
@given(
    batch=st.integers(1, 300),
    kv_len=st.one_of(st.integers(0, 10000), st.sampled_from([64, 65, 256, 1024, 2049, 4097])),
)
def test_route_matches_the_published_crossover(batch: int, kv_len: int) -> None:
    assert route_of(batch=batch, kv_len=kv_len).route == published_crossover(batch, kv_len)


@pytest.mark.parametrize(("longest", "route"), [(None, "hk"), (1099, "hk"), (4084, "persistent")])
def test_ragged_batches_of_hopper_follow_a_plan(longest: int | None, route: str) -> None:
    hopper = dataclasses.replace(BF16, family="sm_90", compute_units=132, page_size=64)
    got = route_of(hopper, nhead=16, q_len=1, batch=64, kv_len=1099, max_kv_len=longest)
    assert got.route == route
    assert ("ragged" in got.reason) == (route == "persistent")


def test_route_carries_row_and_evidence() -> None:
    route = route_of()
    assert route.source == "configs/tuned/gfx950/mla_decode.csv:5"
    assert route.reason.startswith(route.source)
    assert (route.us, route.runner_up, route.runner_up_us) == (65.101, "persistent", 75.661)
    assert "MI355X" in route.evidence
    assert "aiter#3003" in route.evidence


@st.composite
def shapes(draw: st.DrawFn) -> DecodeShape:
    q_dtype, kv_dtype = draw(st.sampled_from(DTYPE_PAIRS))
    dims = draw(st.sampled_from(HEAD_DIMS))
    return DecodeShape(
        family=draw(st.sampled_from(FAMILIES)),
        compute_units=draw(st.integers(1, 400)),
        batch=draw(st.integers(1, 5000)),
        nhead=draw(st.integers(1, 128)),
        q_len=draw(st.integers(1, 16)),
        kv_len=draw(st.none() | st.integers(0, 2_000_000)),
        q_dtype=q_dtype,
        kv_dtype=kv_dtype,
        page_size=2 ** draw(st.integers(0, 7)),
        head_dim_qk=dims[0],
        head_dim_v=dims[1],
        batch_invariant=draw(st.booleans()),
    )


@quick
@given(shapes())
def test_route_answers_every_supported_shape(shape: DecodeShape) -> None:
    route = route_mla_decode(shape)
    assert route == route_mla_decode.__wrapped__(dataclasses.replace(shape))
    assert route.reason
    assert (route.num_splits is None) == (route.route == "persistent")
    assert route.num_splits is None or 1 <= route.num_splits <= 64
    assert 0 <= route.padded_nhead - shape.nhead < 16
    assert route.padded_nhead % 16 == 0
    if shape.batch_invariant:
        assert (route.route, route.num_splits) == ("hk", INVARIANT_SPLITS)
    elif shape.compute_units == 1:
        assert (route.route, route.num_splits) == ("hk", 1)
    elif shape.kv_len is None:
        assert route.route == "persistent"


@quick
@given(shapes())
def test_route_is_not_changed_by_the_environment(shape: DecodeShape) -> None:
    before = route_mla_decode(shape)
    loud = settings.Settings.from_env(
        {
            "HIPDECODE_TARGET": "cpu-generic",
            "HIPDECODE_CACHE_DIR": "/nowhere",
            "HIPDECODE_NO_BUILD": "1",
            "HIPDECODE_LOG": "3",
            "HIPDECODE_DEBUG": "1",
            "HIPDECODE_CXX": "false",
            "AITER_ENABLE_EXPERIMENTAL": "1",
        }
    )
    with settings.override(**dataclasses.asdict(loud)):
        clear_route_cache()
        assert route_mla_decode(shape) == before


def test_route_reads_tables_of_the_override_folder(tables: Path) -> None:
    row = "fp8_e4m3fn,fp8_e4m3fn,32,4,1,1,,0,,hk,3,auto,,,,,,,,"
    (tables / "gfx950" / "mla_decode.csv").write_text(
        ",".join(MLA_DECODE.columns) + "\n" + row + "\n"
    )
    route = route_of(batch=300, kv_len=10**6)
    assert (route.route, route.num_splits) == ("hk", 3)
    assert route.source == f"{tables / 'gfx950' / 'mla_decode.csv'}:2"
    with pytest.raises(TableError, match=r"sm_90/mla_decode.csv: expected a readable table"):
        route_of(family="sm_90")


def test_route_is_cheap_when_cached() -> None:
    route_mla_decode(SEED)
    calls = 2000
    best = min(timeit.repeat(lambda: route_mla_decode(SEED), number=calls, repeat=20)) / calls
    assert best < 5e-6, f"{best * 1e6:.2f} us"  # about 0.6 us on an idle core


def test_route_names_the_key_that_stood_in() -> None:
    route = route_of(nhead=24)
    assert route.route == "hk"
    assert "nearest key of the table to fp8_e4m3fn/fp8_e4m3fn nhead 24 q_len 4" in route.reason
    assert "measured for fp8_e4m3fn/fp8_e4m3fn nhead 32" in route.evidence


@pytest.mark.parametrize(
    ("batch", "route"), [(1, "persistent"), (511, "persistent"), (512, "hk"), (4096, "hk")]
)
def test_route_names_the_occupancy_rule_when_no_row_is_near(batch: int, route: str) -> None:
    got = route_of(BF16, batch=batch)
    assert got.route == route
    assert got.reason.startswith("occupancy rule, since configs/tuned/gfx950/mla_decode.csv has")
    assert (got.source, got.us) == ("", None)


def test_route_says_when_the_gain_is_noise() -> None:
    assert "taken as noise" in route_of(batch=64, kv_len=512).reason
    assert "taken as noise" not in route_of().reason


def test_route_is_persistent_when_the_context_is_unknown() -> None:
    route = route_of(kv_len=None)
    assert route.route == "persistent"
    assert "capacity" in route.reason


@pytest.mark.parametrize("kv_len", [None, 100, 100000])
def test_route_is_unsplit_hk_on_one_compute_unit(kv_len: int | None) -> None:
    route = route_of(family="cpu", compute_units=1, kv_len=kv_len)
    assert (route.route, route.num_splits) == ("hk", 1)
    assert "one compute unit" in route.reason


@pytest.mark.parametrize("batch", [1, 64, 1000])
@pytest.mark.parametrize("kv_len", [None, 0, 100, 100000])
def test_route_splits_alike_when_batch_invariant(batch: int, kv_len: int | None) -> None:
    route = route_of(batch=batch, kv_len=kv_len, batch_invariant=True)
    assert (route.route, route.num_splits) == ("hk", INVARIANT_SPLITS)
    assert "batch_invariant" in route.reason


def test_route_follows_the_caller() -> None:
    assert route_of(route="persistent").route == "persistent"
    assert route_of(route="hk", kv_len=8192).num_splits == 32
    assert route_of(route="hk", kv_len=None).num_splits == INVARIANT_SPLITS
    assert route_of(num_splits=5, kv_len=10**6).num_splits == 5
    assert route_of(num_splits=5, kv_len=10**6).route == "hk"
    assert "caller" in route_of(num_splits=5).reason


def test_forced_hk_takes_the_splits_of_its_row(tables: Path) -> None:
    key = "fp8_e4m3fn,fp8_e4m3fn,32,4,1"
    rows = [
        f"{key},1,,0,2049,hk,4,auto,,,,,,,,",
        f"{key},1,,2049,,persistent,plan,auto,,,,,,,,",
    ]
    table = tables / "gfx950" / "mla_decode.csv"
    table.write_text("\n".join([",".join(MLA_DECODE.columns), *rows]) + "\n")
    assert route_of(kv_len=2048).num_splits == 4
    assert route_of(kv_len=2048, route="hk").num_splits == 4
    assert route_of(kv_len=8192, route="hk").num_splits == 32  # by the rule
    assert route_of(kv_len=2048, num_splits=2).num_splits == 2


def test_splits_of_a_row_are_cut_to_what_runs_at_once_on_sm_90(tables: Path) -> None:
    row = "bf16,bf16,32,1,1,3,9,2049,,hk,32,auto,,,,,,,,"
    around = "bf16,bf16,32,1,1,{},hk,auto,auto,,,,,,,,"
    rows = [row, *map(around.format, ("1,3,0,", "3,9,0,2049", "9,,0,"))]
    for family in ("sm_90", "gfx950"):
        table = tables / family / "mla_decode.csv"
        table.write_text("\n".join([",".join(MLA_DECODE.columns), *rows]) + "\n")
    shape = {"nhead": 32, "q_len": 1, "kv_len": 4096, "q_dtype": "bf16", "kv_dtype": "bf16"}
    four, eight = (
        route_of(**shape, family="sm_90", compute_units=132, batch=batch) for batch in (4, 8)
    )
    assert (four.num_splits, eight.num_splits) == (32, 16)
    assert "16 of its 32 splits, as many as run at once" in eight.reason
    assert "as many as run at once" not in four.reason
    assert route_of(**shape, family="gfx950", batch=8).num_splits == 32


def test_row_chooses_the_rows_of_a_tile_and_auto_splits_count_such_tiles(tables: Path) -> None:
    key = "bf16,bf16,128,1,1"
    rows = [
        f"{key},1,,0,2049,hk,auto,32,,,,,,,,",
        f"{key},1,,2049,,hk,auto,auto,,,,,,,,",
    ]
    table = tables / "sm_90" / "mla_decode.csv"
    table.write_text("\n".join([",".join(MLA_DECODE.columns), *rows]) + "\n")
    shape = {"family": "sm_90", "compute_units": 132, "nhead": 128, "q_len": 1, "batch": 4}
    shape |= {"q_dtype": "bf16", "kv_dtype": "bf16"}
    narrow, wide = (route_of(**shape, kv_len=kv_len) for kv_len in (2048, 4096))
    assert (narrow.tile_rows, narrow.num_splits) == (32, 8)
    assert "tiles of 32 query rows" in narrow.reason
    assert (wide.tile_rows, wide.num_splits) == (None, 16)
    assert route_of(**shape, kv_len=2048, route="hk").tile_rows == 32
    forced = route_of(**shape, kv_len=2048, tile_rows=16)
    assert (forced.route, forced.tile_rows, forced.num_splits) == ("hk", 16, 4)
    assert route_of(**shape, kv_len=2048, batch_invariant=True).tile_rows is None


@pytest.mark.parametrize(
    ("batch", "rows", "units", "kv_len", "splits"),
    [
        (1, 128, 256, 100_000, 32),
        (8, 128, 256, 100_000, 32),
        (16, 128, 256, 100_000, 16),
        (16, 129, 256, 100_000, 8),
        (100, 128, 256, 100_000, 3),
        (256, 128, 256, 100_000, 1),
        (8, 128, 256, 4096, 16),
        (8, 128, 256, 1023, 3),
        (8, 128, 256, 255, 1),
        (8, 128, 256, 0, 1),
        (1, 16, 2, 100_000, 2),
    ],
)
def test_auto_splits_fill_units_with_pieces_worth_it(
    batch: int, rows: int, units: int, kv_len: int, splits: int
) -> None:
    got = auto_splits(
        family="gfx950", batch=batch, nhead=rows, q_len=1, compute_units=units, kv_len=kv_len
    )
    assert got == splits


@pytest.mark.parametrize(
    ("batch", "rows", "kv_len", "splits"),
    [
        (1, 16, 100_000, 64),
        (1, 16, 8192, 64),
        (1, 16, 1200, 19),
        (1, 16, 128, 1),
        (1, 16, 0, 1),
        (8, 16, 4096, 16),
        (8, 128, 4096, 8),
        (1, 128, 4096, 33),
        (1, 128, 8192, 33),  # more partial rows take longer to merge than shorter pieces save
        (1, 128, 16384, 64),
        (2, 64, 8192, 33),
        (4, 128, 4096, 16),
        (17, 16, 4096, 7),
        (33, 64, 4096, 4),
        (64, 16, 4096, 2),
        (67, 16, 4096, 1),  # 2 would need a second wave
        (256, 512, 4096, 1),
    ],
)
def test_auto_splits_on_sm_90_run_at_once(batch: int, rows: int, kv_len: int, splits: int) -> None:
    got = auto_splits(
        family="sm_90", batch=batch, nhead=rows, q_len=1, compute_units=132, kv_len=kv_len
    )
    assert got == splits


@pytest.mark.parametrize(
    ("nhead", "q_len", "padded", "packing"),
    [
        (32, 4, 32, "rows = nhead 32 x q_len 4 = 128 -> 8 tiles of 16, none masked"),
        (4, 1, 16, "rows = nhead 4 x q_len 1 = 4 -> 1 tile of 16, 12 masked"),
        (4, 4, 16, "rows = nhead 4 x q_len 4 = 16 -> 1 tile of 16, none masked"),
        (17, 3, 32, "rows = nhead 17 x q_len 3 = 51 -> 4 tiles of 16, 13 masked"),
        (128, 16, 128, "rows = nhead 128 x q_len 16 = 2048 -> 128 tiles of 16, none masked"),
    ],
)
def test_route_says_how_heads_are_packed(nhead: int, q_len: int, padded: int, packing: str) -> None:
    route = route_of(nhead=nhead, q_len=q_len)
    assert (route.padded_nhead, route.packing) == (padded, packing)


@pytest.mark.parametrize(
    ("changes", "missing", "use"),
    [
        ({"nhead": 129}, "nhead=129", "nhead=128"),
        ({"q_len": 17}, "q_len=17", "q_len=16"),
        ({"page_size": 24}, "page_size=24", "page_size=32"),
        ({"page_size": 0}, "page_size=0", "page_size=1"),
        ({"page_size": 4096}, "page_size=4096", "page_size=1024"),
        ({"head_dim_qk": 192}, "head_dims=192/512", "head_dims=576/512"),
        ({"q_dtype": "fp32"}, "dtypes=fp32/fp8_e4m3fn", "dtypes=fp8_e4m3fn/fp8_e4m3fn"),
        ({"kv_dtype": "bf16"}, "dtypes=fp8_e4m3fn/bf16", "dtypes=bf16/bf16"),
        ({"q_dtype": "bf16", "kv_dtype": "fp4"}, "dtypes=bf16/fp4", "dtypes=bf16/bf16"),
        ({"nhead": 500, "q_len": 99}, "nhead=500, q_len=99", "nhead=128, q_len=16"),
    ],
)
def test_route_refuses_with_three_lists(changes: dict[str, object], missing: str, use: str) -> None:
    with pytest.raises(UnsupportedShape) as error:
        route_of(**changes)
    first, required, supported, last = str(error.value).splitlines()
    assert first.endswith(f"got {missing}; use {use}")
    assert missing.split(", ")[0] in required
    assert "nhead 1..128; q_len 1..16; dtypes bf16/bf16" in supported
    assert last == f"  missing:   {missing}"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"family": "gfx1100"}, "family: expected one of cpu gfx950 gfx942 sm_90, got gfx1100"),
        ({"batch": 0}, "batch: expected at least 1, got 0"),
        ({"nhead": 0}, "nhead: expected at least 1, got 0"),
        ({"compute_units": 0}, "compute_units: expected at least 1, got 0"),
        ({"kv_len": -1}, "kv_len: expected tokens >= 0 or None, got -1"),
        ({"route": "asm"}, "route: expected one of hk persistent, got asm"),
        ({"num_splits": 0}, "num_splits: expected 1 to 1024, got 0"),
        ({"route": "persistent", "num_splits": 2}, "route: expected hk with num_splits=2"),
        ({"route": "persistent", "tile_rows": 16}, "route: expected hk with tile_rows=16"),
        (
            {"tile_rows": 48},
            "tile_rows: expected one of (16, 32, 64, 128), got 48; or leave it out",
        ),
        ({"route": "persistent", "batch_invariant": True}, "route: expected hk with batch_inv"),
    ],
)
def test_route_refuses_arguments_without_sense(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(BadArgument) as error:
        route_of(**changes)
    assert str(error.value).startswith(complaint)
