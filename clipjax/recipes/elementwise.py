"""Clips of single entries, and of the whole tree by a rule that keeps a fraction."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import DTypeLike

from .. import rules, thresholds
from ..core.checks import Scalar, require_fraction
from ..core.clip import Clip, clip_by
from ..core.entries import clip_entries
from ..core.meshes import AxisNames
from ..thresholds.given import ThresholdLike, as_threshold


def cclip(
    tau: ThresholdLike = 1.0,
    *,
    report: bool = True,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip every entry to its own threshold (CClip).

    .. math:: u_i = g_i \min(1, \tau_i / \lvert g_i \rvert)

    Coordinates: ``entry × hard × constant``

    This is `clip_by_value` with a tree of thresholds, under the name of the paper,
    which proves convergence under heavy-tailed noise. (*Centered* clipping, a different
    method, has the same short name.)

    | input | result |
    |---|---|
    | \|g\| ≤ τ | bit-identical |
    | ±inf | ±τ; counted as non-finite |
    | NaN | NaN, in that entry only |
    | all else | as `clipjax.clip_entries` guarantees |

    Args:
        tau: τ, the largest magnitude of an entry, in the gradient's units: one for all,
            or a prefix tree of numbers or arrays.
        report: whether to measure the effect of the clip; see `clipjax.clip_entries`.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: tau is not a threshold.
        ValueError: tau is negative or NaN.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.cclip({"w": jnp.array([1.0, 5.0])})
        >>> updates, _ = clip.update({"w": jnp.array([3.0, -3.0])}, None)
        >>> print(updates["w"])
        [ 1. -3.]

    References:
        Zhang, Karimireddy, Veit, Kim, Reddi, Kumar, Sra, `Why are adaptive methods good
        for attention models? <https://arxiv.org/abs/1912.03194>`_, 2020, algorithm 1
    """
    source = as_threshold(tau, "tau")
    return clip_entries(source, report=report, axis_name=axis_name, name=name)


def two_sided_clip(
    lower: float = 1e-4,
    upper: float = 1.0,
    *,
    report: bool = True,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip the magnitude of every nonzero entry to an interval (Bi²Clip).

    .. math::
        u_i = \operatorname{sign}(g_i) \operatorname{clip}(\lvert g_i \rvert, l, c)

    Coordinates: ``entry × band(lower=0.0001) × constant``

    | input | result |
    |---|---|
    | l ≤ \|g\| ≤ c | bit-identical |
    | 0 < \|g\| < l | magnitude l |
    | 0 | 0 |
    | ±inf | ±c; counted as non-finite |
    | NaN | NaN, in that entry only |
    | all else | as `clipjax.clip_entries` guarantees |

    Args:
        lower: l, in the gradient's units, from 0 to upper.
        upper: c, a number above 0.
        report: whether to measure the effect of the clip; see `clipjax.clip_entries`.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.two_sided_clip(0.1, 1.0)
        >>> clip
        clip_entries(band(lower=0.1) × constant(1))
        >>> updates, _ = clip.update(jnp.array([3.0, -0.01, 0.0]), None)
        >>> print(updates)
        [ 1.  -0.1  0. ]

    References:
        Lee, Zaheer, Li, `TailOPT <https://arxiv.org/abs/2502.04164>`_, 2025
    """
    for argument, value in [("lower", lower), ("upper", upper)]:
        if isinstance(value, bool) or not isinstance(value, int | float):
            hint = "; with optax.inject_hyperparams, name it in static_args"
            raise TypeError(f"{argument} must be a Python number{hint}, got {value!r}")
    if not 0 <= lower <= upper or upper == 0:
        raise ValueError(
            f"lower and upper must be 0 <= lower <= upper, with upper above 0, got "
            f"{lower!r} and {upper!r}"
        )
    rule = rules.band(lower / upper)
    return clip_entries(upper, rule=rule, report=report, axis_name=axis_name, name=name)


def delta_clip(
    max_norm: ThresholdLike = 1.0,
    delta: float | None = None,
    *,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip the whole tree, but keep at least a fraction of any norm (δ-GClip).

    .. math:: u = g \min(1, \max(\delta, \gamma / \lVert g \rVert))

    Coordinates: ``whole × l2 × floored(fraction=0.001) × constant``

    The step of gradient descent stays between ηδ and η, with which the paper proves
    convergence for wide networks. Very large gradients are not bounded.

    | input | result |
    |---|---|
    | norm ≤ γ | bit-identical |
    | γ < norm ≤ γ / δ | norm γ |
    | norm > γ / δ | δ times the norm |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        max_norm: γ, in the gradient's units: a number, an array, a schedule or a
            `clipjax.thresholds.Threshold`.
        delta: δ, from 0 (the hard clip) to 1 (no clip); None for 0.001.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.delta_clip(1.0, delta=0.5)
        >>> updates, _ = clip.update(jnp.array([6.0, 8.0]), None)
        >>> print(updates)
        [3. 4.]

    References:
        Tucat, Mukherjee, Sen, Sun, Rivasplata, `Regularized gradient clipping provably
        trains wide and deep neural networks <https://arxiv.org/abs/2404.08624>`_, 2025
    """
    delta = 1e-3 if delta is None else delta
    require_fraction("delta", delta)
    rule = rules.floored(delta)
    source = as_threshold(max_norm, "max_norm")
    return clip_by(source, rule=rule, axis_name=axis_name, name=name)


def quantization_clip(
    dtype: DTypeLike = jnp.int8,
    steps: Scalar = 4.0,
    *,
    report: bool = True,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip outliers so that a quantizer to a narrow format resolves the other entries.

    .. math::
        u_i = g_i \min\Bigl(1, \frac{c_l}{\lvert g_i \rvert}\Bigr), \qquad
        c_l = \frac{m_l}{k} \cdot \frac{q_\text{max}}{q_\text{min}}, \quad
        m_l = \exp \operatorname{mean} \log \lvert g \rvert

    Coordinates: ``entry × hard × quantization-range``

    A quantizer that maps the largest entry of a leaf to the largest number of its
    format rounds smaller entries to zero: those below 1/254 of the largest for int8,
    and below 1/458,752 for float8_e4m3fn. This clip cuts the largest entries only as
    far as necessary for typical entries to be k steps away from zero. With 8 bits it
    does not change Gaussian entries.

    The clip preserves the many small entries at the expense of the few largest, which
    carry most of the norm: compare both with `clipjax.quantization_report`, before and
    after. The range is clipjax's own choice; the references define the formats and the
    quantizer.

    | input | result |
    |---|---|
    | no entry above c | bit-identical |
    | an outlier above 31.75 m, with int8 and k = 4 | cut to 31.75 m |
    | a leaf of zeros | zeros |
    | ±inf | ±c (±inf if the leaf has no finite entry); counted as non-finite |
    | NaN | NaN, in that entry only |
    | all else | as `clipjax.clip_entries` guarantees |

    Args:
        dtype: the format to quantize to: a signed integer or floating dtype of at most
            16 bits. The result keeps the gradient's own dtype.
        steps: k, the distance of the geometric mean of a leaf's entries from zero, in
            units of the smallest positive number of the format; above 0.
        report: whether to measure the effect of the clip; see `clipjax.clip_entries`.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: dtype is not such a format, or steps is not a number.
        ValueError: steps is not above 0, or infinite.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.quantization_clip(jnp.int8)
        >>> grads = jnp.append(jnp.full(999, 0.1), 1000.0)
        >>> updates, _ = clip.update(grads, None)
        >>> print(f"{updates[0]:.1f} {updates[-1]:.1f}")
        0.1 3.2

    References:
        Krishnamoorthi, `Quantizing deep convolutional networks for efficient inference
        <https://arxiv.org/abs/1806.08342>`_, 2018; Micikevicius et al., `FP8 formats
        for deep learning <https://arxiv.org/abs/2209.05433>`_, 2022
    """
    source = thresholds.quantization_range(dtype, steps)
    return clip_entries(source, report=report, axis_name=axis_name, name=name)
