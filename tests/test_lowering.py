"""Every recipe lowers for every platform, on a machine that has none of them."""

import catalogue
import jax
import jax.export
import jax.numpy as jnp
import pytest

RECIPES = catalogue.RECIPES | catalogue.COMPOUNDS
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@pytest.mark.parametrize("name", RECIPES)
def test_init_and_update_are_exported(name):
    clip = RECIPES[name]()
    structs = jax.eval_shape(catalogue.parameters)
    state = jax.eval_shape(clip.init, structs)
    with jax.numpy_dtype_promotion("standard"):  # Adam itself mixes dtypes
        for function, args in [
            (clip.init, (structs,)),
            (clip.update, (structs, state, structs)),
        ]:
            exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*args)
            assert exported.platforms == PLATFORMS
            assert all(shape.dtype != jnp.float64 for shape in exported.out_avals)
