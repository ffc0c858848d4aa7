"""Attention logits with and without the factor 1/sqrt(d)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...plotting import plot_lines
from .base import Report, beside


class Measured(NamedTuple):
    """Arrays of shape `(widths, seeds)`, for d = `widths[i]`.

    Attributes:
        widths: `(widths,)`, the width d of queries and keys.
        variance: variance of the logits q·k of Gaussian q and k; d in theory.
        scaled_variance: the same of q·k / sqrt(d).
        gradient: mean norm of the derivative of a logit with respect to q, which is
            the norm of k; sqrt(d) in theory.
    """

    widths: np.ndarray
    variance: np.ndarray
    scaled_variance: np.ndarray
    gradient: np.ndarray


def measure(*, seeds: int = 3, pairs: int = 20_000) -> Measured:
    """Draw pairs of a query and a key from the normal distribution.

    Args:
        seeds: independent repetitions.
        pairs: pairs per repetition.
    """
    widths = np.array([4, 64, 1024])

    def one(key: jax.Array, width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        query, keys = jax.random.normal(key, (2, pairs, width))

        def logits(query: jax.Array) -> jax.Array:
            return (query * keys).sum(axis=1)

        gradient = jax.grad(lambda query: logits(query).sum())(query)
        found = logits(query)
        norms = jnp.sqrt(jnp.square(gradient).sum(axis=1))
        return found.var(), (found / jnp.sqrt(1.0 * width)).var(), norms.mean()

    drawn = [
        [one(jax.random.key(seed), int(width)) for seed in range(seeds)]
        for width in widths
    ]
    variance, scaled, gradient = np.moveaxis(np.asarray(drawn), -1, 0)
    return Measured(widths, variance, scaled, gradient)


def report(measured: Measured) -> Report:
    """The variances and norms beside those reported, and their growth with d."""
    reported = (("3.99", "64.0", "1013"), ("0.998", "1.00", "0.989"))
    norms = ("1.88", "7.97", "32.0")
    rows = [
        (f"{name}, d = {width}", said[index], values[index])
        for name, said, values in (
            ("variance of q·k", reported[0], measured.variance),
            ("variance of q·k / √d", reported[1], measured.scaled_variance),
            ("norm of ∂(q·k)/∂q", norms, measured.gradient),
        )
        for index, width in enumerate(measured.widths)
    ]
    figure = plot_lines(
        {
            "q·k": measured.variance.T,
            "q·k / √d": measured.scaled_variance.T,
        },
        measured.widths,
        x_label="width d",
        y_label="variance of the logits",
        title="Attention logits",
        is_log=(True, True),
    )
    return Report(
        [beside("Attention logits of Gaussian queries and keys", rows)],
        [
            "Without the factor the variance of a logit is d, and its derivative with "
            "respect to the query has norm √d; with the factor both are independent "
            "of d."
        ],
        figure,
    )
