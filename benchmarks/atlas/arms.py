"""The arms of the atlas: every recipe with its arguments and its place in the chain."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import optax

from ..recipes import recipes
from .task import Family, Task

MOMENTUM = 0.9
WARMUP = 20  # steps, where a recipe's own warm-up is longer than a run
UNCLIPPED = "unclipped"  # and the same with the optimizer that the task has not:
OTHERS: dict[Family, str] = {"adam": "unclipped_adam", "sgd": "unclipped_sgd"}
TIGHTER = 10  # times: how much smaller a second threshold of these recipes is
TIGHTENED = {
    "clip_by_global_norm_tenth": "clip_by_global_norm",
    "clip_by_leaf_norm_tenth": "clip_by_leaf_norm",
}
Place = Literal["before", "around", "instead", "after", "last"]
Pilot = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One recipe on one task.

    Attributes:
        name: the recipe's name, one of `TIGHTENED`, or that of an arm without a clip.
        family: the optimizer.
        place: where the clip stands: before the optimizer, around it, instead of it,
            after it or last, after the learning rate.
        arguments: of the recipe.
        shift: of the grid of learning rates, as a power of ten.
        reference: the arm without a clip that it is compared with.
        betas: Adam's, where the recipe does not bring its own.
    """

    name: str
    family: Family
    place: Place = "before"
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shift: float = 0.0
    reference: str = UNCLIPPED
    betas: tuple[float, float] = (0.9, 0.999)

    def optimizer(self, rate: jax.Array) -> optax.GradientTransformationExtraArgs:
        """Return the chain for a learning rate."""
        adam = optax.scale_by_adam(*self.betas)
        inner = optax.trace(MOMENTUM) if self.family == "sgd" else adam
        step = optax.scale_by_learning_rate(rate)
        if self.name.startswith(UNCLIPPED):
            return optax.with_extra_args_support(optax.chain(inner, step))
        recipe: Callable[..., Any] = recipes()[TIGHTENED.get(self.name, self.name)]
        if self.place == "around":
            recipe = functools.partial(recipe, inner=inner)
        clip = recipe(**self.arguments)
        chain = {
            "before": (clip, inner, step),
            "around": (clip, step),
            "instead": (clip, step),
            "after": (inner, clip, step),
            "last": (inner, step, clip),
        }[self.place]
        return optax.with_extra_args_support(optax.chain(*chain))

    def settings(self) -> dict[str, Any]:
        """Return what a cell's file says about the arm."""
        return dataclasses.asdict(self)


def unclipped(task: Task) -> list[Arm]:
    """Return the arms without a clip: the task's own optimizer first."""
    other: Family = "adam" if task.family == "sgd" else "sgd"
    named: list[tuple[str, Family]] = [
        (UNCLIPPED, task.family),
        (OTHERS[other], other),
    ]
    return [Arm(name, family, betas=task.betas) for name, family in named]


def group(path: str, leaf: Any) -> str:
    """Label matrices and all other leaves."""
    del path
    return "matrix" if leaf.ndim > 1 else "vector"


def kinds(task: Task) -> dict[str, str]:
    """Return the label of each leaf."""
    return {
        name: "matrix" if len(shape) > 1 else "vector"
        for name, shape in task.shapes.items()
    }


def arms(task: Task, pilot: Pilot) -> dict[str, Arm]:
    """Return every arm of a task.

    Args:
        task: the task.
        pilot: the thresholds in units of the gradient; see `engine.pilot`.
    """
    whole, leaf = {"max_norm": pilot["global norm"]}, pilot["leaf norm"]
    entry, spectral = pilot["entry"], {"threshold": pilot["spectral norm"]}
    own: dict[str, dict[str, Any]] = {
        "adagc": {"lambda_abs": pilot["global norm"], "warmup_steps": WARMUP},
        "adaptive_grad_clip": {"clipping": 0.01},
        "autoclip": {"percentile": 10.0, "window": task.steps},
        "cclip": {"tau": pilot["entry of each leaf"]},
        "clip_by_block_rms": {"threshold": pilot["leaf root mean square"]},
        "clip_by_global_norm": whole,
        "clip_by_group_norm": {
            "labels": kinds(task),
            "max_norms": pilot["norm of each group"],
        },
        "clip_by_leaf_norm": {"max_norm": leaf},
        "clip_by_momentum": {"ratio": 10.0, "max_norm": leaf},
        "clip_by_value": {"max_delta": entry},
        "clip_update_by_history": {"minimum_history": WARMUP},
        "delta_clip": whole,
        "normalise_by_global_norm": {"norm": pilot["global norm"]},
        "quantile_clip": {"window": task.steps, "minimum_history": WARMUP},
        "scale_by_l0_l1": {"l0": 1.0, "l1": 1 / pilot["global norm"]},
        "soft_clip_by_global_norm": whole,
        "spectral_clamp": spectral,
        "spectral_clip": spectral,
        "spectral_soft_clip": spectral,
        "torch_clip_grad_norm": whole,
        "stable_update_clip": {"b1": task.betas[0]},
        "two_sided_clip": {"lower": 1e-4 * entry, "upper": entry},
        "zclip": {"max_grad_norm": None},
    }
    places: dict[str, Place] = {
        "acclip": "instead",
        "clip_by_momentum": "around",
        "clip_update_by_history": "last",
        "clippy": "last",
        "spam_clip": "around",
        "stable_update_clip": "instead",
    }
    families: dict[str, Family] = {
        "acclip": "sgd",
        "larc_clip": "sgd",
        "spam_clip": "adam",
        "stable_update_clip": "adam",
    }
    # acclip's momentum is an average, that of SGD a sum.
    shifts = {"acclip": -math.log10(1 - MOMENTUM)}
    if task.family == "sgd":
        own["clip_by_momentum"]["ratio"] *= 1 - MOMENTUM
        # These set the norm of each leaf to one.
        unit = round(2 * math.log10(pilot["typical leaf norm"])) / 2
        shifts |= {"gradient_stabilizer": unit, "stable_spam_clip": unit}
    else:  # behind the preconditioner, as in Adafactor
        own["clip_by_block_rms"], places["clip_by_block_rms"] = (
            {"threshold": 1.0},
            "after",
        )
    found = {arm.name: arm for arm in unclipped(task)}
    for name in recipes():
        family = families.get(name, task.family)
        found[name] = Arm(
            name,
            family,
            places.get(name, "before"),
            own.get(name, {}),
            shifts.get(name, 0.0),
            UNCLIPPED if family == task.family else OTHERS[family],
            task.betas,
        )
    for name, recipe in TIGHTENED.items():
        less = {key: value / TIGHTER for key, value in own[recipe].items()}
        # With SGD the product of rate and threshold bounds an update.
        shift = math.log10(TIGHTER) if task.family == "sgd" else 0.0
        found[name] = dataclasses.replace(
            found[recipe], name=name, arguments=less, shift=shift
        )
    return found
