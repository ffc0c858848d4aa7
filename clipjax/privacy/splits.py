"""Split one threshold into thresholds per layer, for per-example clips per layer."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from ..core.checks import require_choice, require_number
from ..core.trees import Leaves
from ..granularity import Labels, group
from ..per_example.thresholds import GroupThresholds


def split_threshold(
    threshold: float | jax.Array,
    params: Any,
    *,
    by: str = "uniform",
    groups: Labels | None = None,
) -> GroupThresholds:
    r"""Split a threshold over layers, each of which `clipjax.clipped_grad` clips.

    .. math:: C_l = \frac{C}{\sqrt{K}} \quad \text{or} \quad
        C_l = C \sqrt{\frac{d_l}{D}}, \qquad \sum_l C_l^2 = C^2

    for K layers, where layer l has d_l of the D parameters. Together the thresholds
    bound an example's gradient by C, so that the sensitivity is that of a clip of the
    whole gradient to C: C/m for adding or removing one example with the fixed divisor
    m, and 2C/m for replacing one. With ``rescale_to_unit_norm``, each layer's bound
    becomes 1, and the sensitivity √K/m or 2√K/m. `ClippedGrad.sensitivity` returns it
    in each case.

    | input | result |
    |---|---|
    | integer, None and other leaves without a gradient | no threshold, not counted |
    | an empty array | 0, not counted but in the √K of ``rescale_to_unit_norm`` |
    | no leaf with a gradient | ValueError |

    Args:
        threshold: C, the most that an example may add in all.
        params: the parameters, or ``ShapeDtypeStruct``.
        by: ``uniform``, or ``dimension`` for shares in proportion to √d_l, which is the
            noise that a layer gets.
        groups: the labels of leaves that are clipped together, as for
            `clipjax.clip_by_group_norm`: a prefix tree of strings, a function of
            (path, leaf), or a function of the tree. By default each leaf is a layer.

    Returns:
        A `GroupThresholds` for ``l2_clip_norm``: a tree of numbers, with the dictionary
        ``norms`` by label or, without groups, by the name of the leaf.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or params have no floating-point leaf.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> from clipjax import privacy
        >>> params = {"w": jnp.ones((3, 5)), "b": jnp.zeros(1)}
        >>> split = privacy.split_threshold(1.0, params, by="dimension")
        >>> print({name: round(norm, 3) for name, norm in split.norms.items()})
        {'b': 0.25, 'w': 0.968}
        >>> loss = lambda params, x: jnp.sum(x @ params["w"] + params["b"])
        >>> clipjax.clipped_grad(loss, l2_clip_norm=split).sensitivity("REPLACE_ONE")
        2.0

    References:
        McMahan, Ramage, Talwar, Zhang, `Learning differentially private recurrent
        language models <https://arxiv.org/abs/1710.06963>`_, 2018.
    """
    require_number("threshold", threshold, infinite=False)
    if np.ndim(threshold):
        raise ValueError(
            f"threshold must be one number, got shape {np.shape(threshold)}"
        )
    require_choice("by", by, ("uniform", "dimension"))
    leaves = Leaves.of(params)
    groups = _own_name if groups is None else groups
    labels = group(groups).label_of_each(leaves)
    sizes: dict[str, int] = {}
    for label, leaf in zip(labels, leaves.arrays, strict=True):
        sizes[label] = sizes.get(label, 0) + math.prod(leaf.shape)
    if not any(sizes.values()):
        raise ValueError(
            "params must have a floating-point leaf that is not empty, got "
            f"{jax.tree.structure(params)}"
        )
    if by == "uniform":
        sizes = {label: min(size, 1) for label, size in sizes.items()}
    total = sum(sizes.values())
    norms = {
        label: threshold * math.sqrt(sizes[label] / total) for label in sorted(sizes)
    }
    return GroupThresholds(norms, group(groups, tuple(norms)))


def _own_name(name: str, leaf: Any) -> str:
    del leaf
    return name
