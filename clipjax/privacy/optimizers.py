"""Optimizers for differentially private training, as Optax chains."""

from __future__ import annotations

import jax
import optax

from ..core.checks import Scalar
from ..core.meshes import AxisNames
from .noise import gaussian_noise


def dp_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    sensitivity: Scalar,
    noise_multiplier: Scalar,
    key: jax.Array,
    momentum: float | None = None,
    nesterov: bool = False,
    steps: int | None = None,
    axis_name: AxisNames = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Take steps of DP-SGD from sums of gradients that were clipped per example.

    .. math:: \theta_{t+1} = \theta_t - \eta \, (s_t + \sigma \Delta z_t),
        \qquad z_t \sim \mathcal{N}(0, I)

    It is ``optax.chain(gaussian_noise(...), optax.sgd(...))``: see
    `clipjax.privacy.gaussian_noise` for the noise, its edge cases and its guarantee.
    The optimizer alone is not private: the sum must come from `clipjax.clipped_grad`,
    the batches from Poisson sampling, and the noise multiplier from an accountant. The
    optimizer cannot distinguish a clipped sum from the gradient of ``jax.grad``, for
    which there is no guarantee.

    Args:
        learning_rate: a number or a schedule. ``optax.inject_hyperparams`` needs
            ``static_args=("key", "steps")``.
        sensitivity: ``clipped_grad(...).sensitivity(neighboring_relation)``.
        noise_multiplier: the noise's standard deviation in units of the sensitivity.
        key: a key from `jax.random.key`, used for nothing else.
        momentum: see ``optax.sgd``.
        nesterov: see ``optax.sgd``.
        steps: the number of updates that the guarantee was computed for; from then on
            the sum is not looked at, and momentum alone moves the parameters.
        axis_name: see `clipjax.privacy.gaussian_noise`.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax, jax, jax.numpy as jnp
        >>> from clipjax import privacy
        >>> grad = clipjax.clipped_grad(
        ...     lambda w, x: jnp.sum((w - x) ** 2), l2_clip_norm=1.0, normalize_by=100.0
        ... )
        >>> optimizer = privacy.dp_sgd(
        ...     0.1,
        ...     sensitivity=grad.sensitivity("ADD_OR_REMOVE_ONE"),
        ...     noise_multiplier=1.0,
        ...     key=jax.random.key(0),
        ... )
        >>> w = jnp.zeros(2)
        >>> state = optimizer.init(w)
        >>> updates, state = optimizer.update(grad(w, jnp.ones((100, 2))), state, w)
        >>> print(jnp.round(updates, 2))
        [0.07 0.07]

    References:
        Abadi et al., `Deep learning with differential privacy
        <https://arxiv.org/abs/1607.00133>`_, 2016, algorithm 1.
    """
    return optax.chain(
        gaussian_noise(
            sensitivity, noise_multiplier, key, steps=steps, axis_name=axis_name
        ),
        optax.sgd(learning_rate, momentum, nesterov),
    )


def dp_adam(
    learning_rate: optax.ScalarOrSchedule,
    *,
    sensitivity: Scalar,
    noise_multiplier: Scalar,
    key: jax.Array,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    steps: int | None = None,
    axis_name: AxisNames = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Take steps of Adam from noisy sums of gradients clipped per example.

    It is ``optax.chain(gaussian_noise(...), optax.adamw(...))``; see `dp_sgd` for the
    conditions of privacy. Both moments are those of noisy gradients: the second
    contains the noise's variance, (σΔ)², which dominates for entries of the sum that
    are smaller than the noise. Steps are then approximately those of momentum.

    Args:
        learning_rate: a number or a schedule.
        sensitivity: ``clipped_grad(...).sensitivity(neighboring_relation)``.
        noise_multiplier: the noise's standard deviation in units of the sensitivity.
        key: a key from `jax.random.key`, used for nothing else.
        b1: see ``optax.adamw``.
        b2: see ``optax.adamw``.
        eps: see ``optax.adamw``.
        weight_decay: see ``optax.adamw``; 0 is Adam. It needs params in update.
        steps: the number of updates that the guarantee was computed for; from then on
            the sum is not looked at, and the moments alone move the parameters.
        axis_name: see `clipjax.privacy.gaussian_noise`.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from clipjax import privacy
        >>> optimizer = privacy.dp_adam(
        ...     1e-3, sensitivity=1.0, noise_multiplier=1.0, key=jax.random.key(0)
        ... )
        >>> params = {"w": jnp.zeros(3)}
        >>> state = optimizer.init(params)
        >>> clipped_sum = {"w": jnp.array([0.5, -0.5, 0.0])}
        >>> updates, state = optimizer.update(clipped_sum, state, params)

    References:
        Kingma and Ba, `Adam <https://arxiv.org/abs/1412.6980>`_, 2015, on the gradients
        of Abadi et al., `Deep learning with differential privacy
        <https://arxiv.org/abs/1607.00133>`_, 2016.
    """
    rest = (
        optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay)
        if weight_decay
        else optax.adam(learning_rate, b1, b2, eps)
    )
    return optax.chain(
        gaussian_noise(
            sensitivity, noise_multiplier, key, steps=steps, axis_name=axis_name
        ),
        rest,
    )
