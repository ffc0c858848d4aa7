"""Clipped gradient descent in one dimension: paths, fixed points and 2-cycles."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..core.checks import Scalar, require_integer, require_number
from ..core.dtypes import accumulation_dtype

# A last step below this fraction of the longest step of the path counts as zero.
TOLERANCE = 1e-4


class ClippedDescent(NamedTuple):
    r"""Paths of clipped gradient descent, and how each ends; see `clipped_descent`.

    Attributes:
        path: the points x, shape ``(steps + 1, *starts)``.
        gradients: the derivatives f′(x) there, of the same shape.
        clipped: the derivatives after the clip, of the same shape.
        in_band: whether \|f′(x)\| ≤ C, so that nothing is clipped, of the same shape.
        is_fixed_point: for each start, whether the path has come to rest.
        is_two_cycle: for each start, whether it alternates between two points.
    """

    path: Float[Array, " points *starts"]
    gradients: Float[Array, " points *starts"]
    clipped: Float[Array, " points *starts"]
    in_band: Bool[Array, " points *starts"]
    is_fixed_point: Bool[Array, " *starts"]
    is_two_cycle: Bool[Array, " *starts"]

    @property
    def fixed_points(self) -> np.ndarray:
        """The fixed points that were found, one for each such path, on the host."""
        return np.asarray(self.path[-1])[np.asarray(self.is_fixed_point)]

    @property
    def two_cycles(self) -> np.ndarray:
        """The 2-cycles that were found, shape ``(found, 2)``, lower point first."""
        pairs = np.stack([np.asarray(self.path[-2]), np.asarray(self.path[-1])], -1)
        return np.sort(pairs[np.asarray(self.is_two_cycle)], axis=-1)


def clipped_descent(
    grad: Callable[[jax.Array], jax.Array],
    x0: jax.Array | float,
    learning_rate: Scalar,
    threshold: Scalar,
    steps: int,
) -> ClippedDescent:
    r"""Return the path of clipped gradient descent on a function of one variable.

    .. math:: T_C(x) = x - \eta \operatorname{clip}(f'(x), -C, C)

    Outside of the band :math:`\lvert f'(x) \rvert \le C` each step has length ηC. The
    pairs (x, f′(x)) lie on the graph of f′; a phase portrait shows horizontal lines
    outside of the band if it plots (x, ``clipped``). A clip bounds each step, and not
    the path: where f has no minimum the path runs away at ηC per step. At a minimum
    with curvature L the path comes to rest for ηL < 2. For ηL > 2 it typically ends in
    a 2-cycle of width at most ηC around the minimum, exactly ηC if both points lie
    outside of the band.

    | the last steps of a path | state |
    |---|---|
    | below 1e-4 of the longest step | ``is_fixed_point`` |
    | return to the point before the last, to 1e-4 of their length | ``is_two_cycle`` |
    | converge slowly, oscillate less and less, run away, are NaN | neither |

    Args:
        grad: the derivative f′, applied to arrays entry by entry, such as
            ``lambda x: 3 * x`` or ``jax.vmap(jax.grad(f))``.
        x0: where to start: a number, or an array with one start in each entry.
        learning_rate: the learning rate η.
        threshold: the threshold C, in the units of f′; inf for plain gradient descent.
        steps: the number of steps, at least 2.

    Returns:
        A `ClippedDescent` of float32 arrays (float64 if x0 is).

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or grad changes the shape.

    Example:
        >>> import clipjax
        >>> found = clipjax.diagnostics.clipped_descent(
        ...     lambda x: 3 * x, 0.37, learning_rate=1.0, threshold=1.0, steps=10
        ... )
        >>> print(found.is_two_cycle, found.two_cycles.round(2))
        True [[-0.63  0.37]]
    """
    require_integer("steps", steps, 2)
    require_number("learning_rate", learning_rate, infinite=False)
    require_number("threshold", threshold)
    x0 = jnp.asarray(x0)
    x0 = x0.astype(accumulation_dtype([x0]))
    shape = jax.eval_shape(grad, x0).shape
    if shape != x0.shape:
        raise ValueError(
            f"grad must return one derivative for each entry, of shape {x0.shape}, got "
            f"{shape}; for a function of one number, pass jax.vmap of its derivative"
        )
    rate, limit = (
        jnp.asarray(number, x0.dtype) for number in (learning_rate, threshold)
    )

    def step(x: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        derivative = grad(x).astype(x.dtype)
        clipped = jnp.clip(derivative, -limit, limit)
        return x - rate * clipped, (x, derivative, clipped)

    _, (path, gradients, clipped) = jax.lax.scan(step, x0, length=steps + 1)
    moves = jnp.abs(jnp.diff(path, axis=0))
    is_fixed_point = moves[-1] <= TOLERANCE * jnp.max(moves, axis=0)
    returns = jnp.abs(path[-1] - path[-3]) <= TOLERANCE * moves[-1]
    return ClippedDescent(
        path=path,
        gradients=gradients,
        clipped=clipped,
        in_band=jnp.abs(gradients) <= limit,
        is_fixed_point=is_fixed_point,
        is_two_cycle=returns & ~is_fixed_point,
    )
