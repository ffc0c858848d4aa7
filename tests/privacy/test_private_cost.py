"""Temporaries of a private train step beside those of the plain one, as XLA counts."""

import jax

from benchmarks.per_example.models import perceptron
from benchmarks.per_example.private_steps import GATE, compiled_step


def test_a_private_step_needs_no_more_memory():
    """A small perceptron, of which the noise is a larger part than of a transformer."""
    model = perceptron(512, 64, 64, 10)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        plain, private = (
            compiled_step(step, model).memory_analysis().temp_size_in_bytes
            for step in ("plain", "private")
        )
    assert private <= GATE * plain
