"""L2 and L1 penalties with a clip: the spectral radius, and where descent ends."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import clipjax

from ...plotting import plot_lines
from ..options import Positive, Whole
from .arguments import require
from .base import Report, Table, beside, over_seeds
from .descend import descend

RADIUS = 2.556  # of the reported experiment, before decay
ARMS = ("decay alone", "decay, then clip", "decay, with a data gradient")
PENALTIES = ("L2", "L1")
ORDERS = ("penalty, then clip", "clip, then penalty")
THRESHOLDS = (3.0, 0.3)


class Measured(NamedTuple):
    """Spectral radii over steps, and residuals of the stationarity condition.

    Attributes:
        radius: `(arms, seeds, steps + 1)`, of a 6 x 6 matrix W under
            W ← W - η(clip of the gradient + λW).
        shrinkage: 1 - ηλ.
        steps_below_one: `(arms, seeds)`, the number of steps until ρ(W) < 1; -1 if
            that never happened.
        thresholds: `(thresholds,)`, of the second experiment.
        residual: `(penalties, orders, thresholds, seeds)`, the distance of -∇L0(θ*)
            from the (sub)gradient of the penalty, for a least-squares loss L0.
    """

    radius: np.ndarray
    shrinkage: float
    steps_below_one: np.ndarray
    thresholds: np.ndarray
    residual: np.ndarray


def measure(
    *,
    seeds: int = 5,
    steps: int = 300,
    learning_rate: float = 0.1,
    penalty: float = 0.05,
) -> Measured:
    """Decay random matrices, and fit penalized least squares.

    Args:
        seeds: independent matrices and data.
        steps: steps of decay.
        learning_rate: the learning rate η.
        penalty: the penalty λ of the decayed matrices.
    """
    require(Whole(), seeds=seeds, steps=steps)
    require(Positive(), learning_rate=learning_rate, penalty=penalty)
    if learning_rate * penalty >= 1:
        raise ValueError(
            "learning_rate · penalty must be below 1, got "
            f"{learning_rate!r} · {penalty!r}"
        )
    matrices = [_matrix(seed) for seed in range(seeds)]
    radius = np.stack(
        [_radii(matrices, arm, steps, learning_rate, penalty) for arm in ARMS]
    )
    is_below = radius < 1
    first = np.where(is_below.any(axis=2), is_below.argmax(axis=2), -1)
    shrinkage = 1 - learning_rate * penalty
    residual = _stationarity(seeds)
    return Measured(radius, shrinkage, first, np.array(THRESHOLDS), residual)


def _matrix(seed: int) -> np.ndarray:
    matrix = np.random.default_rng(seed).standard_normal((6, 6))
    return matrix * RADIUS / np.abs(np.linalg.eigvals(matrix)).max()


def _radii(
    matrices: list[np.ndarray], arm: str, steps: int, rate: float, penalty: float
) -> np.ndarray:
    threshold = 0.1 if arm == "decay, then clip" else np.inf
    optimizer = optax.chain(
        optax.add_decayed_weights(penalty),
        clipjax.clip_by_global_norm(threshold),
        optax.sgd(rate),
    )
    strength = 0.1 if arm == "decay, with a data gradient" else 0.0

    @jax.jit
    @jax.vmap
    def paths(start: jax.Array) -> jax.Array:
        # The data pull W back to where it starts.
        return descend(optimizer, lambda w, step: strength * (w - start), start, steps)

    start = np.stack(matrices)
    path = np.asarray(paths(jnp.asarray(start, jnp.float32)), np.float64)
    whole = np.concatenate([start[:, None], path], axis=1)
    return np.abs(np.linalg.eigvals(whole)).max(axis=-1)


def _stationarity(seeds: int) -> np.ndarray:
    """Residuals where clipped descent ends, λ = 0.5."""
    strength, width, steps = 0.5, 10, 4000
    # The L1 penalty has no gradient at 0, around which steps of constant length jump.
    rate = optax.linear_schedule(0.2, 0.0, steps)

    def add_signs(grads: Any, theta: Any) -> jax.Array:
        return grads + strength * jnp.sign(theta)

    signs = optax.stateless(add_signs)

    def end(key: jax.Array, kind: str, order: str, threshold: float) -> jax.Array:
        curvatures = jnp.geomspace(0.1, 1.0, width)
        aim = 3 * jax.random.normal(key, (width,))

        def data(theta: jax.Array) -> jax.Array:
            return curvatures * (theta - aim)

        clip = clipjax.clip_by_global_norm(threshold)
        add = optax.add_decayed_weights(strength) if kind == "L2" else signs
        parts = (add, clip) if order == "penalty, then clip" else (clip, add)
        optimizer = optax.chain(*parts, optax.sgd(rate))
        path = descend(optimizer, lambda t, step: data(t), jnp.zeros(width), steps)
        theta = path[-1]
        against = -data(theta)
        if kind == "L2":
            residual = against - strength * theta
        else:
            # A proximal step changes nothing if and only if -∇L0 is a subgradient.
            moved = theta + against
            shrunk = jnp.maximum(jnp.abs(moved) - strength, 0) * jnp.sign(moved)
            residual = theta - shrunk
        return jnp.linalg.norm(residual)

    keys = jax.random.split(jax.random.key(0), seeds)

    @jax.jit
    def ends() -> list[jax.Array]:
        return [
            jax.vmap(lambda key: end(key, kind, order, threshold))(keys)  # noqa: B023
            for kind in PENALTIES
            for order in ORDERS
            for threshold in THRESHOLDS
        ]

    shape = (len(PENALTIES), len(ORDERS), len(THRESHOLDS), seeds)
    return np.reshape(ends(), shape)


def report(measured: Measured) -> Report:
    """Radii and steps beside their formula, and residuals by the order of the clip."""
    radius, shrinkage, first, thresholds, residual = measured
    steps = radius.shape[2] - 1
    end = RADIUS * shrinkage**steps
    formula = int(np.ceil(np.log(RADIUS) / -np.log(shrinkage)))
    is_usual = steps == 300 and np.isclose(shrinkage, 0.995)
    tables = [
        beside(
            f"Spectral radius after {steps} steps, from {RADIUS}",
            [
                (f"ρ·(1 - ηλ)^{steps}", ".568" if is_usual else None, end),
                *(
                    (arm, ".568" if is_usual and k == 0 else None, radius[k, :, -1])
                    for k, arm in enumerate(ARMS)
                ),
            ],
        ),
        Table(
            "Steps until the spectral radius is below 1",
            ("", "⌈ln ρ / -ln(1 - ηλ)⌉", "measured (-1: never)"),
            [(arm, str(formula), over_seeds(first[k])) for k, arm in enumerate(ARMS)],
        ),
        beside(
            "Distance of -∇L0(θ*) from the gradient of the penalty",
            [
                (f"{kind}, {order}, C = {c:g}", None, residual[k, o, t])
                for k, kind in enumerate(PENALTIES)
                for o, order in enumerate(ORDERS)
                for t, c in enumerate(thresholds)
            ],
        ),
    ]
    figure = plot_lines(
        {arm: radius[k] for k, arm in enumerate(ARMS)},
        x_label="step",
        y_label="spectral radius of W",
        title="Weight decay and the spectral radius",
        is_log=(False, True),
        level=1.0,
    )
    holds = residual.max(axis=3) < 1e-2
    broken = [
        f"{kind}, {order}, C = {c:g}"
        for k, kind in enumerate(PENALTIES)
        for o, order in enumerate(ORDERS)
        for t, c in enumerate(thresholds)
        if not holds[k, o, t]
    ]
    return Report(
        tables,
        [
            "Decay alone multiplies every eigenvalue by 1 - ηλ per step, whether or "
            "not W is symmetric. A clip of the decay slows it, and a data gradient "
            "may hold the spectral radius above 1.",
            "The end satisfies ∇L0(θ*) = -λθ*, or -λ·sign(θ*) for L1, except for: "
            f"{'; '.join(broken) or 'none'}. A clip before the penalty moves it where "
            "it still binds there; a clip after the penalty does not.",
        ],
        figure,
    )
