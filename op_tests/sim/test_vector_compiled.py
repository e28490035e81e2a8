# SPDX-License-Identifier: MIT
"""What a compiler makes of ordinary arithmetic: one C++ expression per case, against numpy."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from float_reference import fma, to_single
from lanes import assert_floats, special_integers, special_pairs

from hipdecode import sim

pytestmark = [
    pytest.mark.skipif(shutil.which("clang++-22") is None, reason="needs clang-22 and lld-22"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

THREADS = 256
SOURCE = """
typedef {type} T;
typedef {result} R;
extern "C" __attribute__((device, amdgpu_kernel, amdgpu_flat_work_group_size({threads}, {threads})))
void kernel(const T* left, const T* right, R* out) {{
  const unsigned n =
      __builtin_amdgcn_workgroup_id_x() * {threads} + __builtin_amdgcn_workitem_id_x();
  const T a = left[n], b = right[n];
  out[n] = {expression};
}}
"""


def run(
    folder: Path, arch: str, expression: str, a: np.ndarray, b: np.ndarray, result: np.dtype,
) -> np.ndarray:  # fmt: skip
    names = {"f4": "float", "f8": "double", "i4": "int", "u4": "unsigned", "i8": "long",
             "u8": "unsigned long", "f2": "_Float16"}  # fmt: skip
    source, built = folder / "kernel.hip", folder / "kernel.hsaco"
    text = SOURCE.format(
        type=names[a.dtype.str[1:]], result=names[np.dtype(result).str[1:]], threads=THREADS,
        expression=expression,
    )  # fmt: skip
    source.write_text(text)
    command = ["clang++-22", "-x", "hip", "--offload-device-only", "--no-gpu-bundle-output",
               f"--offload-arch={arch}", "-nogpuinc", "-nogpulib", "-O3", "-std=c++20",
               "-ffp-contract=off", str(source), "-o", str(built)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    size = -(-a.size // THREADS) * THREADS
    left, right = (np.resize(x, size) for x in (a, b))
    out = np.zeros(size, result)
    addresses = struct.pack("<3Q", left.ctypes.data, right.ctypes.data, out.ctypes.data)
    sim.Program(built, arch).launch(
        "kernel", addresses, blocks=(size // THREADS, 1, 1), threads=THREADS
    )
    return out[: a.size]


def quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Toward zero."""
    size = np.abs(a.astype(object)) // np.abs(b.astype(object))
    return np.where((a < 0) != (b < 0), -size, size).astype(a.dtype)


INTEGERS = {
    "a / b": quotient,
    "a % b": lambda a, b: a - quotient(a, b) * b,
    "a * b + (a >> 3)": lambda a, b: a * b + (a >> 3),
    "a < b ? a - b : b ^ a": lambda a, b: np.where(a < b, a - b, b ^ a),
    "a << (b & 15) | b >> 9": lambda a, b: (a << (b & 15)) | (b >> 9),
}


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("kind", ["i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("expression", INTEGERS)
def test_integer_expressions(simulator, tmp_path, arch, kind, expression):
    bits = special_integers(2048)
    if kind[1] == "8":
        bits = bits.astype(np.uint64) << 32 | np.roll(special_integers(2048, 1), 9)
    a, b = bits.view(kind), np.roll(bits, 777).view(kind).copy()
    b[b == 0] = 3
    got = run(tmp_path, arch, expression, a, b, a.dtype)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, INTEGERS[expression](a, b).astype(kind))


FLOATS = {
    "a / b": lambda a, b: a / b,
    "__builtin_elementwise_sqrt(a)": lambda a, b: np.sqrt(a),
    "a * b - a": lambda a, b: a * b - a,
    "__builtin_elementwise_floor(a) + __builtin_elementwise_abs(b)": lambda a, b: (
        np.floor(a) + np.abs(b)
    ),
    "a < b ? a : -b": lambda a, b: np.where(a < b, a, -b),
}


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("kind", ["f4", "f8", "f2"])
@pytest.mark.parametrize("expression", FLOATS)
def test_float_expressions(simulator, tmp_path, arch, kind, expression):
    a, b = (x.astype(kind) for x in special_pairs(2048))
    got = run(tmp_path, arch, expression, a, b, a.dtype)
    assert_floats(got, FLOATS[expression](a, b).astype(kind))


CONVERSIONS = [
    ("f4", "i4", "__builtin_elementwise_abs(a) < 1e9f ? int(a) : 0"),
    ("f4", "f8", "double(a) / b"),
    ("i4", "f4", "float(a) * 0.5f + float(unsigned(b))"),
    ("i8", "f8", "double(a) - double(b)"),
    ("f4", "f2", "_Float16(a)"),
]


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize(("kind", "result", "expression"), CONVERSIONS)
def test_conversions(simulator, tmp_path, arch, kind, result, expression):
    a, b = special_pairs(2048)
    if kind[0] == "i":
        a, b = (np.repeat(x.view(np.int32), int(kind[1]) // 4)[: x.size].astype(kind) * 77777
                for x in (a, b))  # fmt: skip
    got = run(tmp_path, arch, expression, a.astype(kind), b.astype(kind), np.dtype(result))
    reference = {
        "i4": lambda: np.where(np.abs(a) < 1e9, np.trunc(a), 0).astype("i4"),
        "f8": lambda: (
            a.astype("f8") / b if kind == "f4" else a.astype("f8") - b.astype("f8")
        ),
        "f4": lambda: (
            a.astype("f4") * np.float32(0.5) + b.astype("i4").view("u4").astype("f4")
        ),
        "f2": lambda: a.astype("f2"),
    }  # fmt: skip
    expected = reference[result]()
    if result == "i4":
        np.testing.assert_array_equal(got, expected)
    else:
        assert_floats(got, expected)


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_fused_multiply_add(simulator, tmp_path, arch):
    a, b = special_pairs(1024)
    got = run(tmp_path, arch, "__builtin_fmaf(a, b, -a)", a, b, a.dtype)
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    assert_floats(got, np.array([to_single(fma(x, y, -x)) for x, y in pairs], np.float32))
