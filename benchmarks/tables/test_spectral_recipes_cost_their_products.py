"""Clips of singular values cost the matrix products that they are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..arms import optimizer_arm
from ..conftest import Bench
from ..gpt2 import shapes
from ..recipes import build
from ..timing import Arm, ratio, time_arms

ABOUT = """
One step of a clip of singular values and Adam on GPT-2's shapes with two layers of
width 256, 2.0M float32 parameters in 28 leaves, ten of them matrices. The time is not
reads and writes, as with other clips: each matrix is decomposed, or multiplied many
times. Each recipe stands beside a step with such products in its place and no clip, in
plain JAX: an SVD and the product of its factors; 16 steps of power iteration, each two
products with a vector; 12 steps of a Newton-Schulz iteration, each four products of
matrices, and those 16 steps, which give the norm that is reported.
"""
COLUMNS = {"step": "", "ms": ".1f", "× Adam": ".1f", "× clip_by_global_norm": ".1f"}
COLUMNS |= {"× its products": ".2f", "temporary MB": ".1f", "compile s": ".1f"}
BAR = 1.5
POWER_STEPS, NEWTON_STEPS = 16, 12
Matrices = Callable[[jax.Array], jax.Array]


def power_iteration(matrix: jax.Array) -> jax.Array:
    """Scale a matrix by an estimate of its largest singular value."""

    def step(_: Any, vector: jax.Array) -> jax.Array:
        vector = matrix.T @ (matrix @ vector)
        return vector / jnp.linalg.norm(vector)

    vector = jnp.ones((matrix.shape[1], 1))
    vector = jax.lax.fori_loop(0, POWER_STEPS, step, vector)
    return matrix / jnp.linalg.norm(matrix @ vector)


def decomposition(matrix: jax.Array) -> jax.Array:
    """Decompose a matrix, and multiply the factors."""
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return (left * jnp.minimum(values, 0.3)) @ right


def newton_schulz(matrix: jax.Array) -> jax.Array:
    """Iterate over a matrix stacked on a multiple of the identity."""
    if matrix.shape[0] < matrix.shape[1]:
        return newton_schulz(matrix.T).T
    scaled = power_iteration(matrix)
    identity = jnp.eye(matrix.shape[1])

    def step(_: Any, stack: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        upper, lower = stack
        factor = 1.5 * identity - 0.5 * (upper.T @ upper + lower.T @ lower)
        return upper @ factor, lower @ factor

    stack = 0.7 * scaled, 0.1 * identity
    return jax.lax.fori_loop(0, NEWTON_STEPS, step, stack)[0]


def of_matrices(change: Matrices) -> optax.GradientTransformation:
    """Return a transformation that changes the matrices of a gradient."""
    change_leaf = lambda leaf: change(leaf) if leaf.ndim == 2 else leaf  # noqa: E731
    return optax.stateless(lambda grads, _: jax.tree.map(change_leaf, grads))


LIMITS: dict[str, tuple[str, Matrices]] = {
    "spectral_clip": ("power iteration alone", power_iteration),
    "spectral_soft_clip": ("Newton-Schulz products alone", newton_schulz),
    "spectral_clamp": ("SVD alone", decomposition),
}


def test_spectral_recipes_cost_their_products(bench: Bench) -> None:
    """Compare each with its products, with a global clip, and with Adam alone."""
    leaves = shapes(width=256, layers=2, vocabulary=500)
    if bench.small:
        leaves = shapes(width=32, layers=1, vocabulary=50)

    def arm(name: str, clip: Any) -> Arm:
        chain = optax.chain(clip, optax.adam(1e-3))
        return optimizer_arm(name, chain, leaves, jnp.float32)

    title = "Clips of singular values before Adam, 2.0M parameters in float32"
    with bench.table(title, ABOUT, COLUMNS) as table:
        adam = arm("Adam", optax.identity())
        base = arm("clip_by_global_norm", build("clip_by_global_norm", leaves))
        limits = {
            name: arm(limit, of_matrices(change))
            for name, (limit, change) in LIMITS.items()
        }
        steps = {name: arm(name, build(name, leaves)) for name in LIMITS}
        time_arms(
            [adam, base, *limits.values(), *steps.values()],
            bench.rounds(15),
            patience=6.0,
        )
        pairs = [step for name in LIMITS for step in (limits[name], steps[name])]
        for step in [adam, base, *pairs]:
            limit = limits.get(step.name)
            table.row(
                step.name,
                step.milliseconds.median,
                ratio(step, adam),
                ratio(step, base).median,
                ratio(step, limit) if limit else None,
                step.temporary_bytes / 1e6,
                step.compile_seconds,
            )
        for name, step in steps.items():
            statement = f"{name} + Adam, relative to {LIMITS[name][0]} + Adam"
            table.claim(statement, ratio(step, limits[name]).median, at_most=BAR)
