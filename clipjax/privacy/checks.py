"""Checks of keys and of sums, for the functions that draw or add private noise."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core.trees import Leaves


def words_of(key: Any) -> tuple[Any, Any]:
    """Return the words of a key, and the name of its generator."""
    if not isinstance(key, jax.Array):
        raise TypeError(
            f"key must be a key such as jax.random.key(0), got {key!r}: a seed alone "
            "is refused, so that none is used twice by accident"
        )
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        try:
            key = jax.random.wrap_key_data(key)  # a raw key, from jax.random.PRNGKey
        except TypeError as error:
            raise TypeError(
                "key must be a key such as jax.random.key(0), or the words of one, got "
                f"{key.dtype} of shape {key.shape}"
            ) from error
    if key.shape:
        raise ValueError(f"key must be a single key, got an array of shape {key.shape}")
    implementation = jax.random.key_impl(key)
    if str(implementation) == "unsafe_rbg":
        raise ValueError(
            "key must be of a generator whose numbers are tested, such as threefry2x32 "
            "or rbg, got unsafe_rbg"
        )
    return jax.random.key_data(key), implementation


def require_wide(leaves: Leaves) -> None:
    """Refuse sums that were rounded to fewer than 32 bits."""
    for name, leaf in leaves.by_name.items():
        if jnp.finfo(leaf.dtype).bits < 32:
            raise TypeError(
                f"{name or 'the update'} has dtype {leaf.dtype}: the sum was rounded "
                "before the noise, by more than the sensitivity covers. Pass "
                "dtype=jnp.float32 to clipped_grad; with params, update casts the "
                "noisy result to their dtype"
            )
