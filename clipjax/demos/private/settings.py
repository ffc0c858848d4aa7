"""The settings of `clipjax private`: model, training and privacy guarantee."""

import dataclasses
import inspect
import math
import pathlib
from collections.abc import Callable
from typing import Any

from clipjax import rules
from clipjax.per_example.relations import CHANGES

from ..arms import bind, parse_call
from ..options import (
    Choice,
    Name,
    Numbers,
    OptionalWhole,
    Positive,
    Probability,
    Whole,
    check,
    option,
)
from ..presets.models import WIDTH, mnist_option

RELATIONS = tuple(CHANGES)
# Learning rates where none is given: of the clipped runs, and of the plain one, whose
# gradients are several times as long.
RATES = {"dp-sgd": (1.0, 0.3), "dp-adam": (3e-3, 3e-3)}
EPOCHS = 20


@dataclasses.dataclass(frozen=True)
class Private:
    """All settings of the runs: one run for each ε and seed, and two without noise.

    Runs with the same seed share initial parameters and batches.
    """

    epsilon: tuple[float, ...] = option(
        (1.0, 3.0, 8.0), Numbers(), "ε to spend, or several: a model for each"
    )
    delta: float = option(
        1e-5, Probability(), "δ of the guarantee, below 1 over the number of images"
    )
    relation: str = option(
        RELATIONS[0],
        Choice(RELATIONS),
        "neighboring relation of data sets",
    )
    accountant: str = option(
        "pld",
        Choice(("pld", "rdp")),
        "computes ε; pld is the tighter one",
    )
    clip: float = option(1.0, Positive(), "threshold of each image's gradient norm")
    rule: str = option("hard", Name("a rule of clipjax.rules"), "rule of the clip")
    batch: int = option(500, WIDTH, "expected images per step, the divisor")
    physical: int | None = option(
        None,
        OptionalWhole(100_000),
        "images in memory at a time (default: most samples fit at once)",
    )
    epochs: int | None = option(
        None, OptionalWhole(100_000), f"expected passes (default: {EPOCHS})"
    )
    steps: int | None = option(None, OptionalWhole(), "steps, in place of --epochs")
    optimizer: str = option(
        "dp-sgd", Choice(tuple(RATES)), "optimizer; each has a learning rate of its own"
    )
    lr: float = option(RATES["dp-sgd"][0], Positive(), "learning rate")
    plain_lr: float = option(
        RATES["dp-sgd"][1], Positive(), "learning rate of the plain run"
    )
    model: str = option(
        "convolution", Choice(("convolution", "mlp")), "what is trained"
    )
    width: int = option(8, WIDTH, "channels of the first layer, or units of the mlp")
    seeds: int = option(1, Whole(), "number of seeds")
    mnist: pathlib.Path | None = mnist_option()

    def __post_init__(self):
        """Check every field, and that the rule bounds an example's gradient."""
        check(self)
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                f"--epochs {self.epochs}: accepted without --steps, which is "
                f"{self.steps}"
            )
        read_rule(self.rule)

    def planned_steps(self, examples: int) -> int:
        """The number of steps that the guarantee is computed for."""
        epochs = EPOCHS if self.epochs is None else self.epochs
        return self.steps or math.ceil(epochs * examples / self.batch)

    def batch_in_memory(self, examples: int) -> int:
        """Images in memory at a time: the mean sample plus 4 standard deviations."""
        deviation = math.sqrt(self.batch * (1 - self.batch / examples))
        return self.physical or min(examples, math.ceil(self.batch + 4 * deviation))


def read(given: dict[str, Any]) -> Private:
    """Return the settings with the given options and the optimizer's learning rate.

    Raises:
        ValueError: a value is refused.
    """
    if "optimizer" in given:
        given = (
            dict(zip(("lr", "plain_lr"), RATES[given["optimizer"]], strict=True))
            | given
        )
    return Private(**given)


def read_rule(spec: str) -> rules.Rule:
    """Return the rule that `name[:arg...]` describes.

    Raises:
        ValueError: it is unknown, refuses its arguments, or does not bound a gradient.
    """
    call = parse_call(spec, rules_by_name(), "rule")
    try:
        rule = bind(call, spec, "rule") and call()
    except TypeError as error:
        raise ValueError(f"rule {spec!r}: {error}") from error
    if not rule.bounded:
        raise ValueError(
            f"--rule {spec!r} does not bound an example's gradient, so that there is "
            "no guarantee; accepted: a rule that never exceeds the threshold, such "
            "as hard"
        )
    return rule


def rules_by_name() -> dict[str, Callable[..., rules.Rule]]:
    """Return the public rules of `clipjax.rules`, and the functions that return one."""
    found: dict[str, Callable[..., Any]] = {}
    for name, value in vars(rules).items():
        if isinstance(value, rules.Rule):
            found[name] = _constant(value)
        elif inspect.isfunction(value) and value.__module__ == rules.__name__:
            made = getattr(rules, str(value.__annotations__.get("return")), None)
            if inspect.isclass(made) and issubclass(made, rules.Rule):
                found[name] = value
    return found


def _constant(rule: rules.Rule) -> Callable[[], rules.Rule]:
    return lambda: rule
