"""Places of a clip that several tasks share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import clipjax
from clipjax import recipes, rules

from ..arms import Arm, ClipCall, OptimizerOf, is_unclipped

# Clips that can be applied per example, recipes with a fixed global norm: their rules.
RULES = {
    recipes.clip_by_global_norm: rules.hard,
    recipes.soft_clip_by_global_norm: rules.soft,
    recipes.normalise_by_global_norm: rules.normalise,
}


def on_examples(
    clip: ClipCall,
    optimizer: OptimizerOf,
    *,
    threshold: Callable | None = None,
    is_rescaled: bool = False,
) -> Arm:
    """Return an arm that clips every example's gradient before taking the mean.

    The loss of the task must be a mean over examples. The log contains the mean norm of
    the examples before and after the clip, and the fraction of clipped examples.

    Args:
        clip: a clip of `RULES`, with its threshold.
        optimizer: the optimizer after the clip.
        threshold: maps the threshold of the clip and the batch to one threshold per
            example.
        is_rescaled: whether each clipped gradient is divided by its own threshold and
            multiplied by that of the clip, so that all examples add at most the same.
            The log contains the norms before this rescaling.

    Raises:
        ValueError: for another clip, or a threshold of 0 or infinity to rescale by.
    """
    if is_unclipped(clip.label):
        rule, limit = rules.hard, jnp.inf
    elif clip.call.func in RULES:
        rule = RULES[clip.call.func]
        (limit,) = clip.arguments.values()
    else:
        accepted = ", ".join(recipe.__name__ for recipe in RULES)
        raise ValueError(f"cannot clip single examples; accepted: {accepted}")
    if is_rescaled and not 0 < jnp.float32(limit) < jnp.inf:
        raise ValueError(
            "needs a threshold to rescale to; accepted: a finite one above 0"
        )

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
                normalize_by=count / limit if is_rescaled else float(count),
                rescale_to_unit_norm=is_rescaled,
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
                    "clipped_fraction": jnp.mean((lengths < norms) | (lengths > norms)),
                },
            )

        return of_examples

    free = recipes.clip_by_global_norm(float("inf"))
    return Arm(
        lambda learning_rate: optax.chain(free, optimizer(learning_rate)), gradient
    )
