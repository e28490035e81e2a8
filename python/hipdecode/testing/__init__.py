# SPDX-License-Identifier: MIT
"""Oracles, inputs, comparison and timing shared by the tests, the doctor and the benchmarks."""
