# SPDX-License-Identifier: MIT
"""Entry point of `hipdecode` and `python -m hipdecode.cli`."""

from __future__ import annotations

import importlib
import sys

import click

# `hipdecode --help` prints these lines without importing a command (some of them import torch).
_COMMANDS = {
    "build": "Compile kernels ahead of time, into the cache or a relocatable folder.",
    "doctor": "Show what was found on this machine and check one decode per route.",
    "route": "Explain which kernel a shape is routed to, and why.",
    "tune": "Measure the routes on this machine and write dispatch tables.",
    "bench": "Time kernels beside their peers.",
    "demo": "Serve a small language model with latent attention on these kernels.",
    "sim": "Run AMDGPU code objects in the simulator, list its opcodes.",
    "warmup": "Build and load the kernels of a model before it is served.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"hipdecode.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Attention decode kernels: build, inspect, route, tune, measure."""


def main() -> None:
    """Runs the command line; an error of the package is one line and exit status 1."""
    from hipdecode.errors import HipdecodeError

    try:
        cli.main(prog_name="hipdecode")
    except HipdecodeError as error:
        click.echo(f"hipdecode: {type(error).__name__}: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
