"""Jacobian norms where branches are summed and where they are concatenated."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...diagnostics import jacobian_report
from ...plotting import plot_lines
from ..options import Whole
from .arguments import require
from .base import Report, beside, number


class Measured(NamedTuple):
    """Arrays of shape `(seeds, counts)`, for k = `counts[i]` branches.

    Norms of branches are divided by the norm of one branch.

    Attributes:
        counts: `(counts,)`, the number of branches k.
        same_sum: sum of k times the same branch of one input; k in theory.
        same_concat: these concatenated; sqrt(k) in theory.
        random_sum: sum of k independent branches; sqrt(k) in theory.
        random_concat: these concatenated; (1 + sqrt(k)) / 2 in theory.
        stacked_sum: sum of k inputs, with respect to all of them; sqrt(k).
        stacked_concat: these concatenated; 1.
        next_layer: k copies of the input concatenated, before a layer with weights of
            variance 1 / fan-in; not divided.
    """

    counts: np.ndarray
    same_sum: np.ndarray
    same_concat: np.ndarray
    random_sum: np.ndarray
    random_concat: np.ndarray
    stacked_sum: np.ndarray
    stacked_concat: np.ndarray
    next_layer: np.ndarray


def measure(*, seeds: int = 3, width: int = 32) -> Measured:
    """Build sums and concatenations of up to 32 linear branches x -> W x.

    Args:
        seeds: independent weights; each branch has Gaussian ones of variance 1 / width.
        width: of the input and of each branch.
    """
    require(Whole(), seeds=seeds, width=width)
    counts = np.array([2, 4, 8, 16, 32])
    most = int(counts.max())

    def norm(function, x: jax.Array) -> jax.Array:
        return jacobian_report(function, x).spectral_norm

    def one(key: jax.Array, count: jax.Array) -> tuple[jax.Array, ...]:
        # Always `most` branches, of which all but `count` are zero: rows of zeros leave
        # the norm as it is, and one shape is compiled once.
        branches = jnp.arange(most, dtype=jnp.float32)
        active = (branches < count).astype(jnp.float32)[:, None]
        same_key, random_key, next_key = jax.random.split(key, 3)
        same = jax.random.normal(same_key, (width, width)) * width**-0.5
        random = jax.random.normal(random_key, (most, width, width)) * width**-0.5
        after = jax.random.normal(next_key, (width, most * width))
        after = after / jnp.sqrt(count * width)
        x, inputs = jnp.zeros(width), jnp.zeros((most, 1))
        single = norm(lambda x: same @ x, x)
        each = jnp.linalg.norm(random, 2, axis=(1, 2)).mean()

        def copies(x: jax.Array) -> jax.Array:
            return active * jnp.tile(x, (most, 1))

        return (
            norm(lambda x: copies(same @ x).sum(axis=0), x) / single,
            norm(lambda x: copies(same @ x), x) / single,
            norm(lambda x: (active * (random @ x)).sum(axis=0), x) / each,
            norm(lambda x: active * (random @ x), x) / each,
            norm(lambda inputs: (active * inputs).sum(axis=0), inputs),
            norm(lambda inputs: active * inputs, inputs),
            norm(lambda x: after @ copies(x).ravel(), x),
        )

    def of_seed(key: jax.Array) -> tuple[jax.Array, ...]:
        return jax.lax.map(lambda count: one(key, count), jnp.float32(counts))

    keys = jax.random.split(jax.random.key(0), seeds)
    found = jax.jit(lambda keys: jax.lax.map(of_seed, keys))(keys)
    return Measured(counts, *map(np.asarray, found))


def report(measured: Measured) -> Report:
    """The norms next to reported ones."""
    concat = ("1.41", "2", "2.83", "4", "5.66")
    rows: list = [
        (
            f"same branch, concatenated, k = {count}",
            said,
            measured.same_concat[:, index],
        )
        for index, (count, said) in enumerate(zip(measured.counts, concat, strict=True))
    ]
    most = measured.counts[-1]
    rows += [
        (f"{name}, k = {most}", said, values[:, -1])
        for name, said, values in (
            ("same branch, summed", "32", measured.same_sum),
            ("independent branches, summed", "5.78", measured.random_sum),
            ("independent branches, concatenated", "3.46", measured.random_concat),
            ("inputs, summed", "5.66", measured.stacked_sum),
            ("inputs, concatenated", "1", measured.stacked_concat),
            ("copies, then a layer", "1.9", measured.next_layer),
        )
    ]
    figure = plot_lines(
        {
            "same branch, sum": measured.same_sum,
            "same branch, concat": measured.same_concat,
            "independent, sum": measured.random_sum,
            "independent, concat": measured.random_concat,
            "copies, next layer": measured.next_layer,
        },
        measured.counts,
        x_label="number of branches k",
        y_label="norm of the Jacobian",
        title="Sum and concatenation",
        is_log=(True, True),
    )
    ratios = [
        number(np.median(above[:, -1] / below[:, -1]))
        for above, below in (
            (measured.same_sum, measured.same_concat),
            (measured.random_sum, measured.random_concat),
        )
    ]
    return Report(
        [beside("Norm of the Jacobian, in units of one branch", rows)],
        [
            "It is often said that a concatenation grows like √k where a sum grows "
            f"like k. At k = {most} the sum's norm is {ratios[0]} times the "
            f"concatenation's for one branch used k times, and {ratios[1]} times for "
            f"independent branches; √k is {number(most**0.5)}.",
            "Independent wide branches have (1 + √k) / 2 in theory when concatenated, "
            f"{number((1 + most**0.5) / 2)}; narrow ones have more.",
            "A next layer whose weights are scaled by its fan-in sees "
            f"{number(measured.next_layer[:, 0].mean())} at k = {measured.counts[0]} "
            f"and {number(measured.next_layer[:, -1].mean())} at k = {most}.",
        ],
        figure,
    )
