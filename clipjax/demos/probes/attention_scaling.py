"""Attention logits with and without the factor 1/sqrt(d)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...plotting import plot_lines
from ..options import Whole
from .arguments import require
from .base import Report, beside, number

KEYS = 32


class Measured(NamedTuple):
    """Arrays of shape `(widths, seeds)`, for d = `widths[i]`.

    Attributes:
        widths: `(widths,)`, the width d of queries and keys.
        variance: variance of the logits q·k of Gaussian q and k; d in theory.
        scaled_variance: the same of q·k / sqrt(d).
        gradient: mean norm of the derivative of a logit with respect to q, which is
            the norm of k; sqrt(d) in theory.
        output_median: median norm over queries of the derivative of attention's output
            with respect to q, for 32 keys with Gaussian values.
        output_largest: the largest of these norms.
        scaled_output_median: the median with the factor 1/sqrt(d).
        scaled_output_largest: the largest with that factor.
    """

    widths: np.ndarray
    variance: np.ndarray
    scaled_variance: np.ndarray
    gradient: np.ndarray
    output_median: np.ndarray
    output_largest: np.ndarray
    scaled_output_median: np.ndarray
    scaled_output_largest: np.ndarray


def measure(*, seeds: int = 3, pairs: int = 20_000, queries: int = 1000) -> Measured:
    """Draw queries, keys and values from the normal distribution.

    Args:
        seeds: independent repetitions.
        pairs: pairs of a query and a key per repetition.
        queries: queries per repetition that attend to 32 keys of their own.
    """
    require(Whole(), seeds=seeds, pairs=pairs, queries=queries)
    widths = np.array([4, 64, 1024])

    @functools.partial(jax.jit, static_argnums=1)
    def one(key: jax.Array, width: int) -> tuple[jax.Array, ...]:
        query, keys = jax.random.normal(key, (2, pairs, width))

        def logits(query: jax.Array) -> jax.Array:
            return (query * keys).sum(axis=1)

        gradient = jax.grad(lambda query: logits(query).sum())(query)
        found = logits(query)
        norms = jnp.sqrt(jnp.square(gradient).sum(axis=1))
        outputs, scaled = saturation(jax.random.fold_in(key, 1), width)
        return (
            found.var(),
            (found / jnp.sqrt(1.0 * width)).var(),
            norms.mean(),
            jnp.median(outputs),
            outputs.max(),
            jnp.median(scaled),
            scaled.max(),
        )

    def saturation(key: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
        """Norm of the derivative of attention's output, plain and scaled, by query."""

        def of_query(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            query_key, keys_key, values_key = jax.random.split(key, 3)
            keys = jax.random.normal(keys_key, (KEYS, width))
            values = jax.random.normal(values_key, (KEYS,))

            def attend(query: jax.Array, factor: float) -> jax.Array:
                return jax.nn.softmax(factor * (keys @ query)) @ values

            def norm(factor: float) -> jax.Array:
                query = jax.random.normal(query_key, (width,))
                return jnp.sqrt(jnp.square(jax.grad(attend)(query, factor)).sum())

            return norm(1.0), norm(width**-0.5)

        return jax.lax.map(of_query, jax.random.split(key, queries))

    drawn = [
        [one(jax.random.key(seed), int(width)) for seed in range(seeds)]
        for width in widths
    ]
    return Measured(widths, *np.moveaxis(np.asarray(drawn), -1, 0))


def report(measured: Measured) -> Report:
    """The variances and norms next to reported ones, and their growth with d."""
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
    wide = f"d = {measured.widths[-1]}"
    rows += [
        (f"∂output/∂q, {name}, {wide}", said, values[-1])
        for name, said, values in (
            ("median", "2.3e-4", measured.output_median),
            ("largest", "37", measured.output_largest),
            ("scaled, median", ".27", measured.scaled_output_median),
            ("scaled, largest", ".81", measured.scaled_output_largest),
        )
    ]
    ratio = measured.output_largest / measured.output_median
    scaled_ratio = measured.scaled_output_largest / measured.scaled_output_median
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
            "of d.",
            f"At {wide} the largest derivative of the output is "
            f"{number(ratio[-1].mean())} times the median without the factor, and "
            f"{number(scaled_ratio[-1].mean())} times with it: a saturated softmax "
            "passes no gradient for most queries and a large one for some. The number "
            "of keys of the reported measurement is not known.",
        ],
        figure,
    )
