"""The projection onto a ball, which is clipping by global norm."""

from __future__ import annotations

from typing import Any

from .core.checks import Scalar
from .core.clip import clip_by
from .thresholds.given import as_threshold


def project_onto_ball(tree: Any, radius: Scalar) -> Any:
    """Return the point of the Euclidean ball around zero that is nearest to a tree.

    The projection is the hard clip by global norm. That holds for the L2 norm only:
    scaling by another norm is not a projection. A projection never increases the
    distance between two trees.

    Args:
        tree: arrays, taken as one vector.
        radius: a number or array of at least 0, in the tree's units.

    Returns:
        A tree of the same structure, dtypes and shapes.

    Raises:
        TypeError: radius is not a number.
        ValueError: radius is negative or NaN.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> print(clipjax.project_onto_ball(jnp.array([3.0, 4.0]), 1.0))
        [0.6 0.8]
    """
    clip = clip_by(as_threshold(radius, "radius"))
    return clip.update(tree, clip.init(tree))[0]
