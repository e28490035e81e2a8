# SPDX-License-Identifier: MIT
"""`hipdecode build`: compiles ahead of time, into the cache or a relocatable folder."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hipdecode import registry
from hipdecode import target as targets
from hipdecode.jit import BuildResult, binding, build_kernels, prebuilt, recipe, selection


@click.command()
@click.argument("names", nargs=-1)
@click.option("--module", "more", multiple=True, help="As a name given in place; may be repeated.")
@click.option(
    "--target",
    "target_names",
    multiple=True,
    help="Target, default this machine's; may be repeated.",
)
@click.option("--all", "everything", is_flag=True, help="Every kernel of the registry.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also write a relocatable folder for HIPDECODE_PREBUILT.",
)
@click.option("--jobs", type=click.IntRange(1), help="Compilers at once. [cores]")
def command(
    names: tuple[str, ...],
    more: tuple[str, ...],
    target_names: tuple[str, ...],
    everything: bool,
    out: Path | None,
    jobs: int | None,
) -> None:
    """Compile kernels ahead of time.

    NAMES are modules, such as mla_plan, or kernels, such as
    mla_decode_hk/576-512-bf16-bf16-128. Without any: those that the named models and the dispatch
    tables call for, and the torch binding.
    """
    console = Console()
    modules = names + more
    jobs = jobs or len(os.sched_getaffinity(0))
    chosen = [targets.resolve(name) for name in target_names or (None,)]
    results: dict[str, list[BuildResult]] = {}
    for target in chosen:
        if modules or everything:
            kernels = selection.named_kernels(target, modules or registry.default().modules)
        else:
            kernels = selection.default_kernels(target)
        results[target.artefact] = _build(console, target.artefact, kernels, jobs)
    if out or not modules:
        start = time.perf_counter()
        library = binding.ensure_binding()
        console.print(f"torch binding: {time.perf_counter() - start:.1f} s, {library}")
        if out:
            _write(out, results, library)
            console.print(f"wrote {out}; use it with HIPDECODE_PREBUILT={out}")


def _build(console: Console, target: str, names: Sequence[str], jobs: int) -> list[BuildResult]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(target, total=len(names))

        def done(result: BuildResult) -> None:
            progress.update(task, advance=1, description=f"{target} {result.name}")

        results = build_kernels(target, names, jobs=jobs, done=done)
    console.print(_table(target, results))
    return results


def _table(target: str, results: Sequence[BuildResult]) -> Table:
    table = Table("module", "kernels", "compiled", "seconds", title=target)
    for module in dict.fromkeys(result.name.partition("/")[0] for result in results):
        mine = [result for result in results if result.name.partition("/")[0] == module]
        seconds = sum(result.seconds for result in mine)
        compiled = sum(result.built for result in mine)
        table.add_row(module, str(len(mine)), str(compiled), f"{seconds:.1f}")
    return table


def _write(out: Path, results: dict[str, list[BuildResult]], library: Path) -> None:
    host = binding.recipe()
    kernels = {
        target: {r.name: (r.file.path, _source_key(r.name, target)) for r in built}
        for target, built in results.items()
    }
    prebuilt.write(
        out,
        abi_version=host.abi_version,
        kernels=kernels,
        binding=(library, host.source_key),
    )


def _source_key(name: str, target: str) -> str:
    return recipe(registry.default().kernel(name), target).source_key
