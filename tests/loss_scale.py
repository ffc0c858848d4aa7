"""A plain dynamic loss scale, as the page on mixed precision shows it."""

import jax.numpy as jnp


def next_scale(scale, good_steps, skipped, interval):
    """Halves after an overflow, doubles after ``interval`` good steps in a row."""
    good_steps = jnp.where(skipped, 0, good_steps + 1)
    grows = good_steps == interval
    scale = scale * jnp.where(skipped, 0.5, jnp.where(grows, 2.0, 1.0))
    return scale, jnp.where(grows, 0, good_steps)
