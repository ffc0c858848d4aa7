"""The mean of clipped gradients of workers against the clip of their mean."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import clipjax

from ...plotting import plot_lines
from ..options import Whole
from .arguments import require
from .base import Report, beside

HETEROGENEITY = (0.0, 0.3, 1.0, 2.0, 5.0)
KINDS = ("like workers", "outlying workers")


class Measured(NamedTuple):
    """Aggregates of workers with own gradients, clipped to 1.

    Attributes:
        heterogeneity: `(values,)`, the length of a worker's own part over that of the
            part that all share.
        cosine: `(kinds, 2, values, seeds)`, with the shared part, which is the true
            mean: clipped by worker, and the clip of the mean. The kinds of own parts
            are all of the same length, and of lengths that are Student t with 1.5
            degrees of freedom.
        norm: likewise, the norm of the aggregate.
        opposed: `(2,)`, both aggregates of the gradients 10 and -1.
    """

    heterogeneity: np.ndarray
    cosine: np.ndarray
    norm: np.ndarray
    opposed: np.ndarray


def measure(
    *, seeds: int = 5, draws: int = 200, workers: int = 8, width: int = 100
) -> Measured:
    """Draw the gradients of workers, whose shared part has norm 10.

    Args:
        seeds: independent repetitions.
        draws: draws per repetition, over which cosine and norm are averaged.
        workers: number of workers.
        width: number of parameters.
    """
    require(Whole(), seeds=seeds, draws=draws, workers=workers, width=width)
    clip = clipjax.clip_by_global_norm(1.0)
    shared = jnp.zeros(width).at[0].set(10.0)

    each_first = clipjax.per_worker(clip, "workers")
    state = clip.init(shared)

    def both(gradient: jax.Array) -> Any:
        mean = jax.lax.pmean(gradient, "workers")
        return each_first.update(gradient, state)[0], clip.update(mean, state)[0]

    def aggregates(gradients: jax.Array) -> jax.Array:
        by_worker = jax.vmap(both, out_axes=None, axis_name="workers")(gradients)
        return jnp.stack(by_worker)

    def one(own: jax.Array, heterogeneity: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = jax.vmap(aggregates)(shared[None, None] + heterogeneity * own)
        cosine = jax.vmap(jax.vmap(lambda u: clipjax.direction_cosine(u, shared)))
        return cosine(found), jnp.linalg.norm(found, axis=-1)

    def mean_over(owns: jax.Array, heterogeneity: jax.Array) -> list[jax.Array]:
        found = jax.vmap(one, (0, None))(owns, heterogeneity)
        return [part.mean(axis=0) for part in found]

    over = jax.jit(jax.vmap(jax.vmap(mean_over, (0, None)), (None, 0)))
    owns = _own_parts(seeds, draws, workers, width)
    cosine, norm = (
        np.moveaxis(np.asarray(part), (0, 1), (2, 3))
        for part in over(owns, jnp.array(HETEROGENEITY))
    )
    opposed = np.ravel(jax.jit(aggregates)(jnp.array([[10.0], [-1.0]])))
    return Measured(np.array(HETEROGENEITY), cosine, norm, opposed)


def _own_parts(seeds: int, draws: int, workers: int, width: int) -> jax.Array:
    """Own parts of the workers, `(seeds, draws, kinds, workers, width)`."""
    generator = np.random.default_rng(0)
    own = generator.standard_normal((seeds, draws, workers, width))
    own *= 10 / np.linalg.norm(own, axis=-1, keepdims=True)
    lengths = np.abs(generator.standard_t(1.5, (seeds, draws, workers, 1)))
    return jnp.asarray(np.stack([own, own * lengths], axis=2), jnp.float32)


def report(measured: Measured) -> Report:
    """Cosines and norms of both orders next to reported ones."""
    values, cosine, norm, opposed = measured
    orders = ("clipped by worker", "clip of the mean")
    said = {
        0.0: (("1.0", None), ("1.0", None)),
        1.0: ((".927", ".70"), (".778", "1")),
        5.0: ((".601", ".43"), (".286", "1")),
    }
    tables = [
        beside(
            f"{kind.capitalize()}, {name}",
            [
                (
                    f"heterogeneity {value:g}, {order}",
                    said[value][o][column],
                    table[k, o, v],
                )
                for v, value in enumerate(values)
                if value in said
                for o, order in enumerate(orders)
            ],
        )
        for k, kind in enumerate(KINDS)
        for column, (name, table) in enumerate(
            {"cosine to the true mean": cosine, "norm": norm}.items()
        )
    ]
    tables.append(
        beside(
            "Gradients 10 and -1",
            [
                ("clipped by worker", "0", opposed[0]),
                ("clip of the mean", "1", opposed[1]),
            ],
        )
    )
    figure = plot_lines(
        {
            f"{kind}: {order}": cosine[k, o].T
            for k, kind in enumerate(KINDS)
            for o, order in enumerate(orders)
        },
        values,
        x_label="own part of a worker / shared part",
        y_label="cosine to the true mean",
        title="Clip by worker, and clip of the mean",
    )
    gain = (cosine[:, 0] - cosine[:, 1]).mean(axis=2)[:, -1]
    return Report(
        tables,
        [
            f"At heterogeneity {values[-1]:g}, the clip by worker gains "
            f"{gain[0]:.2f} of cosine among like workers, and {gain[1]:.2f} where some "
            "are outliers: no worker contributes more than C, which matters where few "
            "dominate the mean.",
            f"The norm of its aggregate is {norm[1, 0, -1].mean():.2f} against "
            f"{norm[1, 1, -1].mean():.2f}, and it is biased: 10 and -1 average to "
            f"{opposed[0]:.0f}, while the clipped mean is {opposed[1]:.0f}.",
            "How the reported workers differed is not known. The two kinds here are "
            "workers that differ equally, and a few that differ much more.",
        ],
        figure,
    )
