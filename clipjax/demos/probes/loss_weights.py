"""Weights of a diffusion loss, and where a threshold by time step has to act."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import clipjax

from ...plotting import plot_lines
from ..models.mlp import MLP
from ..options import Positive, Whole
from .arguments import require
from .base import Report, beside, number

STEPS = 1000  # of the diffusion, with the linear schedule of DDPM
GIVEN = (0.1, 1.0, 10.0, 100.0)  # weights of the small example


class Contributions(NamedTuple):
    """Norms of what single examples add to the sum; arrays of shape `(examples,)`.

    Attributes:
        unweighted: of their gradients.
        weighted: of their gradients times the weight v.
        by_unweighted: clipped at c0 / v, and weighted then.
        by_constant: weighted, and clipped at the constant c0 then.
        by_weighted: weighted, and clipped at c0 / v then.
        difference: largest distance of an entry of the first two, over c0.
    """

    unweighted: np.ndarray
    weighted: np.ndarray
    by_unweighted: np.ndarray
    by_constant: np.ndarray
    by_weighted: np.ndarray
    difference: np.ndarray


class Measured(NamedTuple):
    """Contributions of examples of a diffusion loss.

    Attributes:
        times: `(times,)`, time steps of the diffusion.
        weights: `(times,)`, the weight v(t) of the variational bound.
        threshold: c0.
        schedule: contributions by time step, each `(seeds, times)`.
        given: contributions with the weights `GIVEN`, each `(seeds, 4)`.
    """

    times: np.ndarray
    weights: np.ndarray
    threshold: float
    schedule: Contributions
    given: Contributions


def bound_weights(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights of the variational bound, and the share ᾱ of the data.

    Ho, Jain, Abbeel, "Denoising diffusion probabilistic models"
    (https://arxiv.org/abs/2006.11239), equation 12 with σ² = β. Their simple loss has
    weight 1 everywhere.

    Args:
        times: time steps from 1 to `STEPS`.
    """
    beta = np.linspace(1e-4, 0.02, STEPS)
    share = np.cumprod(1 - beta)
    weights = beta / (2 * (1 - beta) * (1 - share))
    return weights[times - 1], share[times - 1]


def measure(*, seeds: int = 3, times: int = 25, threshold: float = 0.05) -> Measured:
    """Clip the gradients of single examples by `clipjax.clipped_grad`.

    Args:
        seeds: networks, each with its own examples.
        times: time steps, from the first to the last.
        threshold: c0, the threshold of the weighted gradient.
    """
    require(Positive(), threshold=threshold)
    require(Whole(STEPS), seeds=seeds, times=times)
    at = np.unique(np.geomspace(1, STEPS, times).astype(int))
    weights, share = bound_weights(at)

    @jax.jit
    def one(key):
        keys = iter(jax.random.split(key, 3))
        network = MLP(3, 2, depth=3, width=64, rngs=nnx.Rngs(params=next(keys)))
        angle = jax.random.uniform(next(keys), (len(at),)) * 2 * jnp.pi
        data = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
        noise = jax.random.normal(next(keys), data.shape)
        near = jnp.asarray(share, jnp.float32)[:, None]
        mixed = jnp.sqrt(near) * data + jnp.sqrt(1 - near) * noise
        time = jnp.asarray(at[:, None] / STEPS, jnp.float32)
        inputs = jnp.concatenate([mixed, time], axis=1)
        # The small example takes the first time steps once more.
        again = np.append(np.arange(len(at)), np.arange(len(GIVEN)) % len(at))
        every = jnp.asarray(np.append(weights, GIVEN), jnp.float32)
        return contributions(network, (inputs[again], noise[again], every), threshold)

    found = [one(jax.random.key(seed)) for seed in range(seeds)]
    stacked = [np.stack(column) for column in zip(*found, strict=True)]
    schedule, given = (
        Contributions(*(array[:, part] for array in stacked))
        for part in (slice(len(at)), slice(len(at), None))
    )
    return Measured(at, weights, float(threshold), schedule, given)


def contributions(
    network: nnx.Module,
    examples: tuple[jax.Array, jax.Array, jax.Array],
    threshold: float,
) -> tuple[jax.Array, ...]:
    """What each example adds, clipped before and after the weighting.

    Args:
        network: from inputs to the noise that it predicts.
        examples: inputs, noises and weights v.
        threshold: c0.

    Returns:
        The fields of `Contributions`.
    """
    graph, params = nnx.split(network, nnx.Param)

    def loss(params, inputs, noise, weight):
        error = nnx.merge(graph, params)(inputs) - noise
        return jnp.sum(weight * jnp.sum(jnp.square(error), axis=1))

    def clipped(limit, inputs, noise, weight):
        grad = clipjax.clipped_grad(
            loss, l2_clip_norm=limit, batch_argnums=(1, 2, 3), method="vmap"
        )
        return grad(params, inputs[None], noise[None], weight[None])

    def one(example):
        inputs, noise, weight = example
        unit, limit = jnp.ones_like(weight), threshold / weight
        free, constant = (
            jnp.full_like(weight, jnp.inf),
            jnp.full_like(weight, threshold),
        )
        limits = jnp.stack([free, free, limit, constant, limit])
        weights = jnp.stack([unit, weight, unit, weight, weight])
        # One program for all five, of which the third is weighted after its clip.
        found = jax.lax.map(
            lambda each: clipped(each[0], inputs, noise, each[1]), (limits, weights)
        )
        factors = jnp.stack([unit, unit, weight, unit, unit])
        results = jax.vmap(optax.tree.scale)(factors, found)
        gaps = jax.tree.map(lambda leaf: jnp.max(jnp.abs(leaf[2] - leaf[3])), results)
        largest = jnp.max(jnp.stack(jax.tree.leaves(gaps)))
        return (*jax.vmap(optax.tree.norm)(results), largest / threshold)

    return jax.lax.map(one, examples)


def report(measured: Measured) -> Report:
    """What examples add in units of c0, beside what is reported, and by time step."""
    given = measured.given
    units = [
        (
            "clipped at c0/v, then weighted",
            given.by_unweighted,
            ("1", "1", "1", "1"),
        ),
        (
            "weighted, then clipped at c0/v",
            given.by_weighted,
            ("2.03", "1", ".1", ".01"),
        ),
    ]
    rows = [
        (f"{name}, v = {weight:g}", said[index], norms[:, index] / measured.threshold)
        for name, norms, said in units
        for index, weight in enumerate(GIVEN)
    ]
    schedule = measured.schedule
    spans = {
        name: _span(norms)
        for name, norms in schedule._asdict().items()
        if name != "difference"
    }
    figure = plot_lines(
        {
            "no clip": schedule.weighted,
            "clipped at c0/v, then weighted": schedule.by_unweighted,
            "weighted, then clipped at c0/v": schedule.by_weighted,
        },
        measured.times,
        x_label="time step t of the diffusion",
        y_label="norm of an example's weighted gradient",
        title="Weights of the variational bound",
        is_log=(True, True),
        level=measured.threshold,
    )
    gap = max(schedule.difference.max(), given.difference.max())
    return Report(
        [beside("What one example adds, in units of c0", rows)],
        [
            "Over the time steps the norm of an example's gradient spans a factor of "
            f"{number(spans['unweighted'])} without weights and "
            f"{number(spans['weighted'])} with those of the variational bound; clipped "
            f"at c0/v(t) before the weighting, {number(spans['by_unweighted'])}; "
            f"clipped at c0/v(t) after it, {number(spans['by_weighted'])}.",
            "A threshold c0/v(t) on the unweighted gradient of every example is the "
            "constant threshold c0 on the weighted one: they differ by up to "
            f"{gap:.0e} of c0. On the weighted gradient it divides by v once too "
            "often.",
            "With v = 0.1 the second order clips at 10 c0 only, so that the number "
            "there depends on the network wherever its gradient is shorter.",
        ],
        figure,
    )


def _span(norms: np.ndarray) -> float:
    """The largest over the smallest norm, as the median over seeds."""
    return float(np.median(norms.max(axis=1) / norms.min(axis=1)))
