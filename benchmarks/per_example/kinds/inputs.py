"""Random parameters and batches."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

BATCH = 4


def normal(seed, *shape):
    """Makes Gaussian numbers."""
    # By NumPy: JAX would compile the generator for every shape.
    drawn = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(drawn, jnp.float32)


def normals(shapes):
    """Makes parameters by name."""
    return {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}


def tokens(length=7, size=11):
    """Makes sequences of few words, so that some of them come several times."""
    drawn = np.random.default_rng(0).integers(size, size=(BATCH, length))
    return jnp.asarray(drawn, jnp.int32)
