"""Gradients of deep networks at initialization, by architecture."""

import functools
import math
import re

import numpy as np
import pytest

from clipjax.demos.probes import deep_nets, skips


@functools.cache
def nets():
    return deep_nets.measure(seeds=1, width=48, batch=128)


@functools.cache
def skipped():
    return skips.measure(seeds=1, depth=8)


def of(arm, depth):
    """First, last and total gradient norm."""
    measured = nets()
    place = measured.arms.index(arm), list(measured.depths).index(depth), 0
    return measured.first[place], measured.last[place], measured.total[place]


def test_torch_initialization_vanishes():
    """C15: with PyTorch's default weights a 10-layer ReLU net vanishes.

    Their variance is a sixth of He's: each of the nine other layers takes √6.
    """
    first, last, _ = of("plain, torch's weights", 10)
    he_first, he_last, _ = of("plain", 10)
    assert first / he_first == pytest.approx(6**-4.5, rel=0.7)
    assert last / he_last == pytest.approx(6**-4.5, rel=0.7)
    assert first < 1e-3 * he_first


def test_the_largest_gradient_is_not_always_near_the_output():
    """B12: equal for He's weights, reversed with batch norm."""
    for depth in (10, 50):
        first, last, _ = of("plain", depth)
        assert 0.3 < first / last < 3
        first, last, _ = of("batch norm", depth)
        assert first > 2 * last
    first, last, _ = of("batch norm", 50)
    assert first > 1000 * last
    # "Near the output" holds for other networks.
    first, last, _ = of("x + f(x)", 50)
    assert last > 2 * first


def test_deep_plain_batch_norm_explodes():
    """C16, B76: batch norm without shortcuts explodes at initialization.

    By √(π / (π - 1)) = 1.211 per layer, where the net without it does not; layer norm
    does not explode.
    """
    growth = nets().growth("batch norm")[0]
    assert growth == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), rel=0.025)
    assert nets().growth("plain")[0] == pytest.approx(1, abs=0.04)
    assert nets().growth("layer norm")[0] == pytest.approx(1, abs=0.04)


def test_residual_nets_explode_without_normalization_or_scale():
    """C16, B75: x + f(x) explodes by about 1.7 a layer; scaled by 1/L it does not."""
    (_, _, short), (_, _, long) = of("x + f(x)", 10), of("x + f(x)", 50)
    assert (long / short) ** (1 / 40) == pytest.approx(1.7, rel=0.05)
    for arm in ("pre-layer-norm", "x + f(x) / L"):
        (_, _, short), (_, _, long) = of(arm, 10), of(arm, 50)
        assert long < 8 * short
        assert long < 10


def test_layers_between_first_and_last():
    measured = nets()
    for arm, layers in measured.layers.items():
        assert layers.shape == (1, 50)
        assert layers[0, [0, -1]] == pytest.approx(of(arm, 50)[:2])
        whole = of(arm, 50)[2]
        # The rest are the gradients of biases and gains.
        assert np.linalg.norm(layers) <= whole * (1 + 1e-5)


def test_skips_damp_vanishing_and_explosion():
    """A gradient of 16 layers spans four decades without skips, two with them."""
    measured = skipped()
    for without, with_skips in (
        (measured.dense, measured.dense_skips),
        (measured.convolution, measured.convolution_skips),
    ):
        (small, middle, large), (kept, _, damped) = without[0], with_skips[0]
        # 15 layers, each scaled by √2, and by 2.
        assert middle / small == pytest.approx(2**7.5, rel=1e-2)
        assert large / small == pytest.approx(2**15, rel=1e-2)
        assert kept > 100 * small and damped < large / 5
        assert damped / kept < 100


@pytest.mark.parametrize(
    "probe, measured", [(deep_nets, nets), (skips, skipped)], ids=["nets", "skips"]
)
def test_report(probe, measured):
    report = probe.report(measured())
    cells = [cell for table in report.tables for row in table.rows for cell in row]
    texts = " ".join([*cells, *report.findings])
    assert cells and not re.search(r"\bnan\b", texts)
    assert report.figure.axes[0].get_lines()


@pytest.mark.parametrize(
    "probe, argument, value",
    [(deep_nets, "width", 0), (skips, "depth", 3), (skips, "seeds", 0)],
)
def test_mistakes_name_argument_and_value(probe, argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be .*{value}"):
        probe.measure(**{argument: value})
