"""Clips whose threshold is relative to the parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import granularity, norms
from ..core.checks import Scalar, require_number
from ..core.clip import Clip, clip_by
from ..core.dtypes import narrow, widen
from ..core.meshes import AxisNames
from ..core.trees import Leaves
from ..granularity import Stacked, UnitAxes
from ..thresholds.relative import TrustRatio, relative_to_params
from ..wrappers.with_optimizer import clip_after
from .stand_ins import Gradient, RelativeChange


def adaptive_grad_clip(
    clipping: Scalar,
    eps: Scalar = 1e-3,
    axis: UnitAxes = None,
    *,
    stacked: Stacked = None,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Clip each output unit to a fraction of its parameters' norm (AGC).

    .. math::
        u_j = g_j \min\Bigl(1, \lambda
            \frac{\max(\lVert w_j \rVert_2, \epsilon)}{\lVert g_j \rVert_2}\Bigr)

    Coordinates: ``unit × l2 × hard × relative-to-params``

    A drop-in replacement for ``optax.adaptive_grad_clip``. The parameters are those
    before the update. The paper leaves the last linear layer unclipped: wrap the clip
    in ``optax.masked`` for that.

    | input | result |
    |---|---|
    | a unit's norm ≤ its threshold | that unit bit-identical |
    | zero parameters | allowed the norm ``clipping · eps`` |
    | None in the gradient | stays None, whatever the parameters hold there |
    | NaN or inf in a unit | NaN in that unit only, counted as non-finite |
    | rank above 5 without axis | ValueError when traced |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        clipping: λ, the largest ratio of gradient norm to parameter norm.
        eps: a lower bound for the norm of a unit's parameters, in the parameters'
            units.
        axis: the axes that one unit spans; by default by rank, as Optax chooses: all
            for scalars and vectors, 0 at rank 2 and 3, all but the last at rank 4 and
            5. Pass one axis or several, a function of (path, leaf) to axes, or a table
            from path pattern to axes.
        stacked: leading axes that stack separate layers; see
            `clipjax.granularity.unit`.
        axis_name: mesh or pmap axes that leaves are split over, along axes that a unit
            spans; see `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs`` that needs params in ``update``.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is negative or NaN; or, in ``update``, params are not
            given.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.adaptive_grad_clip(0.1)
        >>> params, grads = jnp.array([[6.0], [8.0]]), jnp.array([[3.0], [4.0]])
        >>> updates, _ = clip.update(grads, clip.init(params), params)
        >>> print(updates.T)
        [[0.6 0.8]]

    References:
        Brock, De, Smith, Simonyan, `High-performance large-scale image recognition
        without normalization <https://arxiv.org/abs/2102.06171>`_, 2021, equation 3
    """
    require_number("clipping", clipping)
    require_number("eps", eps)
    return clip_by(
        relative_to_params(clipping, eps),
        granularity=granularity.unit(axis, stacked),
        axis_name=axis_name,
        name=name,
    )


def larc_clip(
    learning_rate: optax.ScalarOrSchedule | None = None,
    trust_coefficient: Scalar = 0.02,
    *,
    weight_decay: Scalar | None = None,
    eps: Scalar | None = None,
    stacked: Stacked = None,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> optax.GradientTransformationExtraArgs:
    r"""Clip each leaf so that no step is longer than a fraction of its parameters.

    .. math::
        u = (g + \omega w) \min\Bigl(1, \frac{\tau \lVert w \rVert}
            {\eta (\lVert g \rVert + \omega \lVert w \rVert + \epsilon)}\Bigr)

    Coordinates: ``leaf × l2 × hard × trust-ratio``

    LARC in its clipping mode: with SGD after it, :math:`\lVert \eta u \rVert \le
    \tau \lVert w \rVert`. The clip applies weight decay itself, in place of the
    optimizer.

    | input | result |
    |---|---|
    | ratio ≥ 1 | bit-identical, if there is no weight decay |
    | zero parameters | not clipped |
    | zero gradient | the decay alone (the reference then does not decay) |
    | NaN or inf in a leaf | NaN in that leaf only, counted as non-finite |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        learning_rate: η of the optimizer that follows: a number, an array or a
            schedule; None to read the extra argument ``learning_rate``.
        trust_coefficient: τ, the largest step as a fraction of the parameters' norm.
        weight_decay: ω, the coupled weight decay, which is clipped as well; None for no
            decay.
        eps: ε, in the gradient's units; None for 1e-8.
        stacked: leading axes that stack separate layers; see
            `clipjax.granularity.leaf`.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs`` that needs params in ``update``.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is negative or NaN; or, in ``update``, params or the
            learning rate are not given.

    Example:
        >>> import clipjax, jax.numpy as jnp
        >>> clip = clipjax.larc_clip(learning_rate=0.1)
        >>> params, grads = jnp.array([3.0, 4.0]), jnp.array([30.0, 40.0])
        >>> updates, _ = clip.update(grads, clip.init(params), params)
        >>> print(jnp.round(updates, 3))
        [0.6 0.8]

    References:
        You, Gitman, Ginsburg, `Large batch training of convolutional networks
        <https://arxiv.org/abs/1708.03888>`_, 2017; ``LARC`` of NVIDIA Apex
    """
    decay = 0.0 if weight_decay is None else weight_decay
    eps = 1e-8 if eps is None else eps
    source = TrustRatio(learning_rate, trust_coefficient, decay, eps)
    leaf = granularity.leaf(stacked)
    raw = None if weight_decay is None else Gradient("larc_clip")
    clip = clip_by(
        source, granularity=leaf, axis_name=axis_name, name=name, stand_in=raw
    )
    if weight_decay is None:
        return clip
    return clip_after(_add_decay(decay), clip, lambda g, _: {"gradient": g})


def _add_decay(decay: Scalar) -> optax.GradientTransformation:
    """Add decayed weights in the gradient's dtype; Optax promotes to the params'."""

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "larc_clip needs params: call update(updates, state, params)"
            )
        leaves = Leaves.of(updates)

        def add(leaf: jax.Array, param: jax.Array) -> jax.Array:
            wide = widen(leaf, leaves.dtype)
            weight = widen(param, leaves.dtype).astype(wide.dtype)
            return narrow(wide + jnp.asarray(decay).astype(wide.dtype) * weight, leaf)

        decayed = leaves.map(add, leaves.aligned(params, "params"))
        return leaves.tree(decayed), state

    return optax.GradientTransformation(init, update)


def clippy(
    lambda_rel: Scalar = 0.5,
    lambda_abs: Scalar = 0.01,
    *,
    stacked: Stacked = None,
    axis_name: AxisNames = None,
    name: str = "clip",
) -> Clip:
    r"""Scale the step of each leaf so that no parameter changes by too much (Clippy).

    .. math:: u = \Delta \min\Bigl(1, \min_i \frac{\lambda_\text{rel} \lvert w_i \rvert
        + \lambda_\text{abs}}{\lvert \Delta_i \rvert}\Bigr)

    Coordinates: ``leaf × linf × hard × constant``

    Δ is the final step: put the clip last in the chain, after the learning rate. The
    norm in the report is the largest ratio of a change to the allowed change. Public
    implementations disagree on the absolute part by five orders of magnitude. The
    authors' Keras code has 1e-7 (with 0.1), with which a single zero weight all but
    freezes its tensor; a PyTorch port has 1e-2 (with 0.5), as has clipjax.

    | input | result |
    |---|---|
    | no parameter changes by too much | bit-identical |
    | λ_abs = 0 and a zero parameter that would change | zero update of that leaf |
    | NaN or inf in a leaf | NaN in that leaf only, counted as non-finite |
    | all else | as `clipjax.clip_by` guarantees |

    Args:
        lambda_rel: the largest change of a parameter relative to itself.
        lambda_abs: a change that is always allowed, in the parameters' units.
        stacked: leading axes that stack separate layers; see
            `clipjax.granularity.leaf`.
        axis_name: mesh or pmap axes that leaves are split over; see
            `clipjax.clip_by`.
        name: prefix of the clip's metrics.

    Returns:
        An ``optax.GradientTransformationExtraArgs`` that needs params in ``update``.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is negative or NaN; or, in ``update``, params are not
            given.

    Example:
        >>> import clipjax, jax.numpy as jnp, optax
        >>> optimizer = optax.chain(optax.sgd(1.0), clipjax.clippy(0.5, 0.0))
        >>> params, grads = jnp.array([1.0, 2.0]), jnp.array([2.0, 2.0])
        >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
        >>> print(updates)
        [-0.5 -0.5]

    References:
        Tang et al., `Improving training stability for multitask ranking models in
        recommender systems <https://arxiv.org/abs/2302.09178>`_, 2023, algorithm 2
    """
    require_number("lambda_rel", lambda_rel, infinite=False)
    require_number("lambda_abs", lambda_abs, infinite=False)
    return clip_by(
        1.0,
        granularity=granularity.leaf(stacked),
        norm=norms.linf,
        axis_name=axis_name,
        name=name,
        stand_in=RelativeChange(lambda_rel, lambda_abs),
    )
