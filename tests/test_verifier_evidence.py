"""Evidence: sums of unit normals stay unit normal, silence gives zeros, neither place nor window length matters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gg_ray.verifier import evidence
from gg_ray.verifier.evidence import EVIDENCE, SPANS, Evidence, level

CHANNELS = 4
ENDING, STILL = len(SPANS), len(SPANS) + 5
"""Rows of the table [statistic, channel]: first of the two sums that end at the last scan; share of still scans."""


def _input(n: int, scans: int, residual: Tensor | None = None) -> Tensor:
    """[n, T, 20] fresh features with given residuals [n, T, 4] and nothing else."""
    x = torch.zeros(n, scans, CHANNELS, 5)
    if residual is not None:
        x[..., 2] = torch.asinh(residual)
    x[..., 4] = 1.0
    return x.flatten(2)


def _table(x: Tensor) -> Tensor:
    """[n, statistic, channel]."""
    out = Evidence()(x)
    assert out.shape == (x.shape[0], EVIDENCE)
    return out.reshape(x.shape[0], -1, CHANNELS)


@pytest.mark.parametrize("scans", [16, 24, 48])
def test_sums_of_unit_normals_are_unit_normal(scans: int) -> None:
    residual = torch.from_numpy(np.random.default_rng(0).standard_normal((4_000, scans, CHANNELS))).float()
    sums = 3.0 * _table(_input(4_000, scans, residual))[:, ENDING : ENDING + 2]  # thirds of a sigma below the knee
    # 4,000 draws: the standard error of a deviation is 0.011, of a mean 0.016.
    assert torch.allclose(sums.std(dim=0), torch.ones(2, CHANNELS), atol=0.05)
    assert torch.allclose(sums.mean(dim=0), torch.zeros(2, CHANNELS), atol=0.06)


@pytest.mark.parametrize("scans", [16, 24, 48])
def test_a_slow_bias_grows_with_the_root_of_the_span(scans: int) -> None:
    table = _table(_input(1, scans, torch.ones(1, scans, CHANNELS)))
    expected = torch.tensor([span**0.5 / 3 for span in SPANS])
    assert torch.allclose(table[0, : len(SPANS)], expected[:, None].expand(-1, CHANNELS), rtol=1e-4)


@given(st.sampled_from([16, 24, 48]), st.integers(0, 40), st.floats(-5, 5))
def test_a_burst_counts_wherever_it_sits(scans: int, start: int, size: float) -> None:
    start = min(start, scans - 4)
    moved, last = torch.zeros(1, scans, CHANNELS), torch.zeros(1, scans, CHANNELS)
    moved[:, start : start + 4] = size
    last[:, -4:] = size
    a, b = _table(_input(1, scans, moved)), _table(_input(1, scans, last))
    assert torch.allclose(a[:, : len(SPANS)], b[:, : len(SPANS)], atol=1e-4)
    assert torch.allclose(a[0, 2], level(torch.full((CHANNELS,), abs(2.0 * size))), atol=1e-4)


@pytest.mark.parametrize("scans", [16, 24, 48])
def test_a_channel_without_readings_gives_zeros(scans: int) -> None:
    x = torch.randn(5, scans, CHANNELS, 5, generator=torch.Generator().manual_seed(1)).abs()
    x[:, :, 2] = 0.0  # no meter: values and mask are zero
    table = _table(x.flatten(2))
    assert not table[:, :, 2].any()
    assert table[:, :, [0, 1, 3]].any()
    assert not Evidence()(torch.zeros(2, scans, 20)).any()


def test_large_values_stay_finite_and_extra_columns_are_ignored() -> None:
    x = _input(2, 16, torch.full((2, 16, CHANNELS), 1e6))
    assert torch.isfinite(Evidence()(x)).all()
    lone = torch.zeros(2, 48, CHANNELS)
    lone[:, 3] = -1e6  # running sums of float32 must not turn what follows into the logarithm of a negative number
    assert torch.isfinite(Evidence()(_input(2, 48, lone))).all()
    status = torch.ones(2, 16, 1)
    assert torch.equal(Evidence()(torch.cat([x, status], dim=2)), Evidence()(x))


def test_a_frozen_value_counts_as_still_only_where_it_is_read() -> None:
    x = _input(2, 16)
    moving = x.clone().reshape(2, 16, CHANNELS, 5)
    moving[..., 3] = 1.0
    assert torch.equal(_table(x)[:, STILL], torch.ones(2, CHANNELS))
    assert not _table(moving.flatten(2))[:, STILL].any()
    unread = x.clone().reshape(2, 16, CHANNELS, 5)
    unread[..., 4] = 0.05
    assert not _table(unread.flatten(2))[:, STILL].any()


@given(st.floats(-1e3, 1e3), st.floats(0, 1e3))
def test_levels_are_odd_and_never_fall(value: float, more: float) -> None:
    low, high = level(torch.tensor(value)), level(torch.tensor(value + more))
    assert high >= low - 1e-5
    assert level(torch.tensor(-value)) == -low


@pytest.mark.parametrize("scans", [1, 3, 12, 16, 48])
def test_sums_equal_plain_loops_at_every_length(scans: int) -> None:
    residual = 3.0 * torch.randn(7, scans, CHANNELS, generator=torch.Generator().manual_seed(2))
    table = _table(_input(7, scans, residual))
    for row, span in enumerate(SPANS):
        width = min(span, scans)
        sums = torch.stack([residual[:, t : t + width].sum(dim=1) for t in range(scans - width + 1)])
        assert torch.allclose(table[:, row], level(sums.abs().amax(dim=0) / width**0.5), atol=1e-4)


def test_a_gross_value_does_not_blur_what_follows() -> None:
    residual = torch.randn(1, 48, CHANNELS, generator=torch.Generator().manual_seed(3))
    gross = residual.clone()
    gross[:, 0] = 1e3
    plain, after = (_table(_input(1, 48, r))[:, ENDING : ENDING + 2] for r in (residual, gross))
    assert torch.equal(plain, after)


def test_rows_are_judged_alike_in_blocks_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(23, 16, 21, generator=torch.Generator().manual_seed(4))
    x[..., 4:20:5] = x[..., 4:20:5].abs().clamp(max=1.0)
    before = x.clone()
    whole = Evidence()(x)
    alone = torch.cat([Evidence()(x[i : i + 1]) for i in range(23)])
    monkeypatch.setattr(evidence, "BLOCK_ROWS", 5)
    torch.testing.assert_close(Evidence().reference(x), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, whole, atol=1e-6, rtol=1e-6)
    assert torch.equal(x, before), "the features belong to the caller"


def test_evidence_has_no_weights_and_passes_gradients() -> None:
    module = Evidence()
    assert not list(module.parameters())
    x = _input(2, 16, torch.randn(2, 16, CHANNELS, generator=torch.Generator().manual_seed(0))).requires_grad_()
    module(x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("scans", [1, 3, 8, 12, 16, 24, 48])
def test_the_compiled_kernel_equals_the_tensor_operations(scans: int) -> None:
    """Zeros, gross values, silent and still channels among them; 37 rows leave the last block of lanes half empty."""
    draw = torch.Generator().manual_seed(scans)
    x = 2.0 * torch.randn(37, scans, 21, generator=draw)
    x[..., 4:20:5] = torch.rand(37, scans, CHANNELS, generator=draw)
    x[:3], x[3], x[4, :, 3], x[5, :, 4] = 0.0, 8.0, 0.0, 0.0
    torch.testing.assert_close(Evidence()(x), Evidence().reference(x), atol=1e-5, rtol=1e-5)
