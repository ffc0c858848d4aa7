"""Eight-bit gradients with and without a clip before the quantizer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import clipjax

from ...plotting import plot_lines
from ..options import Whole
from .arguments import require
from .base import Report, beside

SAMPLES = ("Gaussian", "Student t3", "one outlier of 1000")
# The share of entries that the clip shortens; 0 is the largest entry as the scale.
SHARES = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


class Measured(NamedTuple):
    """Similarity of an int8 gradient to the gradient before the clip.

    Attributes:
        shares: `(shares,)`, the share of entries that a clip by value shortens.
        cosine: `(samples, shares + 1, seeds)`; the last column is
            `clipjax.quantization_clip`, which chooses its own range.
        nonzero: likewise, the fraction of entries that are not rounded to zero.
    """

    shares: np.ndarray
    cosine: np.ndarray
    nonzero: np.ndarray


def measure(*, seeds: int = 10, entries: int = 100_000) -> Measured:
    """Quantize random gradients.

    Args:
        seeds: independent gradients.
        entries: number of entries.
    """
    require(Whole(), seeds=seeds)
    require(Whole(lowest=2), entries=entries)
    tables = [
        [_table(gradient) for gradient in _samples(s, entries)] for s in range(seeds)
    ]
    cosine, nonzero = np.moveaxis(np.array(tables), (3, 0), (0, 3))
    return Measured(np.array(SHARES), cosine, nonzero)


def _samples(seed: int, entries: int) -> list[jax.Array]:
    generator = np.random.default_rng(seed)
    gaussian = generator.standard_normal(entries)
    tail = generator.standard_t(3, entries)
    outlier = np.append(gaussian[1:], 1000.0)
    return [jnp.asarray(one, jnp.float32) for one in (gaussian, tail, outlier)]


@jax.jit
def _measured(gradient: jax.Array, clipped: jax.Array) -> jax.Array:
    (found,) = clipjax.quantization_report(
        clipped, jnp.int8, reference=gradient
    ).values()
    return jnp.stack([found.cosine, found.nonzero_fraction])


def _table(gradient: jax.Array) -> list[jax.Array]:
    """Cosine and fraction of nonzero entries by clip."""
    limits = [float(np.quantile(np.abs(gradient), 1 - share)) for share in SHARES]
    clips = [clipjax.clip_by_value(limit, report=False) for limit in limits]
    clips.append(clipjax.quantization_clip(jnp.int8, report=False))
    return [_measured(gradient, clip.update(gradient, None)[0]) for clip in clips]


def report(measured: Measured) -> Report:
    """Both measures next to reported ones."""
    shares, cosine, nonzero = measured
    clips = ["no clip", *(f"{share:.3%} clipped" for share in shares[1:])]
    clips.append("quantization_clip")
    permille = list(shares).index(1e-3)
    said = {
        ("cosine", 0, 0): ".9999",
        ("cosine", 1, 0): ".9972",
        ("cosine", 1, permille): ".9854",
        ("cosine", 2, 0): ".954",
        ("cosine", 2, permille): ".31",
        ("nonzero", 2, permille): ".99",
    }
    tables = [
        beside(
            f"{sample}: {title}",
            [
                (clips[c], said.get((name, s, c)), table[s, c])
                for c in (0, permille, len(clips) - 1)
            ],
        )
        for s, sample in enumerate(SAMPLES)
        for name, title, table in (
            ("cosine", "cosine of int8 to the gradient", cosine),
            ("nonzero", "fraction of entries that stay nonzero", nonzero),
        )
    ]
    figure = plot_lines(
        {
            f"{SAMPLES[s]}: {name}": table[s, 1:-1].T
            for s in (1, 2)
            for name, table in (("cosine", cosine), ("nonzero", nonzero))
        },
        shares[1:],
        x_label="fraction of entries clipped",
        y_label="cosine, or fraction of entries nonzero",
        title="int8 after a clip by value",
        is_log=(True, False),
    )
    middle = [table.mean(axis=2) for table in (cosine, nonzero)]
    worse = [s for s in range(3) if middle[0][s, permille] < middle[0][s, 0] - 1e-3]
    fuller = [s for s in range(3) if middle[1][s, permille] > middle[1][s, 0] + 1e-3]
    listed = [
        ", ".join(SAMPLES[s] for s in which) or "none" for which in (worse, fuller)
    ]
    return Report(
        tables,
        [
            f"A clip of one entry in a thousand lowers the cosine for: {listed[0]}. It "
            f"keeps more entries away from zero for: {listed[1]}.",
            f"With one outlier, {nonzero[2, 0].mean():.2%} of the entries survive "
            "without a clip: the cosine is high because the outlier is most of the "
            "gradient. Which of the two measures counts depends on whether the few "
            "large entries or the many small ones matter.",
            "The largest entry of Student t3 grows with the number of entries, and "
            "with it the loss of cosine: both depend on how many there are.",
        ],
        figure,
    )
