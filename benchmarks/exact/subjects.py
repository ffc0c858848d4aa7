"""What the exact figures are counted of: every recipe, and what surrounds a clip."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import optax

import clipjax

from ..clips import pairs, without_report
from ..per_example import peers
from ..per_example.models import Model, perceptron, transformer
from ..per_example.private_steps import train_step
from ..recipes import build, recipes

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Clip:
    """A transformation that is counted by itself and in front of Adam.

    Attributes:
        make: returns it for a tree of shapes.
        recipe: its name among the recipes, if it is one with its usual arguments.
        around: wraps it around an optimizer, if it is a wrapper.
        with_metrics: a function of the state whose results the step returns too.
    """

    make: Callable[[Shapes], Any]
    recipe: str | None = None
    around: Callable[[Any], Any] | None = None
    with_metrics: Callable[[Any], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A program that is compared with the same one without clipjax.

    Attributes:
        model: returns the loss, the parameters and the batch.
        programs: returns, of a model, the program and the one without clipjax, each
            with its argument.
        donates: whether the argument is donated.
    """

    model: Callable[[], Model]
    programs: Callable[[Model], tuple[Any, Any]]
    donates: bool = False


def _wrapper(wrap: Callable[..., Any], **settings: Any) -> Clip:
    around = functools.partial(wrap, **settings)
    return Clip(lambda _: around(optax.identity()), around=around)


def _per_example(model: Model) -> tuple[Any, Any]:
    """Return the clipped and the plain gradient, each with its arguments."""
    arguments = (model.params, *model.batch)
    ways = (peers.ours, peers.plain)
    ours, plain = (way(model.loss, len(model.batch)) for way in ways)
    return (ours, arguments), (plain, arguments)


def _private(model: Model) -> tuple[Any, Any]:
    """Return the private and the plain train step, each with its carry."""
    return train_step("private", model), train_step("plain", model)


def small_perceptron() -> Model:
    """Return a loss of 32 images, with three layers."""
    return perceptron(32, 64, 64, 64, 10)


def small_transformer() -> Model:
    """Return a loss of 8 sequences of 16 words, with one block."""
    return transformer(8, 16, layers=1, width=64, heads=2)


def subjects() -> dict[str, Clip | Ratio]:
    """Return all that is compared with the committed figures."""
    without = functools.partial(without_report, clipjax.clip_by_value, 0.02)
    every = {
        name: Clip(functools.partial(build, name), recipe=name) for name in recipes()
    }
    return every | {
        "clip_by_value, no report": Clip(lambda _: without()),
        "clip_by_global_norm, metrics": Clip(
            lambda _: clipjax.clip_by_global_norm(1.0), with_metrics=clipjax.metrics
        ),
        "skip_nonfinite": _wrapper(clipjax.skip_nonfinite),
        "skip_on_spike": _wrapper(clipjax.skip_on_spike, multiple=2.0, loss=False),
        "clipped_grad, perceptron": Ratio(small_perceptron, _per_example),
        "clipped_grad, transformer": Ratio(small_transformer, _per_example),
        "private step": Ratio(small_perceptron, _private, donates=True),
    }


def peers_of_optax() -> dict[str, Clip]:
    """Return Optax's clips, by the name of the subject that each stands beside."""
    names = {
        "global": "clip_by_global_norm",
        "entries": "clip_by_value, no report",
        "block rms": "clip_by_block_rms",
        "AGC": "adaptive_grad_clip",
    }
    return {
        names[kind]: Clip(lambda _, peer=pair.optax: peer)
        for kind, pair in pairs().items()
    }
