"""Learn a density by maximum likelihood, with a flow that preserves volume."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from ...diagnostics import jacobian_report
from ...plotting import plot_scatter
from .base import Outcome, Picture, Task

TRAIN, HELD_OUT, LATENTS, JACOBIANS = 4096, 1024, 500, 128
# Entropy of the normal distribution in the plane, and of all its images under maps of
# determinant 1: no density has a lower expected negative log likelihood on such data.
LOWEST = math.log(2 * math.pi * math.e)


class HeldOut(NamedTuple):
    """Held-out points, and latent points to map to samples."""

    points: jax.Array
    latents: jax.Array


def banana(latents: jax.Array, stretch: float, bend: float) -> jax.Array:
    """Map points `(..., 2)` to points: diag(stretch, 1/stretch), then a bend.

    The determinant is 1 everywhere. The horizontal coordinate stretches, the vertical
    one shrinks and is shifted along a parabola.
    """
    along, across = latents[..., 0], latents[..., 1]
    return jnp.stack(
        [stretch * along, across / stretch + bend * (along**2 - 1)], axis=-1
    )


def likelihood_loss(model: Any, batch: jax.Array) -> jax.Array:
    """Return the mean negative log likelihood of points `(points, 2)`."""
    return -jax.vmap(model.log_density)(batch).mean()


def evaluate(model: Any, held_out: HeldOut) -> dict[str, jax.Array]:
    """Return the likelihood, and norm and determinant of the Jacobian.

    All are means over data points, for the map from data to latent points. The
    map from latent points to data has the same largest singular value: in the plane,
    where the determinant is 1, the two singular values are inverse to each other.
    """
    points = held_out.points[:JACOBIANS]
    norms = jax.vmap(lambda point: jacobian_report(model, point).spectral_norm)(points)
    determinants = jnp.linalg.det(jax.vmap(jax.jacobian(model))(points))
    return {
        "held-out NLL": likelihood_loss(model, held_out.points),
        "Jacobian norm": norms.mean(),
        "determinant": determinants.mean(),
    }


def flow_task(
    build: Callable[[jax.Array], nnx.Module],
    *,
    batch: int = 128,
    stretch: float = 5.0,
    bend: float = 2.0,
) -> Task:
    """A curved and stretched normal distribution, an image of determinant 1.

    Args:
        build: key to a `Flow`.
        batch: points per step, drawn with replacement.
        stretch: largest singular value of the diagonal of the data.
        bend: how far the data are shifted along a parabola.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    counts = (TRAIN, HELD_OUT, LATENTS)
    train, held_out, latents = (
        jax.random.normal(key, (count, 2))
        for key, count in zip(keys, counts, strict=True)
    )

    def sample(key: jax.Array, step: jax.Array, train: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, step)
        return train[jax.random.randint(key, (batch,), 0, len(train))]

    def outcome(model: Any, held_out: HeldOut) -> dict[str, jax.Array]:
        return {"samples": jax.vmap(model.inverse)(held_out.latents)}

    along = jnp.linspace(-3, 3, 61)
    middle = banana(jnp.stack([along, 0 * along], axis=1), stretch, bend)

    def draw(outcomes: Mapping[str, Outcome]) -> Figure:
        samples = {arm: outcome["samples"] for arm, outcome in outcomes.items()}
        return plot_scatter(
            samples,
            outlines=np.asarray(middle),
            x_label="first coordinate",
            y_label="second coordinate",
        )

    return Task(
        source=f"Normal points stretched by diag({stretch:g}, {1 / stretch:g}) and "
        f"bent, determinant 1: {TRAIN:,} points, {HELD_OUT:,} held out. No density "
        f"has a lower NLL than {LOWEST:.3f} nats on average",
        build=build,
        train=banana(train, stretch, bend),
        held_out=HeldOut(banana(held_out, stretch, bend), latents),
        sample=sample,
        loss=likelihood_loss,
        evaluate=evaluate,
        unit="nats",
        picture=Picture(
            outcome,
            draw,
            f"{LATENTS} samples of each arm, seeds in different colors. The line is "
            "the middle of the data, which lie within a narrow band around it.",
        ),
    )
