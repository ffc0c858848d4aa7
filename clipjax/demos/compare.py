"""The same training run under several clips."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np
import optax
from flax import nnx

from . import presets
from .arms import build_clips, build_optimizer
from .models.mlp import MLP
from .models.rnn import RNN
from .models.transformer import Transformer
from .tasks.base import Task
from .tasks.mnist import CLASSES, PIXELS, mnist_task
from .tasks.text import text_task
from .train import History, Loop

Watch = Callable[[str, int, int, Mapping[str, float]], None]


@dataclasses.dataclass(frozen=True)
class Result:
    """One arm of a finished comparison, a row per seed.

    Attributes:
        label: the clip, as the user wrote it.
        log: `(seeds, steps)` arrays: the loss and what the clip measured.
        held_out: `(seeds,)` arrays of scores on the held-out data.
        seconds_per_step: `(seeds,)`, without compilation.
    """

    label: str
    log: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]
    seconds_per_step: np.ndarray


def build_task(model: presets.RNN | presets.MLP | presets.Transformer) -> Task:
    """The data and the model that the settings describe.

    Raises:
        ValueError: if a file is unreadable, malformed or too small.
    """
    match model:
        case presets.RNN():
            return text_task(
                lambda vocabulary, key: RNN(
                    vocabulary,
                    hidden=model.hidden,
                    layers=model.layers,
                    cell=model.cell,
                    gain=model.gain,
                    rngs=nnx.Rngs(params=key),
                ),
                path=model.text,
                batch=model.batch,
                length=model.length,
            )
        case presets.MLP():
            return mnist_task(
                lambda key: MLP(
                    PIXELS,
                    CLASSES,
                    depth=model.depth,
                    width=model.width,
                    init=model.init,
                    normalisation=model.normalisation,
                    rngs=nnx.Rngs(params=key),
                ),
                directory=model.mnist,
                batch=model.batch,
            )
        case presets.Transformer():
            return text_task(
                lambda vocabulary, key: Transformer(
                    vocabulary,
                    context=model.length,
                    layers=model.layers,
                    width=model.width,
                    heads=model.heads,
                    rngs=nnx.Rngs(params=key),
                ),
                path=model.text,
                batch=model.batch,
                length=model.length,
            )


def build_optimizers(
    settings: presets.Settings,
) -> dict[str, optax.GradientTransformationExtraArgs]:
    """The clip of each arm followed by the optimizer, by the label of the arm.

    Raises:
        ValueError: if a clip or the optimizer is unknown or refuses its arguments.
    """
    return {
        label: optax.chain(clip, build_optimizer(settings.optimizer, settings.lr))
        for label, clip in build_clips(settings.clips).items()
    }


def compare(
    settings: presets.Settings,
    task: Task,
    optimizers: Mapping[str, optax.GradientTransformation],
    *,
    watch: Watch | None = None,
) -> list[Result]:
    """Train every arm from every seed.

    All arms are compiled before the first one trains, so that a clip that cannot be
    used in this place is refused at once.

    Args:
        settings: what to compare.
        task: what `build_task(settings.model)` returned.
        optimizers: what `build_optimizers(settings)` returned.
        watch: called with `(arm, seed, step, log)` after each logging interval, and
            with step 0 when an arm is about to be compiled.

    Raises:
        ValueError: if a clip cannot be used here, or the memory does not suffice.
    """
    watch = watch or (lambda arm, seed, step, log: None)
    loops = {}
    for label, optimizer in optimizers.items():
        watch(label, 0, 0, {})
        try:
            loops[label] = Loop(
                task,
                optimizer,
                learning_rate=settings.lr,
                steps=settings.steps,
                interval=settings.log_every,
            )
        except (ValueError, TypeError) as error:
            raise ValueError(f"clip {label!r} cannot train here: {error}") from error
    results = []
    for label, loop in loops.items():
        try:
            runs = [
                loop.run(seed, functools.partial(watch, label, seed))
                for seed in range(settings.seeds)
            ]
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).rpartition(": ")[2]
            raise ValueError(f"clip {label!r} cannot be trained: {reason}") from error
        results.append(_stack(label, runs))
    return results


def _stack(label: str, runs: list[History]) -> Result:
    first = runs[0]
    return Result(
        label=label,
        log={name: np.stack([run.log[name] for run in runs]) for name in first.log},
        held_out={
            name: np.array([run.held_out[name] for run in runs])
            for name in first.held_out
        },
        seconds_per_step=np.array([run.seconds_per_step for run in runs]),
    )
