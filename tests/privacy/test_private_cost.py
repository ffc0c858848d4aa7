"""Temporaries of a private train step beside those of the plain one, as XLA counts."""

import jax
import pytest

from benchmarks.per_example.models import perceptron, transformer
from benchmarks.private_step import GATE, compiled_step

# Small ones of the models of the table, with as much work to each parameter.
MODELS = {
    "perceptron": lambda: perceptron(512, 64, 64, 10),
    "transformer": lambda: transformer(8, 64, layers=1, width=64),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_private_step_needs_no_more_memory(name):
    model = MODELS[name]()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        plain, private = (
            compiled_step(step, model).memory_analysis().temp_size_in_bytes
            for step in ("plain", "private")
        )
    assert private <= GATE * plain
