# SPDX-License-Identifier: MIT
"""`hipdecode warmup`: what a server needs before its first request, built and loaded once."""

from __future__ import annotations

import os
from dataclasses import replace

import click
from rich.console import Console

from hipdecode import ops, registry
from hipdecode import target as targets
from hipdecode.jit import BuildResult, build_kernels, selection
from hipdecode.model_config import on_rank, read_model
from hipdecode.models import split_dtypes


@click.command()
@click.argument("model", required=False)
@click.option("--op", help="Instead of a model: mla_decode, sparse_mla_decode, mla_reduce, ...")
@click.option("--dtype", default="bf16", show_default=True, help="Of --op: q/kv or both.")
@click.option("--head-dims", default="576/512", show_default=True, help="Of --op mla_decode.")
@click.option("--tp", default="1", show_default=True, help="Of MODEL: ranks that share its heads.")
@click.option("--q-len", help="Of MODEL: query tokens per request. [1, and with its drafts]")
@click.option("--kv-dtype", help="Of MODEL: bf16, fp16 or fp8. [its own and fp8]")
@click.option("--target", "target_name", help="Target, default this machine's.")
@click.option("--jobs", type=click.IntRange(1), help="Compilers at once. [cores]")
def command(
    model: str | None,
    op: str | None,
    dtype: str,
    head_dims: str,
    tp: str,
    q_len: str | None,
    kv_dtype: str | None,
    target_name: str | None,
    jobs: int | None,
) -> None:
    """Build and load the kernels that serving MODEL takes, or those of one operator.

    MODEL is a name of configs/models.json or the path of a config.json. --tp, --q-len and
    --kv-dtype take several values with commas between.
    """
    if (model is None) == (op is None):
        raise click.UsageError("expected MODEL or --op, one of the two")
    target = targets.resolve(target_name)
    if model is not None:
        names = _names_of_model(target, model, tp, q_len, kv_dtype)
    elif op == "mla_decode":
        names = selection.kernels_of_shape(
            target, head_dims=_dims(head_dims), dtypes=split_dtypes(dtype)
        )
    elif op == "sparse_mla_decode":
        names = selection.sparse_kernels(target)
    else:
        names = [registry.default().kernel(op or "").name]
    _warm(target, names, jobs or len(os.sched_getaffinity(0)))


def _warm(target: targets.Target, names: list[str], jobs: int) -> None:
    """Builds what is missing, loads all where the target runs, and says so for each."""
    progress = Console(stderr=True)
    with progress.status(f"{target.name}: 0 of {len(names)} kernels") as status:
        finished = 0

        def done(result: BuildResult) -> None:
            nonlocal finished
            finished += 1
            status.update(f"{target.name}: {finished} of {len(names)} kernels, {result.name}")

        results = build_kernels(target.name, names, jobs=jobs, done=done)
    loads = target.runs_here()
    if loads:
        ops.use_target(target.name)
    for result in sorted(results, key=lambda result: names.index(result.name)):
        if loads:
            ops.ensure_kernel(result.name, target.device_type)
        state = f"built in {result.seconds:.1f} s" if result.built else "was there"
        click.echo(f"{result.name}: {state}{', loads' if loads else ''}")


def _names_of_model(
    target: targets.Target, name: str, tp: str, q_len: str | None, kv_dtype: str | None
) -> list[str]:
    model = read_model(name)
    if q_len is not None:
        model = replace(model, q_len=_numbers("--q-len", q_len))
    if kv_dtype is not None and not model.sparse:
        own = model.dtypes[0][0]
        model = replace(model, dtypes=tuple((own, word) for word in kv_dtype.split(",")))
    ranks = _numbers("--tp", tp)
    names = [n for r in ranks for n in selection.kernels_to_serve(target, on_rank(model, r))]
    return list(dict.fromkeys(names))


def _numbers(option: str, text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise click.BadParameter(f"{option}: expected numbers such as 1,2, got {text!r}")
    return tuple(map(int, words))


def _dims(text: str) -> tuple[int, int]:
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal()):
        raise click.BadParameter(f"expected head_dim_qk/head_dim_v, got {text}")
    return int(first), int(second)
