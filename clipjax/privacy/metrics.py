"""Metrics of single examples, released with noise and therefore private."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..core.checks import Scalar, require_number
from ..jax_internals import varying_axes
from .checks import words_of

# Folded into the key, so that this noise is independent of the gradient's noise, and of
# a private threshold's, with the same key.
_PURPOSE = 0x66726163


def noisy_clip_fraction(
    example_norms: jax.Array,
    threshold: Scalar,
    *,
    count_deviation: Scalar,
    expected_size: Scalar,
    key: jax.Array,
    is_padding_example: jax.Array | None = None,
) -> Float[Array, ""]:
    r"""Return the fraction of examples above the threshold, with Gaussian noise.

    .. math:: \tilde f = \frac12 + \frac1m \Bigl(\sum_i \bigl(1[n_i > C] - \tfrac12
        \bigr) + \sigma_b \, \xi \Bigr), \qquad \xi \sim \mathcal{N}(0, 1)

    The plain fraction depends on single examples and is not private, and neither are
    the norms, losses and gradients that `clipjax.AuxiliaryOutput` returns. Each example
    adds one bit, shifted to ±1/2, so that adding or removing an example changes the sum
    by 1/2, and replacing one by 1. The divisor is fixed, since the size of a Poisson
    batch is private too.

    A release costs what a Gaussian mechanism with the noise multiplier 2σ_b costs under
    ADD_OR_REMOVE_ONE or REPLACE_SPECIAL, and σ_b under REPLACE_ONE. Together with the
    gradient of the same batch it costs nothing more if the gradient's noise multiplier
    is that of `clipjax.privacy.split_noise_multiplier`.

    | input | result |
    |---|---|
    | an example of norm exactly C | counts as not clipped |
    | an example of norm NaN or inf, which is left out of the sum | counts as clipped |
    | a padding example | counts as absent |
    | n examples instead of m | (clipped + (m - n) / 2) / m, with noise |
    | a batch without examples | 1/2, with noise |
    | a result outside of 0 to 1 | stays as it is, so that averages have no bias |
    | norms sharded under ``jit`` | the fraction of the whole batch |
    | ``shard_map`` with checked types, sharded norms | ValueError |
    | ``shard_map`` with unchecked types, ``pmap`` | wrong: pass all of the norms |

    Args:
        example_norms: norms before the clip, of shape ``[B]``; not private.
        threshold: C, a number, or an array that depends on noisy values only.
        count_deviation: σ_b, the standard deviation of the noise on the number of
            examples, above 0. Andrew et al. take m/20.
        expected_size: m, the expected number of examples in a batch, fixed.
        key: a key from `jax.random.key`, used for this release only, such as
            ``jax.random.fold_in(key, step)``.
        is_padding_example: bool of shape ``[B]``, true for padding. Without it, rows of
            padding count as examples, and void the guarantee.

    Returns:
        A float32 scalar.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from clipjax import privacy
        >>> fraction = privacy.noisy_clip_fraction(
        ...     jnp.linspace(0.0, 2.0, 1000),
        ...     1.5,
        ...     count_deviation=50.0,
        ...     expected_size=1000,
        ...     key=jax.random.key(0),
        ... )
        >>> 0.05 < fraction < 0.45
        Array(True, dtype=bool)

    References:
        Andrew, Thakkar, McMahan, Ramaswamy, `Differentially private learning with
        adaptive clipping <https://arxiv.org/abs/1905.03871>`_, 2021.
    """
    require_positive_scalar("count_deviation", count_deviation)
    require_positive_scalar("expected_size", expected_size)
    words, implementation = words_of(key)
    key = jax.random.wrap_key_data(words, impl=implementation)
    excess = clipped_excess(example_norms, threshold, is_padding_example)
    key = jax.random.fold_in(key, _PURPOSE)
    return noisy_fraction(excess, count_deviation, expected_size, key)


def clipped_excess(
    example_norms: jax.Array, threshold: Scalar, is_padding_example: Any = None
) -> Int[Array, ""]:
    """Return the number of examples above the threshold minus the number not above.

    It is twice the sum of the bits that are shifted by 1/2, and an integer, so that
    sums over parts of a batch are exact.
    """
    norms = jnp.asarray(example_norms)
    if norms.ndim != 1 or not jnp.issubdtype(norms.dtype, jnp.floating):
        raise TypeError(
            "example_norms must be floating-point numbers of shape [B], got "
            f"{norms.dtype} of shape {norms.shape}"
        )
    axes = sorted(map(str, varying_axes(norms)))
    if axes:
        raise ValueError(
            f"example_norms differ over the mesh axes {axes}, so that each shard would "
            "release a count of its own with the same noise: call this under jit, on "
            "the norms of the whole batch"
        )
    limit = jnp.asarray(threshold, norms.dtype)
    if limit.shape not in ((), norms.shape):
        raise ValueError(
            f"threshold must be a single number, or of shape {norms.shape}, got shape "
            f"{limit.shape}"
        )
    is_below = norms <= limit  # false for NaN
    signs = jnp.where(is_below, jnp.int32(-1), jnp.int32(1))
    if is_padding_example is not None:
        padding = jnp.asarray(is_padding_example, bool)
        if padding.shape != norms.shape:
            raise ValueError(
                f"is_padding_example must be of shape {norms.shape}, one for each "
                f"example, got shape {padding.shape}"
            )
        signs = jnp.where(padding, 0, signs)
    return jnp.sum(signs, dtype=jnp.int32)


def noisy_fraction(
    excess: Int[Array, ""], deviation: Scalar, size: Scalar, key: jax.Array
) -> Float[Array, ""]:
    """Convert `clipped_excess` to a fraction, with noise on the count."""
    deviation = jnp.asarray(deviation, jnp.float32)
    noisy = excess.astype(jnp.float32) / 2
    noisy += deviation * jax.random.normal(key, (), jnp.float32)
    return 0.5 + noisy / jnp.asarray(size, jnp.float32)


def require_positive_scalar(name: str, value: Any) -> None:
    """Check for a number in float32's positive range; for arrays, dtype and shape."""
    require_number(name, value, infinite=False)
    if jnp.shape(value):
        raise ValueError(
            f"{name} must be a single number, got shape {jnp.shape(value)}"
        )
    info = jnp.finfo(jnp.float32)
    if not isinstance(value, jax.Array) and not info.tiny <= value <= info.max:
        raise ValueError(
            f"{name} must be above 0 and in the range of float32, got {value!r}"
        )
