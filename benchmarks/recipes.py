"""All recipes that clipjax exports, with arguments under which a few steps clip."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

import clipjax

# Recipes that are not here are called without positional arguments.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "adaptive_grad_clip": (0.1,),
    "autoclip": (50.0, 4),
    "cclip": (0.02,),
    "clip_by_block_rms": (0.002,),
    "clip_by_global_norm": (1.0,),
    "clip_by_leaf_norm": (0.5,),
    "clip_by_momentum": (5.0,),
    "clip_by_value": (0.02,),
    "clip_update_by_history": (4, 0.5),
    "delta_clip": (1.0,),
    "larc_clip": (0.1,),
    "normalise_by_global_norm": (1.0,),
    "normalize_by_global_norm": (1.0,),
    "quantile_clip": (0.5, 3.0, 4),
    "quantization_clip": (jnp.int8, 64.0),
    "scale_by_l0_l1": (2.0, 1.0),
    "soft_clip_by_global_norm": (1.0,),
    "spectral_clamp": (0.3,),
    "spectral_clip": (0.3,),
    "spectral_soft_clip": (0.3,),
    "torch_clip_grad_norm": (1.0,),
    "two_sided_clip": (1e-4, 0.02),
}
# Passed to each recipe that takes them: by default some wait for a hundred steps.
KEYWORDS = {"warmup_steps": 2, "minimum_history": 2}


def recipes() -> dict[str, Callable[..., Any]]:
    """Return what clipjax exports from its recipes, by name."""
    return {
        name: member
        for name, member in sorted(vars(clipjax).items())
        if inspect.isfunction(member)
        and member.__module__.startswith("clipjax.recipes.")
        and member.__name__ == name  # an alias is no further recipe
    }


class Call(NamedTuple):
    """A recipe, and what it is called with."""

    recipe: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


def call(name: str, shapes: dict[str, tuple[int, ...]]) -> Call:
    """Return how a recipe is called for a tree of these shapes."""
    recipe = recipes()[name]
    parameters = inspect.signature(recipe).parameters
    keywords = {key: KEYWORDS[key] for key in KEYWORDS if key in parameters}
    arguments = ARGUMENTS.get(name, ())
    if name == "clip_by_group_norm":
        kinds = ("scalar", "vector")
        labels = {key: (*kinds, "matrix")[min(2, len(shapes[key]))] for key in shapes}
        arguments = (labels, dict.fromkeys(labels.values(), 0.5))
    return Call(recipe, arguments, keywords)


def build(name: str, shapes: dict[str, tuple[int, ...]]) -> Any:
    """Build the clip of a recipe for a tree of these shapes."""
    recipe, arguments, keywords = call(name, shapes)
    return recipe(*arguments, **keywords)
