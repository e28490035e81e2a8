# SPDX-License-Identifier: MIT
"""What floating-point instructions ought to give, in numpy and fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np


def is_signalling(x: np.ndarray) -> np.ndarray:
    quiet = {4: 1 << 22, 8: 1 << 51}[x.itemsize]
    bits = x.view({4: np.uint32, 8: np.uint64}[x.itemsize])
    return np.isnan(x) & ((bits & bits.dtype.type(quiet)) == 0)


def lesser(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """minNum of IEEE 754-2008 with -0 < +0; a signalling NaN wins."""
    both_zero = (a == 0) & (b == 0)
    result = np.where(both_zero, np.where(np.signbit(a), a, b), np.fmin(a, b))
    return np.where(is_signalling(a) | is_signalling(b), np.nan, result).astype(a.dtype)


def greater(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return -lesser(-a, -b)


def median(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    middle = np.sort(np.stack([a, b, c]), axis=0)[1]
    nan = np.isnan(a) | np.isnan(b) | np.isnan(c)
    return np.where(nan, lesser(lesser(a, b), c), middle)


def fma(a: float, b: float, c: float) -> float:
    """Rounded once, by way of fractions."""
    if math.isfinite(a) and math.isfinite(b) and not math.isfinite(c):
        return c
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        return float(np.float64(a) * np.float64(b) + np.float64(c))
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c if a == 0 or b == 0 else 0.0
    return exact


def to_single(exact: Fraction | float) -> np.float32:
    """The nearest fp32; fractions do not pass through fp64, which would round twice."""
    if isinstance(exact, float):
        return np.float32(exact)
    near = np.float32(float(exact))
    if not np.isfinite(near):
        return near
    candidates = [
        near,
        np.nextafter(near, np.float32(np.inf)),
        np.nextafter(near, -np.float32(np.inf)),
    ]
    finite = [x for x in candidates if np.isfinite(x)]
    best = min(abs(Fraction(float(x)) - exact) for x in finite)
    ties = [x for x in finite if abs(Fraction(float(x)) - exact) == best]
    chosen = min(ties, key=lambda x: int(np.array(x).view(np.uint32)) & 1)
    return np.copysign(chosen, np.float32(-1 if exact < 0 else 1))
