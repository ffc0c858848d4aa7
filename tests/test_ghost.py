"""Book-keeping gives the norms and sums of a loop over single examples."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import flat

from benchmarks.per_example.exactness import measure
from benchmarks.per_example.kinds import KINDS
from benchmarks.per_example.kinds.inputs import BATCH
from clipjax.core.trees import Leaves
from clipjax.per_example.ghost import ghost
from clipjax.per_example.jaxprs import trace
from clipjax.per_example.plan import make_plan


def with_aux(loss):
    return lambda params, example: (loss(params, example), ())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_exactness(kind):
    # Flax and Optax rely on promotion of dtypes and ranks.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        errors = measure(kind)
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
        closed, _ = trace(flat_loss, values, jax.tree.map(lambda x: x[0], batch))
    plan = make_plan(closed.jaxpr, names, values)
    assert {names[leaf] for leaf in plan.dense} == dense


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_example_of_weight_zero_adds_nothing(bad):
    params, loss, (inputs, targets) = KINDS["dense"]()
    poisoned = inputs.at[1].set(bad)
    weights = jnp.array([1.0, 0.0, 1.0, 1.0])

    def run(inputs):
        found = ghost(with_aux(loss), params, (inputs, targets))
        return found.weighted_sum({name: weights for name in found.squares})

    clean, poisoned = jax.jit(run)(inputs), jax.jit(run)(poisoned)
    np.testing.assert_array_equal(flat(poisoned), flat(clean))


def test_sum_of_all_is_the_plain_gradient():
    params, loss, batch = KINDS["tied_embedding_and_einsum"]()

    def both(params):
        found = ghost(with_aux(loss), params, batch)
        ones = {name: jnp.ones(BATCH) for name in found.squares}
        plain = jax.grad(lambda p: jnp.sum(jax.vmap(lambda x: loss(p, x))(batch)))
        return found.weighted_sum(ones), plain(params)

    total, plain = jax.jit(both)(params)
    difference = optax.tree.sub(total, plain)
    assert optax.tree.norm(difference) <= 1e-5 * optax.tree.norm(plain)
