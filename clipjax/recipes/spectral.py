"""Clips of the singular values of matrices."""

from __future__ import annotations

from .. import rules
from ..core.clip import Clip
from ..core.meshes import AxisNames
from ..granularity import Stacked
from ..spectral import SVD, NewtonSchulz, PowerIteration, clip_singular_values
from ..thresholds.given import ThresholdLike


def spectral_clip(
    threshold: ThresholdLike = 1.0,
    *,
    stacked: Stacked = None,
    iterations: int | None = None,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Scale each matrix to a maximum spectral norm.

    .. math:: u_l = g_l \min(1, c_l / \sigma_1(g_l))

    Coordinates: ``spectral(power-iteration) × hard × constant``

    All singular values shrink by one factor, so that the direction of each leaf is
    kept; `spectral_clamp` shortens only those that are too large. A leaf of shape
    ``(…, columns)`` is the matrix ``(rest, columns)``, which for a convolution is
    ``(height · width · in, out)``; the singular value of a vector is its l2 norm.

    Power iteration underestimates σ₁, and the result is too long by the same relative
    error. For a Gaussian 1024 × 1024 matrix, whose largest singular values are very
    close to each other, the error is 1 to 3 % after the default of 16 steps, by the
    matrix, and 0 to 1.3 % after 64.

    | input | result |
    |---|---|
    | the measured σ₁ ≤ threshold | that leaf bit-identical |
    | the measured σ₁ > threshold | the same measurement of the result is the
      threshold |
    | NaN or inf in a leaf | NaN in that leaf only, counted as non-finite |
    | all else | as `clipjax.spectral.clip_singular_values` guarantees |

    Args:
        threshold: the largest singular value allowed, in the gradient's units: one for
            all leaves, or a prefix tree, with None for no clip; an array, a schedule or
            a `clipjax.thresholds.Threshold`.
        stacked: leading axes that stack separate layers; see
            `clipjax.granularity.leaf`.
        iterations: steps of power iteration, each two products with the leaf; None for
            16. The default is not a number, which ``optax.inject_hyperparams`` would
            trace.
        axis_name: () inside ``pmap``, where every device holds whole matrices; see
            `clipjax.clip_by`. Matrices that are split cannot be clipped there.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: an argument is not a number.
        ValueError: a threshold is negative or NaN, or iterations is below 1.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> from clipjax.recipes.spectral import spectral_clip
        >>> grads = jnp.diag(jnp.array([4.0, 1.0]))
        >>> updates, _ = spectral_clip(1.0).update(grads, None)
        >>> print(jnp.diag(updates))
        [1.   0.25]

    References:
        Miyato et al., `Spectral normalization for generative adversarial networks
        <https://arxiv.org/abs/1802.05957>`_, 2018, for the power iteration
    """
    return clip_singular_values(
        threshold,
        method=PowerIteration() if iterations is None else PowerIteration(iterations),
        stacked=stacked,
        axis_name=axis_name,
        name=name,
    )


def spectral_clamp(
    threshold: ThresholdLike = 1.0,
    *,
    stacked: Stacked = None,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip each singular value of each matrix to a threshold.

    .. math:: u_l = U \operatorname{diag}(\min(\sigma_i, c_l)) V^\top,
        \qquad g_l = U \operatorname{diag}(\sigma_i) V^\top

    Coordinates: ``spectral(svd) × hard × constant``

    The result is the nearest matrix within the spectral ball. Components along small
    singular directions are unchanged, and large ones are cut. The clip needs an SVD of
    each leaf; a leaf that is split over devices is gathered for it. Leaves are reshaped
    to matrices as in `spectral_clip`. With JAX 0.10 on CPUs, several batches of SVDs at
    a time can wait for each other without end, by ``stacked`` or in ``vmap``: the page
    "Sharp edges" has the setting that prevents it.

    | input | result |
    |---|---|
    | σ₁ ≤ threshold | that leaf bit-identical |
    | σ₁ > threshold | σ₁ = threshold to 1e-5 in float32; the vectors are kept |
    | σ₁ > threshold, in bfloat16 | the same, rounded once |
    | NaN or inf in a leaf | NaN in that leaf only, counted as non-finite |
    | derivative where singular values are equal | undefined: may be NaN |
    | a leaf split by ``shard_map`` or ``pmap`` | ValueError: gather it first |
    | all else | as `clipjax.spectral.clip_singular_values` guarantees |

    Args:
        threshold: the largest singular value allowed, in the gradient's units: one for
            all leaves, or a prefix tree, with None for no clip; an array, a schedule or
            a `clipjax.thresholds.Threshold`, which learns from σ₁ of each leaf.
        stacked: leading axes that stack separate layers; see
            `clipjax.granularity.leaf`.
        axis_name: () inside ``pmap``, where every device holds whole matrices; see
            `clipjax.clip_by`. Matrices that are split cannot be clipped there.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``; its state has σ₁ before and after.

    Raises:
        TypeError: a threshold is a bool, a string, or another value that is not a
            threshold.
        ValueError: a threshold is negative or NaN.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> from clipjax.recipes.spectral import spectral_clamp
        >>> grads = jnp.array([[4.0, 0.0], [0.0, 0.5]])
        >>> updates, state = spectral_clamp(1.0).update(grads, None)
        >>> print(jnp.diag(updates), state.clip_info.norm_before)
        [1.  0.5] 4.0

    References:
        Yukhimchuk, Kolar, Takáč, Choudhury, `Gradient clipping beyond vector norms: a
        spectral approach for matrix-valued parameters
        <https://arxiv.org/abs/2605.11838>`_, 2026
    """
    return clip_singular_values(
        threshold,
        method=SVD(),
        stacked=stacked,
        axis_name=axis_name,
        name=name,
    )


def spectral_soft_clip(
    threshold: ThresholdLike = 1.0,
    *,
    stacked: Stacked = None,
    iterations: int | None = None,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Bound the singular values of each matrix smoothly, as SPECTRA does.

    .. math:: u_l = (I + g_l g_l^\top / c_l^2)^{-1/2} g_l, \qquad
        \sigma_i \mapsto \sigma_i / \sqrt{1 + \sigma_i^2 / c_l^2}

    Coordinates: ``spectral(newton-schulz) × sqrt × constant``

    A Newton-Schulz iteration computes the result by matrix products alone, in float32
    or wider. No singular value of the result is larger than the formula's. Each may
    be smaller, by a relative error of at most

    | B/c | 6 steps | 8 | 10 | 12 | 14 |
    |---|---|---|---|---|---|
    | 10 | 2e-10 | 0 | 0 | 0 | 0 |
    | 100 | 0.04 | 1e-7 | 0 | 0 | 0 |
    | 1000 | 0.7 | 0.1 | 7e-6 | 0 | 0 |
    | 3000 | 0.9 | 0.5 | 8e-3 | 2e-10 | 0 |
    | 10000 | 1 | 0.8 | 0.2 | 2e-4 | 0 |

    where :math:`B = \lVert g g^\top \rVert_F^{1/2}` is at least σ₁ and at most its
    product with the fourth root of the rank. Rounding in float32 adds an error of about
    c · (1e-6 + 1e-7 · σ₁/c), like that of an SVD. The norms in the state are measured
    as in `spectral_clip`, with the same error.

    The reference clips the update of an optimizer, with c = 10, and multiplies it by
    √max(1, rows/columns) afterwards: put the clip between the optimizer's scaling and
    weight decay. During the warm-up it keeps the product of c and the learning rate
    constant; so does the example, whose schedule has no decay. It differs from this
    function in three ways: it iterates 10 times in bfloat16; it bounds the spectra of
    all slices of a stack by one number; and it leaves vectors up to the norm c
    unchanged, but shortens those just above it to c/√2.

    | input | result |
    |---|---|
    | any singular value σ > 0 | at most σ and at most c, to 1e-5 in float32 |
    | σ₁ ≤ 2e-4 · threshold, in float32 | bit-identical |
    | a vector of norm n | norm n / √(1 + n²/c²) |
    | equal singular values | the derivative is correct there, too |
    | a leaf split by ``shard_map`` or ``pmap`` | ValueError: gather it first |
    | NaN or inf in a leaf | NaN in that leaf only, counted as non-finite |
    | all else | as `clipjax.spectral.clip_singular_values` guarantees |

    Args:
        threshold: the bound c, in the units of the clipped updates: one for all leaves,
            or a prefix tree, with None for no clip; an array, a schedule or a
            `clipjax.thresholds.Threshold`.
        stacked: leading axes that stack separate layers; see
            `clipjax.granularity.leaf`.
        iterations: steps of the iteration, each two products with the leaf and two as
            large as its smaller side squared; None for 12. The default is not a number,
            which ``optax.inject_hyperparams`` would trace. To use an SVD instead, call
            `clipjax.clip_singular_values` with ``method=SVD(), rule=rules.sqrt``.
        axis_name: () inside ``pmap``, where every device holds whole matrices; see
            `clipjax.clip_by`. Matrices that are split cannot be clipped there.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: an argument is not a number.
        ValueError: a threshold is negative or NaN, or iterations is below 1.

    Example:
        >>> import clipjax, jax.numpy as jnp, optax
        >>> from clipjax.recipes.spectral import spectral_soft_clip
        >>> warmup = optax.linear_schedule(0.0, 0.01, transition_steps=100)
        >>> c = clipjax.thresholds.relative_to_learning_rate(10 * 0.01, warmup)
        >>> optimizer = optax.chain(
        ...     optax.scale_by_adam(),
        ...     spectral_soft_clip(c),
        ...     optax.add_decayed_weights(0.1),
        ...     optax.scale_by_learning_rate(warmup),
        ... )
        >>> grads = jnp.diag(jnp.array([4.0, 3.0]))
        >>> updates, _ = spectral_soft_clip(3.0).update(grads, None)
        >>> print(*(f"{length:.4f}" for length in jnp.diag(updates)))  # 12/5, 3/√2
        2.4000 2.1213

    References:
        Jiang, Semenov, Stich, `Enhancing LLM training via spectral clipping
        <https://arxiv.org/abs/2603.14315>`_, 2026 (SPECTRA)
    """
    return clip_singular_values(
        threshold,
        method=NewtonSchulz() if iterations is None else NewtonSchulz(iterations),
        rule=rules.sqrt,
        stacked=stacked,
        axis_name=axis_name,
        name=name,
    )
