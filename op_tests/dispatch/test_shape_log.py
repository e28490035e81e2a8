# SPDX-License-Identifier: MIT
"""The shape log: its format, once per shape, silent and bounded."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

import pytest

from hipdecode import dispatch, settings, shape_log
from hipdecode.dispatch import DecodeShape, route_mla_decode
from hipdecode.shape_log import hk_max_ctx, log_shape

SHAPE = DecodeShape(
    family="gfx950",
    compute_units=256,
    batch=8,
    nhead=32,
    q_len=4,
    kv_len=4096,
    q_dtype="fp8_e4m3fn",
    kv_dtype="fp8_e4m3fn",
)


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(shape_log, "_seen", {})
    yield
    dispatch._connect_log.cache_clear()


def log(shape: DecodeShape = SHAPE, rows: int = 32, total_kv: int | None = 32768) -> None:
    log_shape(
        shape,
        route_mla_decode(shape),
        q_shape=(rows, shape.nhead, 576),
        kv_shape=(32769, 1, 1, 576),
        o_shape=(rows, shape.nhead, 512),
        total_kv=total_kv,
        planned=True,
    )


def test_log_shape_line_matches_the_published_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hipdecode.dispatch"):
        log()
    # The line of aiter#3003 with our prefix, field by field.
    assert [record.getMessage() for record in caplog.records] == [
        "[HIPDECODE_MLA_DECODE_SHAPE] q_shape=(32, 32, 576) kv_shape=(32769, 1, 1, 576) "
        "o_shape=(32, 32, 512) q_dtype=torch.float8_e4m3fn kv_dtype=torch.float8_e4m3fn nhead=32 "
        "max_seqlen_q=4 page_size=1 nhead_kv=1 total_kv=32768 persistent=True "
        "hk_supported_head_shape=True hk_avg_ctx_per_seq=4096 hk_max_ctx_per_seq=4096 use_hk=True"
    ]


def test_log_shape_writes_once_per_shape_and_route(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hipdecode.dispatch"):
        for kv_len in (100, 101, 102, 5000, 5001):  # the context grows; the route changes once
            log(dataclasses.replace(SHAPE, kv_len=kv_len))
        log(rows=36)
        log(rows=36)
    assert ["use_hk=True" in record.getMessage() for record in caplog.records] == [
        True,
        False,
        True,
    ]


def test_log_shape_is_silent_when_the_logger_is_off(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="hipdecode.dispatch"):
        log()
    assert not caplog.records
    assert not shape_log._seen


def test_log_shape_memory_is_bounded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shape_log, "_SEEN_SHAPES", 3)
    with caplog.at_level(logging.INFO, logger="hipdecode.dispatch"):
        for rows in range(10):
            log(rows=rows)
    assert len(shape_log._seen) == 3


def test_log_shape_prints_none_when_the_context_is_unknown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="hipdecode.dispatch"):
        log(dataclasses.replace(SHAPE, kv_len=None), total_kv=None)
    assert "total_kv=None" in caplog.text
    assert "hk_avg_ctx_per_seq=None" in caplog.text
    assert "use_hk=False" in caplog.text


@pytest.mark.parametrize(
    ("batch", "most"), [(1, 4096), (16, 2048), (17, 1024), (64, 256), (256, 64), (257, 0)]
)
def test_hk_max_ctx_reads_the_crossover(batch: int, most: int) -> None:
    assert hk_max_ctx(dataclasses.replace(SHAPE, batch=batch)) == most


def test_hk_max_ctx_is_open_when_no_row_is_near() -> None:
    assert hk_max_ctx(dataclasses.replace(SHAPE, family="gfx942")) is None


def test_log_setting_connects_the_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.Logger("hipdecode.dispatch")
    monkeypatch.setattr(dispatch, "logger", logger)
    for level, enabled in ((settings.LOG_QUIET, False), (settings.LOG_ROUTES, True)):
        logger.setLevel(logging.WARNING)
        dispatch._connect_log.cache_clear()
        dispatch.route_mla_decode.cache_clear()
        with settings.override(log=level):
            route_mla_decode(SHAPE)
        assert (logger.level == logging.INFO) == enabled
        assert bool(logger.handlers) == enabled
