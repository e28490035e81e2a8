# SPDX-License-Identifier: MIT
"""`hipdecode warmup`: what a server needs before its first request, built and loaded once."""

from __future__ import annotations

import os

import click

from hipdecode import ops, registry
from hipdecode import target as targets
from hipdecode.jit import build_kernels, selection
from hipdecode.models import find_model, split_dtypes


@click.command()
@click.argument("model", required=False)
@click.option("--op", help="Instead of a model: mla_decode, sparse_mla_decode, mla_reduce, ...")
@click.option("--dtype", default="bf16", show_default=True, help="Of --op: q/kv or both.")
@click.option("--head-dims", default="576/512", show_default=True, help="Of --op mla_decode.")
@click.option("--target", "target_name", help="Target, default this machine's.")
def command(
    model: str | None, op: str | None, dtype: str, head_dims: str, target_name: str | None
) -> None:
    """Build and load the kernels of MODEL (a name of configs/models.json) or of one operator."""
    if (model is None) == (op is None):
        raise click.UsageError("expected MODEL or --op, one of the two")
    target = targets.resolve(target_name)
    if model is not None:
        names = selection.kernels_of_model(target, find_model(model))
    elif op == "mla_decode":
        names = selection.kernels_of_shape(
            target, head_dims=_dims(head_dims), dtypes=split_dtypes(dtype)
        )
    elif op == "sparse_mla_decode":
        names = selection.sparse_kernels(target)
    else:
        names = [registry.default().kernel(op or "").name]
    results = build_kernels(target.name, names, jobs=len(os.sched_getaffinity(0)))
    loads = target.runs_here()
    if loads:
        ops.use_target(target.name)
    for result in sorted(results, key=lambda result: names.index(result.name)):
        if loads:
            ops.ensure_kernel(result.name, target.device_type)
        state = f"built in {result.seconds:.1f} s" if result.built else "was there"
        click.echo(f"{result.name}: {state}{', loads' if loads else ''}")


def _dims(text: str) -> tuple[int, int]:
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal()):
        raise click.BadParameter(f"expected head_dim_qk/head_dim_v, got {text}")
    return int(first), int(second)
