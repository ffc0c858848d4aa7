"""The gradient noise scale: the share of a gradient that is noise of its batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.checks import require_integer
from ..core.dtypes import accumulation_dtype, safe_divisor
from .vectors import real_array


class NoiseScale(NamedTuple):
    """The simple noise scale, and the two estimates that it is the ratio of.

    Attributes:
        noise_scale: tr(Σ) over ‖G‖², in examples; inf where the estimate of ‖G‖² is not
            positive.
        trace: the unbiased estimate of tr(Σ), the variance of one example's gradient
            summed over its entries. It can be negative.
        squared_grad_norm: the unbiased estimate of ‖G‖², the squared norm of the
            gradient without noise. It can be negative.
    """

    noise_scale: Float[Array, ""]
    trace: Float[Array, ""]
    squared_grad_norm: Float[Array, ""]


def gradient_noise_scale(
    small_norms: Any, big_norms: Any, small_batch: int, big_batch: int
) -> NoiseScale:
    r"""Estimate the gradient noise scale from gradient norms at two batch sizes.

    For the mean gradient over a batch of B independent examples,
    :math:`E \lVert g_B \rVert^2 = |G|^2 + \operatorname{tr}(\Sigma) / B`. Two batch
    sizes b < B therefore give

    .. math::
        |G|^2 \approx \frac{B \lVert g_B \rVert^2 - b \lVert g_b \rVert^2}{B - b},
        \qquad
        \operatorname{tr}(\Sigma) \approx
        \frac{\lVert g_b \rVert^2 - \lVert g_B \rVert^2}{1 / b - 1 / B}

    Both are unbiased; their ratio is not. Squares are therefore averaged over all
    entries of each array before the ratio: pass the norms of many steps. Norms of
    single examples are norms at a batch size of 1, so that
    `clipjax.per_example_grad_norms`, and the norm of the mean over the same examples,
    give an estimate from one batch. Norms must be those before a clip.

    | input | result |
    |---|---|
    | an estimate of ‖G‖² that is not positive | a noise scale of inf |
    | NaN or inf among the norms | NaN |

    Args:
        small_norms: norms of mean gradients over ``small_batch`` examples, any shape.
        big_norms: norms of mean gradients over ``big_batch`` examples, any shape.
        small_batch: b, at least 1.
        big_batch: B, above b.

    Returns:
        A `NoiseScale` of float32 scalars (float64 for float64 input).

    Raises:
        TypeError: norms are not real numbers, or a batch size is not an integer.
        ValueError: a batch size is out of range, or there are no norms.

    Example:
        >>> import clipjax, jax, jax.numpy as jnp
        >>> from clipjax.diagnostics import gradient_noise_scale
        >>> loss = lambda w, x: jnp.mean(x @ w)  # each example's gradient is its x
        >>> batch = 1 + 3 * jax.random.normal(jax.random.key(0), (2000, 4))
        >>> norms = clipjax.per_example_grad_norms(loss)(jnp.zeros(4), batch)
        >>> mean = jnp.linalg.norm(jax.grad(loss)(jnp.zeros(4), batch))
        >>> found = gradient_noise_scale(norms, mean, 1, 2000)
        >>> print(f"{found.noise_scale:.1f}, exactly {4 * 3**2 / 4:.1f}")
        9.6, exactly 9.0

    References:
        McCandlish, Kaplan, Amodei, OpenAI Dota Team, `An empirical model of large-batch
        training <https://arxiv.org/abs/1812.06162>`_, 2018, section 2.2 and appendix
        A.1.
    """
    require_integer("small_batch", small_batch, 1)
    require_integer("big_batch", big_batch, small_batch + 1)
    small = real_array("small_norms", small_norms)
    big = real_array("big_norms", big_norms)
    if not small.size or not big.size:
        raise ValueError(
            "small_norms and big_norms must not be empty, got shapes "
            f"{small.shape} and {big.shape}"
        )
    dtype = accumulation_dtype([small, big])
    small, big = small.astype(dtype), big.astype(dtype)
    # Squares of 1e20 are beyond float32, the ratio of two of them is not.
    peak = safe_divisor(jnp.maximum(jnp.max(small), jnp.max(big)))
    small_square = jnp.mean(jnp.square(small / peak))
    big_square = jnp.mean(jnp.square(big / peak))
    squared_norm = (big_batch * big_square - small_batch * small_square) / (
        big_batch - small_batch
    )
    trace = (small_square - big_square) / (1 / small_batch - 1 / big_batch)
    is_unseen = squared_norm <= 0
    ratio = trace / jnp.where(is_unseen, 1, squared_norm)
    return NoiseScale(
        jnp.where(is_unseen, jnp.inf, ratio),
        trace * peak * peak,
        squared_norm * peak * peak,
    )
