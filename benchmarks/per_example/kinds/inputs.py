"""Random parameters and batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

BATCH = 4


def normal(seed, *shape, size=1.0):
    """Makes Gaussian numbers."""
    # By NumPy: JAX would compile the generator for every shape.
    drawn = np.random.default_rng(seed).standard_normal(shape) * size
    return jnp.asarray(drawn.astype(np.float32))


def normals(shapes, size=1.0):
    """Makes parameters by name."""
    named = enumerate(shapes.items())
    return {name: normal(i, *shape, size=size) for i, (name, shape) in named}


def filled(shapes):
    """Makes parameters of these shapes: a module's own start takes long to compile."""
    leaves, structure = jax.tree.flatten(shapes)
    drawn = [normal(i, *leaf.shape, size=0.5) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


def tokens(length=7, size=11):
    """Makes sequences of few words, so that some of them come several times."""
    drawn = np.random.default_rng(0).integers(size, size=(BATCH, length))
    return jnp.asarray(drawn, jnp.int32)
