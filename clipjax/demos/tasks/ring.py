"""A generator and a discriminator on a ring of eight Gaussian modes."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from ...plotting import plot_scatter
from ..models.players import Players
from .base import Batch, Goal, Outcome, Picture, Task
from .players import PLAYERS, each_with_its_clip

MODES = 8
HELD_OUT, DRAWN = 2500, 200  # points that are scored, and those of them in the picture
COVERED = 0.02  # of the points; an even share is 0.125


class Ring(NamedTuple):
    """Eight Gaussian modes on a circle: its radius, and their standard deviation."""

    radius: float = 1.0
    deviation: float = 0.1

    def __str__(self) -> str:
        return (
            f"{MODES} Gaussian modes of standard deviation {self.deviation:g} on a "
            f"circle of radius {self.radius:g}, drawn anew at every step"
        )

    @property
    def centers(self) -> np.ndarray:
        """The centers of the modes, `(8, 2)`."""
        angles = 2 * np.pi * np.arange(MODES) / MODES
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return (self.radius * circle).astype(np.float32)

    def draw(self, key: jax.Array, count: int) -> jax.Array:
        """Random points, `(count, 2)`."""
        modes, around = jax.random.split(key)
        chosen = jax.random.choice(modes, jnp.asarray(self.centers), (count,))
        return chosen + self.deviation * jax.random.normal(around, chosen.shape)

    def coverage(self, points: jax.Array) -> dict[str, jax.Array]:
        """Return scores of how well points `(count, 2)` cover the ring.

        Returns:
            "modes covered": the number of modes that have at least 2 % of the points
            within 3 standard deviations; "quality": the fraction of the points that
            are within 3 standard deviations of some mode. A point that is not finite
            is in no mode.
        """
        gaps = points[:, None] - self.centers[None]
        is_in = jnp.linalg.norm(gaps, axis=-1) <= 3 * self.deviation
        covered = jnp.sum(is_in.mean(axis=0) >= COVERED)
        return {
            "modes covered": covered.astype(jnp.float32),
            "quality": is_in.any(axis=1).mean(),
        }

    @property
    def outlines(self) -> np.ndarray:
        """Return circles of 3 standard deviations around the centers, NaN between."""
        angles = np.append(np.linspace(0, 2 * np.pi, 60), np.nan)
        circle = 3 * self.deviation * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return (self.centers[:, None] + circle).reshape(-1, 2)

    @property
    def picture(self) -> Picture:
        """Draw the points that each arm generates, over the outlines of the modes."""

        def draw(outcomes: Mapping[str, Outcome]) -> Figure:
            points = {label: outcome["points"] for label, outcome in outcomes.items()}
            return plot_scatter(points, outlines=self.outlines)

        return Picture(
            outcome=lambda model, noise: {"points": model.generate(noise[:DRAWN])},
            draw=draw,
            caption="Points from the generator, each seed in its own color and "
            "marker. The circles reach 3 standard deviations around the modes.",
        )


def held_out(noise: int) -> jax.Array:
    """The generator's input noise for the points that are scored."""
    return jax.random.normal(jax.random.key(0), (HELD_OUT, noise))


def losses(model: Players, batch: Batch) -> dict[str, jax.Array]:
    """Return the loss of each player, in nats.

    The gradient of a player's loss with respect to the other one's parameters is 0, so
    that the gradient of their sum is each player's own. The generator's loss is
    -log D(fake), which does not saturate where the discriminator is sure (Goodfellow
    et al. 2014, https://arxiv.org/abs/1406.2661).
    """
    real, noise = batch
    fake = model.generate(noise)
    is_real = jax.nn.softplus(-model.score(real)).mean()
    is_fake = jax.nn.softplus(model.score(jax.lax.stop_gradient(fake))).mean()
    return {
        "generator": jax.nn.softplus(-model.frozen_score(fake)).mean(),
        "discriminator": is_real + is_fake,
    }


def ring_task(
    ring: Ring | None = None, *, noise: int = 2, width: int = 64, batch: int = 256
) -> Task:
    """Return two players that are both trained at every step.

    Args:
        ring: the modes.
        noise: dimension of the generator's input noise.
        width: width of the inner layers of both.
        batch: real points, and generated points, per step.
    """
    ring = ring or Ring()

    def sample(key: jax.Array, step: jax.Array, train: None) -> Batch:
        points, values = jax.random.split(jax.random.fold_in(key, step))
        return ring.draw(points, batch), jax.random.normal(values, (batch, noise))

    both = each_with_its_clip(*PLAYERS)
    return Task(
        source=str(ring),
        build=lambda key: Players(noise=noise, width=width, rngs=nnx.Rngs(params=key)),
        train=None,
        held_out=held_out(noise),
        sample=sample,
        loss=lambda model, batch: jnp.sum(jnp.stack([*losses(model, batch).values()])),
        evaluate=lambda model, noise: ring.coverage(model.generate(noise)),
        unit="nats, of both players together",
        goal=Goal("modes covered", is_lowest_best=False, must_fall=False),
        places={"": both, "both": both}
        | {player: each_with_its_clip(player) for player in PLAYERS},
        picture=ring.picture,
    )
