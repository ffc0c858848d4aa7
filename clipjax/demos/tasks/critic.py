"""A generator and a Wasserstein critic on a ring of eight Gaussian modes.

Three things keep the critic within bounds here, and each is a switch of its own: the
penalty on its slope with respect to its inputs (Gulrajani et al. 2017,
https://arxiv.org/abs/1704.00028), the limit on its weights (Arjovsky et al. 2017,
https://arxiv.org/abs/1701.07875), and the clip of its gradient with respect to its
weights, which is the arm of the comparison.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ..models.players import Players
from .base import Batch, Goal, Task
from .players import PLAYERS, at_every, each_with_its_clip, weights_within
from .ring import Ring, held_out

LATTICE = 41  # points along each side of the square where slopes are measured


def slopes(score: Callable[[jax.Array], jax.Array], points: jax.Array) -> jax.Array:
    """Return the norms of the score's gradient at points `(count, 2)`.

    Args:
        score: maps points to `(count,)` scores, one for each point.
        points: the points.
    """
    gradients = jax.grad(lambda points: score(points).sum())(points)
    return optax.safe_norm(gradients, 0.0, axis=-1)


def slope_penalty(
    score: Callable[[jax.Array], jax.Array], points: jax.Array
) -> jax.Array:
    """Return the mean of (slope - 1)² over points."""
    return jnp.square(slopes(score, points) - 1).mean()


def losses(model: Players, batch: Batch, penalty: float) -> dict[str, jax.Array]:
    """Return each player's loss, whose gradient for the other player is 0.

    Args:
        model: the players.
        batch: real points, noise, and a number from 0 to 1 for each point, which says
            where between a real and a generated point the slope is penalized.
        penalty: the factor on the penalty.
    """
    real, noise, mix = batch
    fake = model.generate(noise)
    constant = jax.lax.stop_gradient(fake)
    loss = model.score(constant).mean() - model.score(real).mean()
    if penalty:
        between = mix * real + (1 - mix) * constant
        loss += penalty * slope_penalty(model.score, between)
    return {"generator": -model.frozen_score(fake).mean(), "discriminator": loss}


def critic_task(
    ring: Ring | None = None,
    *,
    noise: int = 2,
    width: int = 64,
    batch: int = 256,
    critic_steps: int = 5,
    penalty: float = 0.1,
    weight_clip: float = 0.0,
) -> Task:
    """Return a critic that is trained at every step, and a generator at some.

    Args:
        ring: the modes.
        noise: dimension of the generator's input noise.
        width: width of the inner layers of both.
        batch: real points, and generated points, per step.
        critic_steps: the generator moves at the last one of so many steps.
        penalty: factor on the mean of (slope of the critic - 1)²; 0 for none.
        weight_clip: largest absolute weight of the critic; 0 for no limit.
    """
    ring = ring or Ring()
    side = np.linspace(-1.5, 1.5, LATTICE, dtype=np.float32) * np.float32(ring.radius)
    lattice = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)

    def sample(key: jax.Array, step: jax.Array, train: None) -> Batch:
        points, values, mix = jax.random.split(jax.random.fold_in(key, step), 3)
        return (
            ring.draw(points, batch),
            jax.random.normal(values, (batch, noise)),
            jax.random.uniform(mix, (batch, 1)),
        )

    def evaluate(model: Players, noise: jax.Array) -> dict[str, jax.Array]:
        steepest = slopes(model.score, jnp.asarray(lattice)).max()
        return ring.coverage(model.generate(noise)) | {"largest slope": steepest}

    wraps = {"generator": at_every(critic_steps)}
    if weight_clip:
        wraps["discriminator"] = lambda moves: optax.chain(
            moves, weights_within(weight_clip)
        )
    both = each_with_its_clip(*reversed(PLAYERS), wraps=wraps)
    return Task(
        source=str(ring),
        build=lambda key: Players(noise=noise, width=width, rngs=nnx.Rngs(params=key)),
        train=None,
        held_out=held_out(noise),
        sample=sample,
        loss=lambda model, batch: jnp.sum(
            jnp.stack([*losses(model, batch, penalty).values()])
        ),
        evaluate=evaluate,
        unit="units of the critic's score, of both players together",
        goal=Goal("modes covered", is_lowest_best=False, must_fall=False),
        places={
            "": both,
            "both": both,
            "critic": each_with_its_clip("discriminator", wraps=wraps),
            "generator": each_with_its_clip("generator", wraps=wraps),
        },
        picture=ring.picture,
    )
