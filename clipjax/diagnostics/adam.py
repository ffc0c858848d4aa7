"""Adam's second moments and effective step sizes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ..core.checks import Scalar, require_fraction, require_number
from ..core.dtypes import widen
from ..core.trees import Leaves


class AdamLeaf(NamedTuple):
    """Adam's scale for one leaf; see `adam_report`.

    Attributes:
        root_mean_v: the root of the mean of v̂, in the gradient's units.
        least_step: the smallest effective step size of the leaf's entries.
        median_step: their median.
        largest_step: the largest.
    """

    root_mean_v: Float[Array, ""]
    least_step: Float[Array, ""]
    median_step: Float[Array, ""]
    largest_step: Float[Array, ""]


class AdamTrace(NamedTuple):
    """Adam along a sequence of gradients; see `adam_trace`.

    Attributes:
        second_moment: v̂ after each step, of the shape of the gradients.
        effective_step: η / (√v̂ + ε), the change of a parameter per unit of momentum.
        update: the change of the parameters, -η·m̂ / (√v̂ + ε).
    """

    second_moment: Float[Array, " steps *entries"]
    effective_step: Float[Array, " steps *entries"]
    update: Float[Array, " steps *entries"]


def adam_report(
    opt_state: Any,
    learning_rate: Scalar = 1.0,
    *,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
) -> dict[str, AdamLeaf]:
    r"""Return Adam's second moments and effective step sizes, leaf by leaf.

    .. math:: \hat v = \frac{v}{1 - \beta_2^t}, \qquad
        \text{step} = \frac{\eta}{\sqrt{\hat v + \varepsilon_r} + \varepsilon}

    A spike in the gradient stays in v̂ for about :math:`1 / (1 - \beta_2)` steps, and
    the effective step is small for that long. A clip in front of Adam bounds the
    gradients that enter v̂.

    It finds the state of ``optax.scale_by_adam`` in any optimizer state: inside
    ``chain``, ``masked``, ``partition``, ``MultiSteps``, ``inject_hyperparams`` and
    clipjax's wrappers, in an ``nnx.Optimizer`` and in a ``TrainState``. It works under
    ``jit``.

    | optimizer state | result |
    |---|---|
    | of ``adam``, ``adamw``, ``nadam``, ``lamb``, ``radam`` | as above |
    | of ``adamax``, which keeps a maximum in ``nu`` | not meaningful |
    | before the first step | v̂ is 0, and steps are η / (√ε_r + ε) |
    | several Adam states, as of ``partition`` | their leaves together |

    Args:
        opt_state: an optimizer state, or an object with an ``opt_state``.
        learning_rate: the learning rate η; 1 for steps relative to it.
        b2: the decay β₂ that the optimizer was built with, below 1.
        eps: the ε of the optimizer.
        eps_root: the ε of the optimizer under the root, :math:`\varepsilon_r`.

    Returns:
        A dictionary from the leaf's path to an `AdamLeaf` of scalars, float32, or
        float64 for leaves of that dtype.

    Raises:
        TypeError: an argument is not a number.
        ValueError: there is no Adam state, or a leaf is in two; or an argument is out
            of range.

    Example:
        >>> import clipjax, jax.numpy as jnp, optax
        >>> optimizer = optax.chain(clipjax.clip_by_global_norm(1.0), optax.adam(0.1))
        >>> params = {"w": jnp.zeros(2)}
        >>> grads = {"w": jnp.array([0.6, 0.8])}
        >>> _, state = optimizer.update(grads, optimizer.init(params))
        >>> report = clipjax.diagnostics.adam_report(state, learning_rate=0.1)["w"]
        >>> print(f"{report.least_step:.4f} {report.largest_step:.4f}")
        0.1250 0.1667

    References:
        Kingma, Ba, `Adam: a method for stochastic optimization
        <https://arxiv.org/abs/1412.6980>`_, 2015
    """
    _require_settings(learning_rate, b2, eps, eps_root)
    states = _adam_states(getattr(opt_state, "opt_state", opt_state))
    if not states:
        raise ValueError(
            "opt_state must hold the state of optax.scale_by_adam, as that of "
            "optax.adam or optax.adamw does, and has none"
        )
    report: dict[str, AdamLeaf] = {}
    for state in states:
        leaves = Leaves.of(state.nu)
        for name, nu in zip(leaves.names, leaves.arrays, strict=True):
            if name in report:
                raise ValueError(
                    f"opt_state has several Adam states for {name!r}: pass one of them"
                )
            wide = widen(nu, Leaves.of(nu).dtype)
            moment = _corrected(wide, state.count, b2)
            steps = _effective(moment, learning_rate, eps, eps_root)
            report[name] = AdamLeaf(
                jnp.sqrt(jnp.mean(moment)),
                jnp.min(steps),
                jnp.median(steps),
                jnp.max(steps),
            )
    return report


def adam_trace(
    gradients: jax.Array,
    clip: optax.GradientTransformation | None = None,
    *,
    learning_rate: Scalar = 1.0,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
) -> AdamTrace:
    """Run Adam over a given sequence of gradients, with or without a clip before it.

    The result shows for how long a spike shortens the steps of Adam, and the effect of
    a clip on that. The gradients do not depend on the updates.

    Args:
        gradients: the gradients, shape ``(steps, *entries)``; at each step the clip
            sees ``entries`` as one leaf.
        clip: the transformation in front of Adam; None for none.
        learning_rate: the learning rate η; 1 for updates relative to it.
        b1: the decay of the first moment, below 1.
        b2: the decay of the second moment, below 1.
        eps: the term added to √v̂.

    Returns:
        An `AdamTrace` of arrays of the shape of the gradients, float32, or float64 if
        they are.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: gradients have no axis of steps, or a number is out of range.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> gradients = jnp.ones(200).at[100].set(1000.0)
        >>> for clip in (None, clipjax.clip_by_global_norm(2.0)):
        ...     trace = clipjax.diagnostics.adam_trace(gradients, clip)
        ...     print(f"{trace.effective_step[199]:.3f}")
        0.014
        0.993
    """
    _require_settings(learning_rate, b2, eps, 0.0)
    require_fraction("b1", b1)
    if not jnp.ndim(gradients):
        raise ValueError("gradients must have shape (steps, *entries), got a scalar")
    gradients = jnp.asarray(gradients)
    gradients = widen(gradients, Leaves.of(gradients).dtype)
    adam = optax.scale_by_adam(b1, b2, eps)
    before = optax.identity() if clip is None else clip
    rate = jnp.asarray(learning_rate, gradients.dtype)

    def step(state: Any, gradient: jax.Array) -> tuple[Any, AdamTrace]:
        clipped, before_state = before.update(gradient, state[0])
        direction: Any
        adam_state: Any
        direction, adam_state = adam.update(clipped, state[1])
        moment = _corrected(adam_state.nu, adam_state.count, b2)
        steps = _effective(moment, learning_rate, eps, 0.0)
        return (before_state, adam_state), AdamTrace(moment, steps, -rate * direction)

    zeros = jnp.zeros_like(gradients[0])
    first = (before.init(zeros), adam.init(zeros))
    return jax.lax.scan(step, first, gradients)[1]


def _require_settings(learning_rate: Any, b2: Any, eps: Any, eps_root: Any) -> None:
    require_number("learning_rate", learning_rate, infinite=False)
    require_fraction("b2", b2)
    require_number("eps", eps, infinite=False)
    require_number("eps_root", eps_root, infinite=False)


def _adam_states(opt_state: Any) -> list[Any]:
    """Return the states of ``scale_by_adam`` in an optimizer state."""
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)  # noqa: E731
    return list(filter(is_adam, jax.tree.leaves(opt_state, is_leaf=is_adam)))


def _corrected(moment: jax.Array, count: Any, b2: Any) -> jax.Array:
    """Return v̂; 0 before the first step."""
    b2 = jnp.asarray(b2, moment.dtype)
    share = 1 - b2 ** jnp.asarray(count).astype(moment.dtype)
    return moment / jnp.where(share > 0, share, 1)


def _effective(moment: jax.Array, rate: Any, eps: Any, eps_root: Any) -> jax.Array:
    rate, eps, eps_root = (
        jnp.asarray(number, moment.dtype) for number in (rate, eps, eps_root)
    )
    return rate / (jnp.sqrt(moment + eps_root) + eps)
