"""Train the runs of `clipjax private`, each from its last checkpoint."""

import dataclasses
import functools
import importlib.metadata
import math
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import clipjax
from clipjax import privacy

from . import checkpoint
from .mechanism import Mechanism
from .settings import Private

SECONDS_BETWEEN_FILES = 10.0
QUANTILES = (0.1, 0.5, 0.9)
ABOVE = "above threshold"
# Curves with an entry for each step: all of them tell about single examples.
NOT_PRIVATE = ("loss", ABOVE, *(f"norm {100 * q:.0f} %" for q in QUANTILES))

# Curves with an entry for each step at which a run is scored.
SCORES = ("step", "accuracy", "held-out loss", "epsilon")
PLAIN, CLIPPED = UNPROMISED = ("plain", "clip alone")
# Settings that say which runs there are, and those that others stand for.
CHANGEABLE = {"seeds", "epochs", "physical"}


class Arm(NamedTuple):
    """One way to train: with some ε, with the clip alone, or plain.

    Attributes:
        label: the arm's name.
        epsilon: the ε that the arm may spend; None for arms without a guarantee.
        is_clipped: whether examples are clipped.
        noise_multiplier: the noise in units of the sensitivity.
    """

    label: str
    epsilon: float | None = None
    is_clipped: bool = True
    noise_multiplier: float = 0.0


@dataclasses.dataclass
class Run:
    """The training run of one arm and seed, finished or not.

    Attributes:
        arm: the arm.
        seed: the seed.
        step: steps done.
        curves: the curves named in `NOT_PRIVATE` and `SCORES`.
        params: the parameters.
        state: the optimizer's state, with the words of the noise's key.
    """

    arm: Arm
    seed: int
    step: int
    curves: dict[str, list]
    params: Any
    state: Any

    @property
    def name(self) -> str:
        """The name of the run's file."""
        return f"{self.arm.label.replace(' ', '-')}-seed-{self.seed}"


Watch = Callable[[Run], None]
# Seeds share the noise multiplier, which takes a third of a second to compute.
_guarantee = functools.cache(privacy.guarantee)


def label(epsilon: float) -> str:
    """Return the name of the arm that may spend ε."""
    return f"epsilon {epsilon:g}"


def labels(settings: Private) -> list[str]:
    """Return the names of all arms."""
    return [*UNPROMISED, *map(label, settings.epsilon)]


class Trainer:
    """All runs of the command, of one mechanism.

    Args:
        settings: the settings.
        mechanism: the compiled steps.
        out: the directory of the checkpoints.
        resume: whether to continue the runs in that directory.
        watch: called with the number of noise multipliers computed, and the next ε.
    """

    def __init__(
        self,
        settings: Private,
        mechanism: Mechanism,
        out: pathlib.Path,
        *,
        resume: bool,
        watch: Callable[[int, str], None] = lambda done, text: None,
    ):
        """Compute the noise multiplier of every arm, without training yet."""
        self.settings, self.mechanism, self.out = settings, mechanism, out
        self.resume = resume
        self.steps = settings.planned_steps(mechanism.examples)
        every = max(1, round(mechanism.examples / settings.batch))
        self.scored = sorted({*range(every, self.steps, every), self.steps})
        self.arms = [Arm(PLAIN, is_clipped=False), Arm(CLIPPED)]
        for done, epsilon in enumerate(settings.epsilon):
            watch(done, f"accounting for ε = {epsilon:g}")
            noise = privacy.noise_multiplier(
                epsilon,
                settings.delta,
                mechanism.sampling_rate,
                self.steps,
                accountant=settings.accountant,
                neighboring_relation=settings.relation,
            )
            self.arms.append(Arm(label(epsilon), epsilon, True, _rounded_up(noise)))
        watch(len(settings.epsilon), "")

    def guarantee(self, arm: Arm, steps: int) -> privacy.Guarantee:
        """Return the guarantee of an arm after some steps."""
        return _guarantee(
            arm.noise_multiplier,
            self.settings.delta,
            self.mechanism.sampling_rate,
            steps,
            accountant=self.settings.accountant,
            neighboring_relation=self.settings.relation,
        )

    def train(self, watch: Watch) -> Iterator[Run]:
        """Train every arm from every seed, and yield the runs as they are finished.

        An interrupted call leaves checkpoints to continue from.

        Raises:
            ValueError: a file in the directory is of other settings.
        """
        runs = [
            self.begin(arm, seed)
            for arm in self.arms
            for seed in range(self.settings.seeds)
        ]
        for run in runs:
            watch(run)
            self.finish(run, watch)
            yield run

    def begin(self, arm: Arm, seed: int) -> Run:
        """Return a run at its first step, or at that of its checkpoint."""
        weights, _, noise = self.keys(arm, seed)
        params = self.mechanism.initial(weights)
        build = self.mechanism.private if arm.is_clipped else self.mechanism.plain
        state = build(arm.noise_multiplier, noise).init(params)
        curves: dict[str, list] = {name: [] for name in (*NOT_PRIVATE, *SCORES)}
        run = Run(arm, seed, 0, curves, params, state)
        tree = (params, state)
        kept = (
            checkpoint.load(self.out, run.name, self.described(run), tree)
            if self.resume
            else None
        )
        if kept is not None:
            (run.params, run.state), run.curves = kept
            run.step = len(run.curves["loss"])
        return run

    @staticmethod
    def keys(arm: Arm, seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the keys of initial weights, batches and noise.

        Arms share the first two, but not the noise: the difference of two models with
        the same noise would be free of noise, and reveal the difference of their sums.
        """
        weights, batches, noise = jax.random.split(jax.random.key(seed), 3)
        own = zlib.crc32(arm.label.encode())
        return weights, batches, jax.random.fold_in(noise, own)

    def finish(self, run: Run, watch: Watch) -> None:
        """Train a run for its remaining steps."""
        _, batches, noise = self.keys(run.arm, run.seed)
        sampler = privacy.PoissonSampler(
            self.mechanism.examples,
            self.mechanism.sampling_rate,
            key=batches,
            batch_size=self.mechanism.batch_in_memory,
        )
        step = self.mechanism.steps[run.arm.is_clipped]
        multiplier = np.float32(run.arm.noise_multiplier)
        saved = time.monotonic()
        while run.step < self.steps:
            losses, norms = [], []
            for indices, is_last in sampler.batches(run.step):
                run.params, run.state, *seen = step(
                    run.params,
                    run.state,
                    self.mechanism.data,
                    indices,
                    np.bool_(is_last),
                    multiplier,
                    noise,
                )
                for rows, row in zip((losses, norms), seen, strict=True):
                    rows.append(np.asarray(row)[indices >= 0])
            run.step += 1
            self._measure(run, np.concatenate(losses), np.concatenate(norms))
            if run.step in self.scored:
                self._score(run)
            is_late = time.monotonic() - saved > SECONDS_BETWEEN_FILES
            if run.step in self.scored or is_late:
                self.save(run)
                saved = time.monotonic()
            try:
                watch(run)
            except KeyboardInterrupt:
                self.save(run)  # between two steps, where the state is complete
                raise

    def _measure(self, run: Run, losses: np.ndarray, norms: np.ndarray) -> None:
        if not losses.size:  # an empty sample: noise alone
            losses = norms = np.full(1, np.nan)
        seen = [losses.mean(), np.mean(norms > self.settings.clip)]
        seen += np.quantile(norms, QUANTILES).tolist()
        for name, value in zip(NOT_PRIVATE, seen, strict=True):
            run.curves[name].append(float(value))

    def _score(self, run: Run) -> None:
        accuracy, loss = self.mechanism.score(run.params, self.mechanism.held_out)
        is_private = run.arm.epsilon is not None
        spent = self.guarantee(run.arm, run.step).epsilon if is_private else math.inf
        scores = (run.step, float(accuracy), float(loss), spent)
        for name, value in zip(SCORES, scores, strict=True):
            run.curves[name].append(value)

    def save(self, run: Run) -> None:
        """Write the checkpoint of a run."""
        tree = (run.params, run.state)
        checkpoint.save(self.out, run.name, self.described(run), tree, run.curves)

    def described(self, run: Run) -> dict[str, Any]:
        """Return the settings that must not change when a run continues."""
        described = vars(self.settings) | {
            "epsilon": run.arm.epsilon,
            "noise multiplier": run.arm.noise_multiplier,
            "steps": self.steps,
            "images": self.mechanism.examples,
            "checksum of the data": self.mechanism.checksum,
            "images at a time": self.mechanism.batch_in_memory,
            "clipjax": clipjax.__version__,
            "jax": importlib.metadata.version("jax"),
        }
        return {key: value for key, value in described.items() if key not in CHANGEABLE}


def _rounded_up(value: float) -> float:
    """Round up to a float32 number, since the noise is computed in float32."""
    narrow = np.float32(value)
    return float(
        narrow if narrow >= value else np.nextafter(narrow, np.float32(np.inf))
    )
