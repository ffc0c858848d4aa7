"""Train steps: the plain gradient and Adam, clipjax's private step, jax_privacy's.

The plain step is the gradient of the summed loss and Adam; the private one is
``clipped_grad`` and ``dp_adam``; the peer is ``jax_privacy``'s clip of one example at a
time, its fastest setting on CPUs, its Gaussian privatizer and Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clipjax import privacy

from ..timing import Arm, compile_arm
from . import peers
from .models import Model

# The largest ratio of the private step to the plain one, in time and in temporaries.
GATE = 1.2
NOISE: dict[str, Any] = {"sensitivity": peers.CLIP_NORM, "noise_multiplier": 1.0}


def peer_adam() -> optax.GradientTransformation:
    """Return Adam on jax_privacy's noisy sums."""
    from jax_privacy import noise_addition  # pyright: ignore[reportMissingImports]

    noise = noise_addition.gaussian_privatizer(
        stddev=NOISE["sensitivity"] * NOISE["noise_multiplier"],
        prng_key=jax.random.key(0),
    )
    return optax.chain(noise, optax.adam(1e-3))


def ours_adam() -> optax.GradientTransformation:
    """Return Adam on our noisy sums."""
    return privacy.dp_adam(1e-3, key=jax.random.key(0), **NOISE)


STEPS = {
    "plain": (peers.plain, lambda: optax.adam(1e-3)),
    "private": (peers.ours, ours_adam),
    "jax_privacy": (peers.WAYS["jax_privacy, 1 at a time"], peer_adam),
}


def train_step(
    name: str, model: Model, steps: Mapping[str, Any] = STEPS
) -> tuple[Callable[[Any], Any], Any]:
    """Return a train step and its carry: parameters, optimizer's state and batch.

    Args:
        name: a key of ``steps``.
        model: the model.
        steps: what makes the gradient, and what makes the optimizer, by name.
    """
    make_gradient, make_optimizer = steps[name]
    gradient = make_gradient(model.loss, len(model.batch))
    optimizer = make_optimizer()

    def step(carry: Any) -> Any:
        params, state, batch = carry
        updates, state = optimizer.update(gradient((params, *batch)), state, params)
        return optax.apply_updates(params, updates), state, batch

    # Copies, since every step donates its own.
    params, batch = jax.tree.map(jnp.array, (model.params, model.batch))
    return step, (params, optimizer.init(params), batch)


def compiled_step(name: str, model: Model) -> Any:
    """Compile a train step that donates its carry."""
    step, carry = train_step(name, model)
    return jax.jit(step, donate_argnums=0).lower(carry).compile()


def noise_arm(model: Model) -> Arm:
    """Compile the noise alone, added to a donated sum."""
    noise = privacy.gaussian_noise(key=jax.random.key(0), **NOISE)
    total = jax.tree.map(jnp.array, model.params)
    return compile_arm(
        "noise", lambda carry: noise.update(*carry), (total, noise.init(total))
    )
