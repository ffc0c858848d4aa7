"""Learn from examples of which some are wrong."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from ..pictures import dots
from .base import Batch, Goal, Outcome, Picture, Task, cross_entropy
from .mnist import CLASSES, Digits, mnist_task, to_pixels
from .places import on_examples

NOISE = 0.1  # standard deviation of the targets of right examples
SHIFT = 20.0  # of the targets of wrong ones
FACTOR = 10.0  # of the inputs of wrong ones
DISTANCE = "distance to the truth"


def spoil(
    key: jax.Array, inputs: jax.Array, targets: jax.Array, *, kind: str, count: int
) -> Batch:
    """Make the first `count` examples of a regression wrong.

    Args:
        key: chooses the signs.
        inputs: `(examples, features)`.
        targets: `(examples,)`.
        kind: "shift" adds 20 to the targets, "symmetric" adds noise of standard
            deviation 20, "leverage" adds 20 to the targets and multiplies the inputs
            by 10, "none" leaves all.
        count: how many examples are wrong.
    """
    is_wrong = jnp.arange(len(targets)) < count
    offsets = {
        "shift": SHIFT,
        "leverage": SHIFT,
        "symmetric": SHIFT * jax.random.normal(key, targets.shape),
    }
    targets += jnp.where(is_wrong, offsets.get(kind, 0.0), 0.0)
    factor = FACTOR if kind == "leverage" else 1.0
    return inputs * jnp.where(is_wrong, factor, 1.0)[:, None], targets


def regression_data(
    key: jax.Array, examples: int, features: int, *, kind: str, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draw weights, and the inputs and targets of a regression, some of them wrong.

    Args:
        key: chooses all of them.
        examples: number of examples.
        features: number of inputs.
        kind: what is wrong; see `spoil`.
        count: how many examples are wrong: the first ones.
    """
    keys = jax.random.split(key, 4)
    truth = jax.random.normal(keys[0], (features,))
    inputs = jax.random.normal(keys[1], (examples, features))
    noise = NOISE * jax.random.normal(keys[2], (examples,))
    targets = inputs @ truth + noise
    return truth, *spoil(keys[3], inputs, targets, kind=kind, count=count)


def half_squares(model: Callable, batch: Batch) -> jax.Array:
    """Return half the mean squared error."""
    inputs, targets = batch
    return 0.5 * jnp.square(model(inputs)[:, 0] - targets).mean()


def outlier_task(*, kind: str, outliers: float, examples: int, features: int) -> Task:
    """Return full-batch linear regression; each seed draws its own data set.

    The targets of right examples are linear in Gaussian inputs, up to noise of standard
    deviation 0.1. The score is the distance of the learned weights to the true ones.

    Args:
        kind: what is wrong; see `spoil`.
        outliers: fraction of the examples that are wrong.
        examples: number of examples.
        features: number of inputs.
    """
    count = 0 if kind == "none" else round(outliers * examples)
    truth = jax.random.normal(jax.random.key(0), (features,))

    def sample(key: jax.Array, step: jax.Array, truth: jax.Array) -> Batch:
        del step
        for_inputs, for_noise, for_signs = jax.random.split(key, 3)
        inputs = jax.random.normal(for_inputs, (examples, features))
        noise = NOISE * jax.random.normal(for_noise, (examples,))
        targets = inputs @ truth + noise
        return spoil(for_signs, inputs, targets, kind=kind, count=count)

    def evaluate(model: nnx.Linear, truth: jax.Array) -> dict[str, jax.Array]:
        return {DISTANCE: jnp.linalg.norm(model.kernel[:, 0] - truth)}

    def draw(outcomes: Mapping[str, Outcome]) -> Figure:
        return dots(
            outcomes,
            label="‖w − w*‖",
            title="Distance of the weights to the true ones",
            is_log=True,
        )

    wrong = "none wrong" if not count else f"{count} wrong ({kind})"
    return Task(
        source=f"Gaussian inputs, drawn per seed: {examples:,} examples, {wrong}",
        build=lambda key: nnx.Linear(
            features,
            1,
            use_bias=False,
            kernel_init=nnx.initializers.zeros,
            rngs=nnx.Rngs(params=key),
        ),
        train=truth,
        held_out=truth,
        sample=sample,
        loss=half_squares,
        evaluate=evaluate,
        unit="half squared errors",
        # The loss includes wrong examples, which a better model fits worse.
        goal=Goal(DISTANCE, must_fall=False),
        places={"per_example": on_examples},
        picture=Picture(
            evaluate,
            draw,
            "Distance of the learned weights to the true ones, one mark per seed.",
        ),
    )


class Judged(NamedTuple):
    """The data that score a network trained on wrong labels.

    Attributes:
        clean: held-out images, with their true labels.
        trained: the training images with the labels that were trained on.
        truth: the true labels of these.
    """

    clean: Digits
    trained: Digits
    truth: jax.Array


def mislabel(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Return the labels, a fraction of which is replaced by other classes."""
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(labels))[: round(fraction * len(labels))]
    changed = np.array(labels)
    changed[chosen] += rng.integers(1, CLASSES, len(chosen), dtype=changed.dtype)
    return changed % CLASSES


def label_noise_task(
    build: Callable[[jax.Array], nnx.Module],
    *,
    noise: float,
    directory: pathlib.Path | None = None,
    batch: int = 64,
) -> Task:
    """Return digit classification with wrong labels, scored on true labels.

    Args:
        build: key to a model that maps `(batch, 784)` pixels in [0, 1] to logits.
        noise: fraction of the training labels that are replaced.
        directory: where the four IDX files are; without it, `default_digits`.
        batch: images per step; every epoch shows each image once.

    Raises:
        ValueError: if the files are missing, unreadable or malformed.
    """
    task = mnist_task(build, directory=directory, batch=batch)
    images, truth = task.train
    labels = jnp.asarray(mislabel(np.asarray(truth), noise))

    def learned(model: Callable, judged: Judged) -> dict[str, jax.Array]:
        logits = model(to_pixels(judged.trained.images))
        hits = logits.argmax(axis=-1) == judged.trained.labels
        is_right = judged.trained.labels == judged.truth
        is_finite = jnp.isfinite(logits).all()
        return {
            f"{name} labels learned": jnp.where(is_finite, hits.mean(where=of), jnp.nan)
            for name, of in (("right", is_right), ("wrong", ~is_right))
        }

    def evaluate(model: Callable, judged: Judged) -> dict[str, jax.Array]:
        return task.evaluate(model, judged.clean) | learned(model, judged)

    def draw(outcomes: Mapping[str, Outcome]) -> Figure:
        return dots(
            outcomes,
            label="fraction of the training images",
            title="What the network answers as it was taught",
        )

    return dataclasses.replace(
        task,
        source=f"{task.source}; {(labels != truth).sum():,} training labels are wrong",
        train=Digits(images, labels),
        held_out=Judged(task.held_out, Digits(images, labels), truth),
        loss=cross_entropy,
        evaluate=evaluate,
        # A network that is confident and right has a high loss on the wrong labels.
        goal=Goal("accuracy", is_lowest_best=False, must_fall=False),
        places={"per_example": on_examples},
        picture=Picture(
            learned,
            draw,
            "The fraction of the rightly and of the wrongly labeled training images "
            "that the network gives the label it was taught; one mark per seed. "
            "The lower for wrong labels, the less of them was memorized.",
        ),
    )
