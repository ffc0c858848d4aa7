"""Learn to denoise points of the plane, with a weight for each noise level."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from ...plotting import plot_scatter
from ..arms import Arm, ClipCall, OptimizerOf
from .base import Outcome, Picture, Task
from .places import on_examples

LEVELS = 100  # noise levels, and steps of the sampler
TRAIN, HELD_OUT, SAMPLES = 4096, 2048, 500


class Noised(NamedTuple):
    """A batch: clean points, their noise levels, noise, and weights v(t) in the loss.

    Attributes:
        clean: `(points, 2)`.
        level: `(points,)`, from 0 (least noise) to `LEVELS - 1`.
        noise: `(points, 2)`, normal.
        weight: `(points,)`.
    """

    clean: jax.Array
    level: jax.Array
    noise: jax.Array
    weight: jax.Array


class HeldOut(NamedTuple):
    """A batch that training never sees, and the noise that samples start from."""

    batch: Noised
    start: jax.Array


def kept() -> jax.Array:
    """Return ᾱ, the fraction of the variance that is signal, for each noise level.

    The schedule is linear as that of denoising diffusion models (DDPM,
    https://arxiv.org/abs/2006.11239), in a tenth of their 1,000 steps.
    """
    return jnp.cumprod(1 - jnp.linspace(1e-3, 0.2, LEVELS))


def weights(weighting: str) -> jax.Array:
    """Return v(t), the weight of the squared error of the clean point.

    `snr` is the ratio of signal to noise, with which the loss is the mean squared error
    of the predicted noise; `vlb` is the weight of the variational bound, half the
    decrease of that ratio (https://arxiv.org/abs/2107.00630, eq. 14), where the level
    with the least noise takes that of the next; `none` is 1.
    """
    ratio = kept() / (1 - kept())
    falls = 0.5 * (ratio[:-1] - ratio[1:])
    return {
        "none": jnp.ones(LEVELS),
        "snr": ratio,
        "vlb": jnp.concatenate([falls[:1], falls]),
    }[weighting]


def add_noise(batch: Noised) -> jax.Array:
    """Return the noisy points of a batch."""
    signal = kept()[batch.level, None]
    return jnp.sqrt(signal) * batch.clean + jnp.sqrt(1 - signal) * batch.noise


def denoising_loss(model: Callable, batch: Noised) -> jax.Array:
    """Return the weighted mean squared error of the predicted clean points."""
    predicted = model(add_noise(batch), batch.level / LEVELS)
    return jnp.mean(batch.weight * jnp.sum((predicted - batch.clean) ** 2, axis=1))


def with_threshold_of_time(clip: ClipCall, optimizer: OptimizerOf) -> Arm:
    """Clip each example's unweighted gradient to C / v(t), and then multiply by v(t).

    Every example adds at most C, whatever its noise level: the result equals that of a
    clip of the weighted gradient to C.
    """
    arm = on_examples(
        clip,
        optimizer,
        threshold=lambda limit, batch: limit / batch.weight,
        is_rescaled=True,
    )

    def gradient(loss: Callable[..., jax.Array]) -> Callable[..., tuple]:
        def without_weight(params: Any, batch: Noised) -> jax.Array:
            return loss(params, batch._replace(weight=jnp.ones_like(batch.weight)))

        def of_batch(params: Any, batch: Noised) -> tuple[jax.Array, Any, dict]:
            _, grads, seen = arm.gradient(without_weight)(params, batch)
            return loss(params, batch), grads, seen

        return of_batch

    return Arm(arm.chain, gradient)


def with_weight_twice(clip: ClipCall, optimizer: OptimizerOf) -> Arm:
    """Clip each example's weighted gradient to C / v(t): divided by v(t) twice."""
    return on_examples(
        clip, optimizer, threshold=lambda limit, batch: limit / batch.weight
    )


def two_moons(key: jax.Array, count: int) -> jax.Array:
    """Return points on two half circles with a little noise, of about variance 1."""
    place, blur = jax.random.split(key)
    angle = jax.random.uniform(place, (count,), maxval=2 * jnp.pi)
    return moons(angle) + 0.1 * jax.random.normal(blur, (count, 2))


def moons(angle: jax.Array) -> jax.Array:
    """Return points on the upper half circle up to π, on the lower one from there."""
    side = jnp.where(angle < jnp.pi, -0.75, 0.75)
    height = jnp.where(angle < jnp.pi, -0.4, 0.4)
    return jnp.stack(
        [1.5 * jnp.cos(angle) + side, 1.5 * jnp.sin(angle) + height], axis=-1
    )


def sampled(model: Callable, start: jax.Array) -> jax.Array:
    """Return samples from noise `(points, 2)`, by the deterministic sampler DDIM.

    Each step predicts the clean points, and adds the predicted noise at the next lower
    noise level (https://arxiv.org/abs/2010.02502).
    """
    signals = kept()
    following = jnp.concatenate([jnp.ones(1), signals[:-1]])

    def step(noisy: jax.Array, level: jax.Array) -> tuple[jax.Array, None]:
        time = jnp.full(len(noisy), level / LEVELS)
        clean = model(noisy, time)
        signal, after = signals[level], following[level]
        noise = (noisy - jnp.sqrt(signal) * clean) / jnp.sqrt(1 - signal)
        return jnp.sqrt(after) * clean + jnp.sqrt(1 - after) * noise, None

    return jax.lax.scan(step, start, jnp.arange(LEVELS)[::-1])[0]


def energy_distance(points: jax.Array, others: jax.Array) -> jax.Array:
    """Return 2 E|x - y| - E|x - x'| - E|y - y'|, which is 0 for equal sets."""

    def mean(one: jax.Array, other: jax.Array) -> jax.Array:
        gaps = one[:, None] - other[None]
        return jnp.sqrt(jnp.sum(gaps**2, axis=-1)).mean()

    return 2 * mean(points, others) - mean(points, points) - mean(others, others)


def diffusion_task(
    build: Callable[[jax.Array], nnx.Module],
    *,
    batch: int = 128,
    weighting: str = "snr",
) -> Task:
    """Two moons, denoised at a random noise level per point.

    Args:
        build: key to a model that maps noisy points and times to clean points.
        batch: points per step, drawn with replacement.
        weighting: "snr", "vlb" or "none"; see `weights`.
    """
    weight = weights(weighting)

    def noised(key: jax.Array, clean: jax.Array) -> Noised:
        of_level, of_noise = jax.random.split(key)
        level = jax.random.randint(of_level, (len(clean),), 0, LEVELS)
        noise = jax.random.normal(of_noise, clean.shape)
        return Noised(clean, level, noise, weight[level])

    def sample(key: jax.Array, step: jax.Array, train: jax.Array) -> Noised:
        which, how = jax.random.split(jax.random.fold_in(key, step))
        chosen = jax.random.randint(which, (batch,), 0, len(train))
        return noised(how, train[chosen])

    def evaluate(model: Callable, held_out: HeldOut) -> dict[str, jax.Array]:
        samples = sampled(model, held_out.start)
        clean = held_out.batch.clean[:SAMPLES]
        return {
            "held-out loss": denoising_loss(model, held_out.batch),
            "energy distance": energy_distance(samples, clean),
        }

    def outcome(model: Callable, held_out: HeldOut) -> dict[str, jax.Array]:
        return {"samples": sampled(model, held_out.start)}

    keys = jax.random.split(jax.random.key(0), 4)
    return Task(
        source=f"Two moons: {TRAIN:,} points, {HELD_OUT:,} held out, {LEVELS} noise "
        f"levels with weights v(t) from {weight.min():.2g} to {weight.max():.2g}",
        build=build,
        train=two_moons(keys[0], TRAIN),
        held_out=HeldOut(
            noised(keys[1], two_moons(keys[2], HELD_OUT)),
            jax.random.normal(keys[3], (SAMPLES, 2)),
        ),
        sample=sample,
        loss=denoising_loss,
        evaluate=evaluate,
        unit="weighted squared error",
        places={
            "per_example": on_examples,
            "time": with_threshold_of_time,
            "time_weighted": with_weight_twice,
        },
        picture=Picture(
            outcome,
            draw_samples,
            f"{SAMPLES} samples of each arm, seeds in different colors. The line is "
            "the middle of the two moons.",
        ),
    )


def draw_samples(outcomes: Mapping[str, Outcome]) -> Figure:
    """Draw the samples of each arm over the middle of the moons."""
    upper, lower = (
        jnp.linspace(0, jnp.pi, 50)[:-1],
        jnp.linspace(jnp.pi, 2 * jnp.pi, 50),
    )
    outlines = np.concatenate([moons(upper), np.full((1, 2), np.nan), moons(lower)])
    return plot_scatter(
        {arm: outcome["samples"] for arm, outcome in outcomes.items()},
        outlines=outlines,
        x_label="first coordinate",
        y_label="second coordinate",
    )
