"""Book-keeping gives the norms and sums of a loop over single examples."""

import jax
import numpy as np
import pytest

from benchmarks.per_example.exactness import measure
from benchmarks.per_example.kinds import KINDS
from clipjax.core.trees import Leaves
from clipjax.jax_internals import trace
from clipjax.per_example.plan import make_plan

# Kinds for the table of exactness alone: what they do with a parameter, another kind
# does as well, and clipjax takes no branch for them that it takes for no other.
REPEATED = {
    "attention_with_biases": {"equinox_attention", "linen_attention_with_dropout"},
    "best_two_experts": {"experts_looked_up"},
    "convolutions_in_a_row": {
        "strided_convolution",
        "dilated_convolution",
        "grouped_convolution",
        "depthwise_convolution",
        "transposed_convolution",
    },
    "frozen_integer_and_absent": {"auxiliary_output"},
    "joined_kernels": {"one_kernel_for_queries_keys_values"},
    "tied_embedding_and_einsum": {"mixture_of_experts", "low_rank_adapter"},
    "nnx_network": {"nnx_adapters_on_frozen_kernels"},
    "recurrent": {"equinox_cell"},
}
DISTINCT = sorted(set(KINDS) - set().union(*REPEATED.values()))


@pytest.mark.parametrize("kind", DISTINCT)
def test_exactness(kind):
    # Flax and Optax rely on promotion of dtypes and ranks. Of all generators of random
    # numbers, XLA's own takes the least time to compile for the parameters.
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_prng_impl("unsafe_rbg"),
    ):
        errors = measure(KINDS[kind])
    assert all(error <= 1e-5 for error in errors), errors


@pytest.mark.parametrize(
    ("model", "dense"),
    [
        ("dense", {"b1"}),
        ("tied_embedding_and_einsum", set()),
        ("recurrent", {"bias"}),
        ("scanned_layers_with_remat", {"bias"}),
        ("slices", set()),
        ("used_transposed", set()),
        ("joined_kernels", {"bias"}),
        ("experts_looked_up", set()),
        ("convolutions_with_one_kernel", set()),
        ("scaled_repeated_and_bare", {"w", "s", "decay"}),
    ],
)
def test_plan(model, dense):
    params, loss, batch = KINDS[model]()
    leaves = Leaves.of(params)
    names, values = tuple(leaves.names), leaves.arrays

    def flat_loss(values, example):
        arrays = dict(zip(names, values, strict=True))
        return loss(leaves.tree_by_name(arrays), example)

    with jax.numpy_rank_promotion("allow"):
        program, _, _ = trace(
            flat_loss, values, jax.tree.map(lambda x: np.asarray(x)[0], batch)
        )
    plan = make_plan(program, names, values)
    assert {names[leaf] for leaf in plan.dense} == dense
