# SPDX-License-Identifier: MIT
"""Narrow floating-point formats from their definition, slowly: the reference of conversion tests.

A format is the list of its finite values; rounding looks for neighbours in that list.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Narrow:
    """A format.

    Attributes:
        exponent: bits.
        mantissa: bits.
        bias: of the exponent.
        specials: "ieee", "fn" (all ones is NaN), "fnuz" (the code of -0 is NaN) or "finite".
    """

    exponent: int
    mantissa: int
    bias: int
    specials: str

    @property
    def sign(self) -> int:
        """The sign's bit."""
        return 1 << (self.exponent + self.mantissa)

    @cached_property
    def magnitudes(self) -> np.ndarray:
        """The finite values that are not negative, by code."""
        count = self.sign
        if self.specials == "ieee":
            count -= 1 << self.mantissa
        elif self.specials == "fn":
            count -= 1
        return np.array([self._value(code) for code in range(count)])

    def _value(self, code: int) -> float:
        power, fraction = code >> self.mantissa, code % (1 << self.mantissa)
        if power == 0:
            return float(fraction * Fraction(2) ** (1 - self.bias - self.mantissa))
        whole = fraction + (1 << self.mantissa)
        return float(whole * Fraction(2) ** (power - self.bias - self.mantissa))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Values of codes, as float64."""
        codes = np.asarray(codes)
        magnitude = codes & (self.sign - 1)
        finite = magnitude < len(self.magnitudes)
        values = np.where(finite, self.magnitudes[np.where(finite, magnitude, 0)], np.nan)
        if self.specials == "ieee":
            values = np.where(magnitude == len(self.magnitudes), np.inf, values)
        values = np.where(codes & self.sign, -values, values)
        if self.specials == "fnuz":
            values = np.where(codes == self.sign, np.nan, values)
        return values

    def encode(self, values: np.ndarray, *, saturate: bool = False) -> np.ndarray:
        """Codes of the nearest values, ties to even codes; NaN where there is one."""
        values = np.asarray(values, np.float64)
        size = np.abs(values)
        # The value after the largest decides what overflows.
        top = self.magnitudes[-1] + (self.magnitudes[-1] - self.magnitudes[-2])
        table = np.append(self.magnitudes, top)
        upper = np.clip(
            np.searchsorted(table, np.where(np.isnan(size), 0, size)), 1, len(table) - 1
        )
        lower = upper - 1
        middle = (table[lower] + table[upper]) / 2
        take_upper = (size > middle) | ((size == middle) & (upper % 2 == 0))
        codes = np.where(take_upper, upper, lower)
        over = codes == len(self.magnitudes)
        codes = np.where(over, self._overflow(np.isinf(size), saturate), codes)
        return self._with_sign(codes, values)

    def _overflow(self, infinite: np.ndarray, saturate: bool) -> np.ndarray:
        largest = len(self.magnitudes) - 1
        if self.specials == "finite":
            return np.full(infinite.shape, largest)
        beyond = self.sign if self.specials == "fnuz" else largest + 1
        # Formats of 16 bits keep infinities.
        keep = infinite & (self.sign > 0x80)
        return np.where(saturate & ~keep, largest, beyond)

    def _with_sign(self, codes: np.ndarray, values: np.ndarray) -> np.ndarray:
        negative = np.signbit(values)
        if self.specials == "fnuz":
            codes = np.where(negative & (codes != 0), codes | self.sign, codes)
            return np.where(np.isnan(values), self.sign, codes)
        nan = self.sign - 1
        codes = np.where(np.isnan(values), nan, codes)
        return np.where(negative, codes | self.sign, codes)

    def encode_random(self, value: float, random: int, *, saturate: bool = False) -> int:
        """Adds the upper bits of `random` below the last place, of 23 mantissa bits, and cuts."""
        size = abs(Fraction(value))
        dropped = 23 - self.mantissa
        power = 1 - self.bias
        while size >= Fraction(2) ** (power + 1):
            power += 1
        steps = size / Fraction(2) ** (power - self.mantissa)
        units = int(steps * 2**dropped) + (random >> (32 - dropped))
        code = ((power - (1 - self.bias)) << self.mantissa) + (units >> dropped)
        if code >= len(self.magnitudes):
            code = int(self._overflow(np.array(False), saturate))
        return int(self._with_sign(np.array(code), np.array(value)))

    def same(self, got: np.ndarray, expected: np.ndarray) -> np.ndarray:
        """Whether codes agree, any NaN being as good as another."""
        both = np.isnan(self.decode(got)) & np.isnan(self.decode(expected))
        return (got == expected) | both


HALF = Narrow(5, 10, 15, "ieee")
BFLOAT = Narrow(8, 7, 127, "ieee")
FORMATS = {
    ("fp8", "gfx950"): Narrow(4, 3, 7, "fn"),
    ("bf8", "gfx950"): Narrow(5, 2, 15, "ieee"),
    ("fp8", "gfx942"): Narrow(4, 3, 8, "fnuz"),
    ("bf8", "gfx942"): Narrow(5, 2, 16, "fnuz"),
    ("fp6", "gfx950"): Narrow(2, 3, 1, "finite"),
    ("bf6", "gfx950"): Narrow(3, 2, 3, "finite"),
    ("fp4", "gfx950"): Narrow(2, 1, 1, "finite"),
}


def boundaries(form: Narrow) -> np.ndarray:
    """fp32 values at every code, at every midpoint, and just beside both; both signs."""
    table = form.magnitudes.astype(np.float64)
    exact = np.concatenate([table, (table[1:] + table[:-1]) / 2, [table[-1] * 1.03125]])
    with np.errstate(over="ignore"):
        near = exact.astype(np.float32)
    near = np.concatenate([near, np.nextafter(near, np.float32(np.inf)),
                           np.nextafter(near, np.float32(0))])  # fmt: skip
    return np.concatenate([near, -near]).astype(np.float32)


def all_upper_halves() -> np.ndarray:
    """fp32 with every pattern in the upper 16 bits."""
    return (np.arange(65536, dtype=np.uint32) << 16).view(np.float32)
