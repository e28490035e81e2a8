# SPDX-License-Identifier: MIT
"""Every vector instruction that LLVM knows for gfx942 and gfx950 has a row."""

from __future__ import annotations

import re
import subprocess

import pytest

from hipdecode import sim

# Written down nowhere (the first), or for reducing huge fp64 angles alone.
_LEFT_OUT = {"v_screen_partition_4se_b32", "v_trig_preop_f64"}
_SUFFIX = re.compile(r"_(e32|e64|dpp|sdwa)$")
_VECTOR = 256  # in a source field: v0


def _encodings() -> list[int]:
    """64 bits for every opcode field of every vector format, with plausible operands."""
    literal = 0x12345678 << 32
    first, second, third = _VECTOR + 4, _VECTOR + 6, _VECTOR + 8
    words = [literal | 0x7E000000 | 2 << 17 | op << 9 | first for op in range(256)]
    words += [literal | op << 25 | 2 << 17 | 6 << 9 | first for op in range(62)]
    words += [literal | 0x7C000000 | op << 17 | 6 << 9 | first for op in range(256)]
    for sources in (
        (first, second, third),
        (first, second, 8),
        (4, second, third),
        (first, second, 0),
    ):
        upper = (sources[0] | sources[1] << 9 | sources[2] << 18) << 32
        for scalar in (0, 10 << 8):  # VOP3B has a mask there
            words += [upper | 0xD0000000 | op << 16 | scalar | 2 for op in range(1024)]
        words += [upper | 0xD3800000 | op << 16 | 2 for op in range(128)]
    return words


def _mnemonics(arch: str) -> set[str]:
    text = "\n".join(
        " ".join(f"{word >> 8 * byte & 255:#04x}" for byte in range(8)) for word in _encodings()
    )
    done = subprocess.run(
        ["llvm-mc-22", "-disassemble", "-triple=amdgcn-amd-amdhsa", f"-mcpu={arch}"],
        input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = (line.split() for line in done.stdout.splitlines())
    names = {_SUFFIX.sub("", words[0]) for words in lines if words and words[0].startswith("v_")}
    return {name for name in names if "mfma" not in name and "smfmac" not in name}


@pytest.mark.parametrize(("arch", "at_least"), [("gfx942", 480), ("gfx950", 545)])
def test_every_vector_mnemonic_of_llvm_has_a_row(simulator, arch, at_least):
    known = {row["name"] for row in sim.opcodes()}
    wanted = _mnemonics(arch)
    assert len(wanted) >= at_least
    assert wanted - known == _LEFT_OUT
