"""Places of a clip that several tasks have."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import clipjax
from clipjax import recipes, rules

from ..arms import UNCLIPPED, Arm, ClipCall, OptimizerOf

# What can clip single examples: the recipes of a fixed global norm, by their rules.
RULES = {
    recipes.clip_by_global_norm: rules.hard,
    recipes.soft_clip_by_global_norm: rules.soft,
}


def on_examples(
    clip: ClipCall, optimizer: OptimizerOf, *, threshold: Callable | None = None
) -> Arm:
    """Every example's gradient clipped by itself, and the mean taken then.

    The loss of the task must be a mean over examples. The log tells of the examples:
    the mean of their norms before and after, and the fraction of them that was clipped.

    Args:
        clip: `clip_by_global_norm` or `soft_clip_by_global_norm`, with its threshold.
        optimizer: what follows.
        threshold: from the threshold of the clip and the batch to one threshold per
            example.

    Raises:
        ValueError: for another clip.
    """
    if clip.label.rpartition("@")[2] == UNCLIPPED:
        rule, limit = rules.hard, jnp.inf
    elif clip.call.func in RULES:
        rule = RULES[clip.call.func]
        (limit,) = clip.arguments.values()
    else:
        accepted = ", ".join(recipe.__name__ for recipe in RULES)
        raise ValueError(f"cannot clip single examples; accepted: {accepted}")

    def gradient(loss: Callable[..., jax.Array]) -> Callable[..., tuple]:
        def of_examples(params: Any, batch: Any) -> tuple[jax.Array, Any, dict]:
            count = len(jax.tree.leaves(batch)[0])
            limits = jnp.full(count, limit, jnp.float32)
            if threshold is not None:
                limits = threshold(limit, batch)
            grads, seen = clipjax.clipped_grad(
                loss,
                l2_clip_norm=limits,
                rule=rule,
                normalize_by=float(count),
                return_values=True,
                return_grad_norms=True,
            )(params, batch)
            norms = seen.grad_norms
            lengths = rule.lengths(norms, limits)
            before, after = norms.mean(), lengths.mean()
            return (
                seen.values.mean(),
                grads,
                {
                    "grad_norm_raw": before,
                    "grad_norm_clipped": after,
                    "clip_ratio": after / before,
                    "threshold": limits.mean(),
                    "clipped_fraction": jnp.mean(lengths < norms),
                },
            )

        return of_examples

    free = recipes.clip_by_global_norm(float("inf"))
    return Arm(
        lambda learning_rate: optax.chain(free, optimizer(learning_rate)), gradient
    )
