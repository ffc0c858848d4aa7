"""The classic clips: hard, with a given threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from .. import granularity, norms, rules
from ..core.checks import Scalar
from ..core.clip import Clip, clip_by
from ..core.entries import clip_entries
from ..core.meshes import AxisNames
from ..granularity import Labels, Stacked
from ..thresholds.given import ThresholdLike, as_threshold


def clip_by_value(
    max_delta: ThresholdLike,
    *,
    report: bool = True,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip every entry to ``[-max_delta, max_delta]``.

    .. math:: u_i = \operatorname{clip}(g_i, -c, c)

    Coordinates: ``entry × hard × constant``

    A drop-in replacement for ``optax.clip``. Unlike a clip by norm it may change the
    direction of the update. Complex entries keep their phase. The report takes four
    further reads of a float32 gradient; ``report=False`` costs as much as
    ``optax.clip``.

    | input | result |
    |---|---|
    | entries within the bounds | bit-identical |
    | ±inf | ±max_delta; counted as non-finite |
    | NaN | NaN, in that entry only |
    | max_delta 0 | exact zeros |
    | max_delta inf | bit-identical |
    | all else | as `clipjax.clip_entries` guarantees |

    Args:
        max_delta: the largest magnitude allowed, in the gradient's units: a number, an
            array, a schedule, a `clipjax.thresholds.Threshold` or a prefix tree.
        report: whether to measure the effect of the clip; see `clipjax.clip_entries`.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: max_delta is a bool, a string, or another value that is not a
            threshold.
        ValueError: max_delta is negative or NaN.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.clip_by_value(1.0)
        >>> updates, _ = clip.update(jnp.array([3.0, -0.5]), None)
        >>> print(updates)
        [ 1.  -0.5]

    References:
        Graves, `Generating sequences with recurrent neural networks
        <https://arxiv.org/abs/1308.0850>`_, 2013
    """
    source = as_threshold(max_delta, "max_delta")
    return clip_entries(source, report=report, axis_name=axis_name, name=name)


def clip_by_global_norm(
    max_norm: ThresholdLike, *, axis_name: AxisNames = None, name: str = "clip"
) -> Clip:
    r"""Clip the whole tree to a maximum L2 norm, keeping its direction.

    .. math:: u = g \min(1, c / \lVert g \rVert_2)

    Coordinates: ``whole × l2 × hard × constant``

    A drop-in replacement for ``optax.clip_by_global_norm``, within a few ulps of it on
    finite float32 gradients whose sum of squares Optax can represent.

    | input | result |
    |---|---|
    | norm ≤ max_norm | bit-identical |
    | norm > max_norm | norm ≤ max_norm, to two ulps of the leaf's dtype |
    | any NaN or inf | NaN everywhere, counted as non-finite |
    | max_norm 0 | exact zeros, also for a zero gradient |
    | max_norm inf | bit-identical; the norm is still measured |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        max_norm: the largest norm allowed, in the gradient's units: a number, an array,
            a schedule or a `clipjax.thresholds.Threshold`.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs`` whose state holds scalars only.

    Raises:
        TypeError: max_norm is a bool, a string, or another value that is not a
            threshold.
        ValueError: max_norm is negative or NaN.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.clip_by_global_norm(1.0)
        >>> updates, state = clip.update({"w": jnp.array([3.0, 4.0])}, None)
        >>> print(updates["w"], state.clip_info.norm_before)
        [0.6 0.8] 5.0

    References:
        Pascanu, Mikolov, Bengio, `On the difficulty of training recurrent neural
        networks <https://arxiv.org/abs/1211.5063>`_, 2013
    """
    source = as_threshold(max_norm, "max_norm")
    return clip_by(source, axis_name=axis_name, name=name)


def clip_by_leaf_norm(
    max_norm: ThresholdLike,
    *,
    stacked: Stacked = None,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip each leaf to its own maximum L2 norm.

    .. math:: u_l = g_l \min(1, c_l / \lVert g_l \rVert_2)

    Coordinates: ``leaf × l2 × hard × constant``

    The result's global norm is at most :math:`\sqrt{\sum_l c_l^2}`. The direction of
    each leaf is kept, that of the whole tree is not.

    | input | result |
    |---|---|
    | a leaf's norm ≤ its threshold | that leaf bit-identical |
    | a threshold None or inf | that leaf bit-identical |
    | NaN or inf in a leaf | NaN in that leaf only, counted as non-finite |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        max_norm: the largest norm of a leaf, in the gradient's units: one for all, or a
            prefix tree of thresholds, with None or inf for "not clipped".
        stacked: leading axes that stack separate layers: a number, a function of (path,
            leaf), or a table from path pattern to number; see
            `clipjax.granularity.leaf`.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: a threshold is a bool, a string, or another value that is not a
            threshold.
        ValueError: a threshold is negative or NaN; or, when traced, the table does
            not fit the tree.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.clip_by_leaf_norm({"w": 1.0, "b": None})
        >>> grads = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([7.0])}
        >>> updates, _ = clip.update(grads, None)
        >>> print(updates["w"], updates["b"])
        [0.6 0.8] [7.]

    References:
        McMahan et al., `Learning differentially private recurrent language models
        <https://arxiv.org/abs/1710.06963>`_, 2018, for thresholds per layer
    """
    return clip_by(
        as_threshold(max_norm, "max_norm"),
        granularity=granularity.leaf(stacked),
        axis_name=axis_name,
        name=name,
    )


def clip_by_group_norm(
    labels: Labels,
    max_norms: Mapping[str, Scalar | None],
    *,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip each group of leaves to its own maximum L2 norm.

    .. math::
        u_k = g_k \min(1, c_k / n_k), \qquad
        n_k = \Bigl(\sum_{l \in k} \lVert g_l \rVert_2^2\Bigr)^{1/2}

    Coordinates: ``group × l2 × hard × constant``

    | input | result |
    |---|---|
    | a group's norm ≤ its threshold | that group bit-identical |
    | a threshold None or inf | that group bit-identical |
    | NaN or inf in a group | NaN in that group only, counted as non-finite |
    | a label without a threshold | ValueError when traced |
    | a threshold whose label no leaf has | ValueError when traced |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        labels: a prefix tree of strings; a function of (path, leaf) to a string, where
            a path reads ``encoder/0/kernel``; or a function of the tree to such a
            prefix tree.
        max_norms: the largest norm of each group, by label; None for no clip.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: max_norms is not a dictionary, or a threshold in it is not a number.
        ValueError: a threshold is negative or NaN; or, when traced, a label has none.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.clip_by_group_norm(
        ...     lambda path, leaf: path.split("/")[0], {"body": 1.0, "head": None}
        ... )
        >>> grads = {"body": [jnp.array([3.0]), jnp.array([4.0])], "head": jnp.ones(2)}
        >>> updates, _ = clip.update(grads, None)
        >>> print(updates["body"], updates["head"])
        [Array([0.6], dtype=float32), Array([0.8], dtype=float32)] [1. 1.]

    References:
        McMahan et al., `Learning differentially private recurrent language models
        <https://arxiv.org/abs/1710.06963>`_, 2018, for thresholds per layer
    """
    if not isinstance(max_norms, Mapping):
        raise TypeError(
            f"max_norms must be a dictionary from label to number, got {max_norms!r}"
        )
    groups = granularity.group(labels, tuple(max_norms))
    source = as_threshold(dict(max_norms), "max_norms")
    return clip_by(source, granularity=groups, axis_name=axis_name, name=name)


def clip_by_block_rms(
    threshold: ThresholdLike, *, axis_name: AxisNames = None, name: str = "clip"
) -> Clip:
    r"""Clip each leaf to a maximum root mean square.

    .. math:: u_l = g_l / \max(1, \operatorname{RMS}(g_l) / d)

    Coordinates: ``leaf × rms × hard × constant``

    A drop-in replacement for ``optax.clip_by_block_rms``, within a few ulps of it on
    finite float32 gradients whose sum of squares Optax can represent. In Adafactor the
    clip comes after the preconditioner and before the learning rate.

    | input | result |
    |---|---|
    | a leaf's RMS ≤ threshold | that leaf bit-identical |
    | a leaf without entries | unchanged, RMS 0 |
    | NaN or inf in a leaf | NaN in that leaf only, counted as non-finite |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        threshold: the largest root mean square of a leaf, in the gradient's units;
            1.0 in Adafactor. One for all, or a prefix tree.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: a threshold is a bool, a string, or another value that is not a
            threshold.
        ValueError: a threshold is negative or NaN.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.clip_by_block_rms(1.0)
        >>> updates, _ = clip.update(jnp.array([2.0, 2.0, 2.0, 2.0]), None)
        >>> print(updates)
        [1. 1. 1. 1.]

    References:
        Shazeer, Stern, `Adafactor: adaptive learning rates with sublinear memory
        cost <https://arxiv.org/abs/1804.04235>`_, 2018, section 6
    """
    return clip_by(
        threshold,
        granularity=granularity.leaf(),
        norm=norms.rms,
        axis_name=axis_name,
        name=name,
    )


def torch_clip_grad_norm(
    max_norm: ThresholdLike,
    norm_type: float | Literal["inf"] | None = None,
    *,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip the whole tree as PyTorch's ``clip_grad_norm_`` does, for parity.

    .. math:: u = g \min(1, c / (\lVert g \rVert_p + 10^{-6}))

    Coordinates: ``whole × l2 × hard(epsilon=1e-06) × constant``

    The constant in the denominator makes the result a little shorter than
    ``max_norm``, shrinks gradients whose norm is just below it, and dominates for
    norms near 1e-6. Use `clip_by_global_norm` unless you need parity with PyTorch.

    | input | result |
    |---|---|
    | norm ≤ max_norm - 1e-6 | bit-identical |
    | norm > max_norm - 1e-6 | norm = max_norm · norm / (norm + 1e-6) |
    | max_norm negative | ValueError, where PyTorch flips the sign |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        max_norm: the largest norm allowed, in the gradient's units.
        norm_type: p, at least 1; ``inf``, or as for PyTorch the string ``"inf"``, for
            the largest magnitude; None for 2. The default is not a number, which
            ``optax.inject_hyperparams`` would trace.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs``.

    Raises:
        TypeError: an argument is not a number.
        ValueError: max_norm is negative or NaN, or norm_type is below 1.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.torch_clip_grad_norm(1.0)
        >>> updates, _ = clip.update(jnp.array([3e-7, 4e-7]), None)
        >>> print(updates)  # the norm is below the threshold
        [3.e-07 4.e-07]

    References:
        PyTorch 2.13, ``torch.nn.utils.clip_grad_norm_``
    """
    return clip_by(
        as_threshold(max_norm, "max_norm"),
        norm=_torch_norm(norm_type),
        rule=rules.Hard(epsilon=1e-6),
        axis_name=axis_name,
        name=name,
    )


def _torch_norm(norm_type: float | Literal["inf"] | None) -> norms.Norm:
    if norm_type is None:
        return norms.l2
    return norms.lp(math.inf if norm_type == "inf" else norm_type, "norm_type")
