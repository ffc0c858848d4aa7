"""Gains of depthwise-separable and of standard convolutions with He's weights."""

from typing import NamedTuple

import numpy as np

from ...plotting import plot_lines
from ..options import Whole
from .arguments import require
from .base import Report, beside, number


class Measured(NamedTuple):
    """Arrays of shape `(seeds, channels)`, for `channels[i]` in- and outputs.

    The gain is the norm of the linear map (spectral), or what it multiplies the norm of
    a random image by (root mean square).

    Attributes:
        channels: `(channels,)`.
        standard: spectral norm of a 3 x 3 convolution.
        separable: that of a depthwise 3 x 3 and a pointwise 1 x 1 convolution, with no
            nonlinearity between them.
        standard_rms: root mean square gain of the first.
        separable_rms: that of the second.
    """

    channels: np.ndarray
    standard: np.ndarray
    separable: np.ndarray
    standard_rms: np.ndarray
    separable_rms: np.ndarray


def gains(standard: np.ndarray, size: int) -> tuple[float, float]:
    """Spectral norm and root mean square gain of a circular convolution.

    At each frequency of the image the convolution is one matrix from channels to
    channels, so that the singular values of these matrices are those of the whole map
    (`Sedghi, Gupta, Long <https://arxiv.org/abs/1805.10408>`_).

    Args:
        standard: kernel of shape `(outputs, inputs, height, width)`.
        size: height and width of the images.
    """
    matrices = np.fft.fft2(standard, (size, size))
    # A real kernel: the other half of the frequencies are complex conjugates.
    half = np.moveaxis(matrices[..., : size // 2 + 1], (0, 1), (2, 3))
    largest = np.linalg.eigvalsh(half.conj().swapaxes(2, 3) @ half)[..., -1].max()
    squares = np.square(np.abs(matrices)).sum() / (size * size * standard.shape[1])
    return float(largest**0.5), float(squares**0.5)


def kernels(channels: int, random: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A standard and a depthwise-separable kernel, each stage with He's variance."""
    standard = random.normal(0, (2 / (9 * channels)) ** 0.5, (channels, channels, 3, 3))
    depthwise = random.normal(0, (2 / 9) ** 0.5, (channels, 3, 3))
    pointwise = random.normal(0, (2 / channels) ** 0.5, (channels, channels))
    return standard, pointwise[:, :, None, None] * depthwise


def measure(*, seeds: int = 3, size: int = 16) -> Measured:
    """Measure both convolutions for 16, 64 and 128 channels.

    Args:
        seeds: independent weights.
        size: height and width of the images, which are periodic.
    """
    require(Whole(), seeds=seeds)
    require(Whole(lowest=3), size=size)
    channels = np.array([16, 64, 128])
    found = np.array(
        [
            [
                [gains(kernel, size) for kernel in kernels(count, random)]
                for count in channels
            ]
            for random in map(np.random.default_rng, range(seeds))
        ]
    )
    standard, separable = np.moveaxis(found, 2, 0)
    return Measured(
        channels,
        standard[..., 0],
        separable[..., 0],
        standard[..., 1],
        separable[..., 1],
    )


def report(measured: Measured) -> Report:
    """Both ratios next to reported ones."""
    ratio = measured.separable / measured.standard
    rms = measured.separable_rms / measured.standard_rms
    rows = []
    for index, count in enumerate(measured.channels):
        rows += [
            (f"RMS gain, ratio, {count} channels", "1.4", rms[:, index]),
            (f"spectral norm, ratio, {count} channels", "2.3", ratio[:, index]),
            (f"spectral norm, standard, {count}", "2.83", measured.standard[:, index]),
            (f"spectral norm, separable, {count}", None, measured.separable[:, index]),
        ]
    figure = plot_lines(
        {
            "separable, spectral": measured.separable,
            "standard, spectral": measured.standard,
            "separable, RMS": measured.separable_rms,
            "standard, RMS": measured.standard_rms,
        },
        measured.channels,
        x_label="channels",
        y_label="gain",
        title="3 × 3 convolutions with He's weights",
        is_log=(True, True),
    )
    return Report(
        [beside("Depthwise-separable beside standard convolutions", rows)],
        [
            "It is often said that the separable one has √2 times the spectral norm. "
            f"The ratio of root mean square gains is {number(rms.mean())}, that of the "
            f"spectral norms {number(ratio.mean())}.",
            "A depthwise kernel has only 9 weights, so that the gains of its channels "
            "differ much and the largest one counts.",
        ],
        figure,
    )
