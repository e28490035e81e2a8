# SPDX-License-Identifier: MIT
"""Paged attention keeps the precision of its weights under any scales of values."""

from __future__ import annotations

import pytest
import torch

from hipdecode import ops
from hipdecode.paged import PagedOptions, paged_attention
from hipdecode.testing.paged_cases import PagedCase, for_target, make_paged_inputs


@pytest.mark.parametrize("power", [-60, -30, 16])
@pytest.mark.parametrize("q_dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("arch", ["gfx950", "gfx942"])
def test_a_power_of_two_in_the_scales_of_values_comes_out_again(
    arch: str, q_dtype: str, power: int, simulated: None
) -> None:
    target = f"sim:{arch}"
    ops.use_target(target)
    inputs = make_paged_inputs(for_target(PagedCase(lens=(300, 70), q_dtype=q_dtype), target))
    want = paged_attention(**inputs, options=PagedOptions(num_splits=1))
    scale = inputs["v_scale"]
    assert scale is not None
    inputs["v_scale"] = scale * 2.0**power
    out_scale = torch.tensor([2.0**power])
    got = paged_attention(**inputs, options=PagedOptions(num_splits=1), out_scale=out_scale)
    # levels that count the scales in shift where rows are rescaled: other roundings of fp32
    half_ulp = 2.0**-11 if q_dtype == "fp16" else 2.0**-8
    torch.testing.assert_close(got, want, atol=half_ulp / 16, rtol=half_ulp * 2)
