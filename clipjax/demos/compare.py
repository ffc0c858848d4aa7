"""The same training run under several clips."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from . import presets
from .arms import build_clips, read_optimizer
from .models.mlp import MLP
from .models.rnn import RNN
from .models.transformer import Transformer
from .tasks.base import Task
from .tasks.mnist import CLASSES, PIXELS, mnist_task
from .tasks.text import text_task
from .train import History, Loop


class Moment(NamedTuple):
    """Where a comparison stands.

    Attributes:
        arm: the clip that trains.
        learning_rate: at which learning rate.
        seed: from which seed.
        step: steps done; 0 when the arm is about to be compiled.
        log: the last values of the log; empty at step 0.
    """

    arm: str
    learning_rate: float
    seed: int
    step: int
    log: Mapping[str, float]


Watch = Callable[[Moment], None]


@dataclasses.dataclass(frozen=True)
class Result:
    """One arm of a finished comparison, a row per seed.

    Attributes:
        label: the clip, as the user wrote it.
        learning_rate: the learning rate.
        log: `(seeds, steps)` arrays: the loss and what the clip measured.
        held_out: `(seeds,)` arrays of scores on the held-out data.
        seconds_per_step: `(seeds,)`, without compilation.
    """

    label: str
    learning_rate: float
    log: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]
    seconds_per_step: np.ndarray


def build_task(model: presets.Model) -> Task:
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


def build_arms(
    settings: presets.Settings,
) -> dict[str, Callable[..., optax.GradientTransformationExtraArgs]]:
    """What builds each arm, a clip and the optimizer, from the learning rate.

    Raises:
        ValueError: if a clip or the optimizer is unknown or refuses its arguments.
    """
    optimizer = read_optimizer(settings.optimizer)

    def arm(clip: optax.GradientTransformationExtraArgs):
        return lambda learning_rate: optax.chain(clip, optimizer(learning_rate))

    return {label: arm(clip) for label, clip in build_clips(settings.clips).items()}


def compare(
    settings: presets.Settings,
    task: Task,
    arms: Mapping[str, Callable[..., optax.GradientTransformation]],
    *,
    finished: Collection[tuple[str, float]] = (),
    watch: Watch = lambda moment: None,
) -> Iterator[Result]:
    """Train every arm at every learning rate from every seed.

    All arms are compiled before the first one trains, so that a clip that cannot be
    used in this place is refused at once.

    Args:
        settings: what to compare.
        task: what `build_task(settings.model)` returned.
        arms: what `build_arms(settings)` returned.
        finished: arms and learning rates to leave out.
        watch: called after each logging interval, and when an arm is about to be
            compiled.

    Yields:
        One result for each arm and learning rate, when it is finished.

    Raises:
        ValueError: if a clip cannot be used here, or the memory does not suffice.
    """
    rates = {
        label: [rate for rate in settings.lr if (label, rate) not in finished]
        for label in arms
    }
    loops = {}
    for label in filter(rates.get, arms):
        watch(Moment(label, rates[label][0], 0, 0, {}))
        try:
            loops[label] = Loop(
                task,
                arms[label],
                steps=settings.steps,
                interval=settings.log_every,
            )
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"clip {label!r} cannot train here: {error}") from error
        except jax.errors.JaxRuntimeError as error:
            raise _no_memory(label, error) from error
    for label, loop in loops.items():
        for rate in rates[label]:
            try:
                runs = [
                    loop.run(
                        seed,
                        lambda step, log, seed=seed, label=label, rate=rate: watch(
                            Moment(label, rate, seed, step, log)
                        ),
                        learning_rate=rate,
                    )
                    for seed in range(settings.seeds)
                ]
            except jax.errors.JaxRuntimeError as error:
                raise _no_memory(label, error) from error
            yield _stack(label, rate, runs)


def _no_memory(label: str, error: Exception) -> ValueError:
    reason = str(error).rpartition(": ")[2]
    return ValueError(f"clip {label!r} cannot be trained: {reason}")


def _stack(label: str, learning_rate: float, runs: list[History]) -> Result:
    first = runs[0]
    return Result(
        label=label,
        learning_rate=learning_rate,
        log={name: np.stack([run.log[name] for run in runs]) for name in first.log},
        held_out={
            name: np.array([run.held_out[name] for run in runs])
            for name in first.held_out
        },
        seconds_per_step=np.array([run.seconds_per_step for run in runs]),
    )
