"""A clip in a loss-scaled chain in float16 trains MNIST as float32 does.

pytest tests/demos/test_half_precision.py -s    prints the accuracies
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from loss_scale import next_scale

import clipjax
from clipjax.demos.models.mlp import MLP
from clipjax.demos.tasks.mnist import CLASSES, PIXELS, mnist_task

SEEDS, STEPS = 6, 100
# The loss in a small unit, as of one term among many: its gradients are below all
# numbers of float16. In that unit the threshold is 1 and the learning rate 0.3.
UNIT = 2.0**-20
NEVER = STEPS + 1

clip = functools.partial(clipjax.clip_by_global_norm, UNIT)
sgd = functools.partial(optax.sgd, 0.3 / UNIT)
ORDERS = {
    "unscale, check, clip": lambda: optax.chain(
        clipjax.unscale(), clipjax.skip_nonfinite(optax.chain(clip(), sgd()))
    ),
    "clip, unscale": lambda: clipjax.skip_nonfinite(
        optax.chain(clip(), clipjax.unscale(), sgd())
    ),
}


def build(key):
    return MLP(PIXELS, CLASSES, depth=4, width=64, rngs=nnx.Rngs(params=key))


@functools.cache
def begin_and_score():
    """Makes the task, and what all trainers begin and end with, compiled once."""
    task = mnist_task(build, batch=64)
    graph, _, rest = nnx.split(nnx.eval_shape(build, jax.random.key(0)), nnx.Param, ...)
    assert not jax.tree.leaves(rest)

    def begin(seed):
        weights, batches = jax.random.split(jax.random.key(seed))
        return nnx.split(build(weights), nnx.Param, ...)[1], batches

    def score(params):
        scores = task.evaluate(nnx.merge(graph, params, rest), task.held_out)
        return scores["accuracy"]

    merge = functools.partial(nnx.merge, graph)
    return task, merge, rest, jax.jit(jax.vmap(begin)), jax.jit(jax.vmap(score))


@functools.cache
def trainer(dtype, order):
    """Trains one MLP per seed, from a first scale that grows at an interval."""
    optimizer = ORDERS[order]()
    task, merge, rest, _, _ = begin_and_score()

    def train(params, batches, first_scale, interval):
        def scaled_loss(params, batch, scale):
            model = merge(params, rest)
            logits = lambda x: model(x.astype(dtype)).astype(jnp.float32)  # noqa: E731
            return scale * UNIT * task.loss(logits, batch)

        def step(carry, index):
            params, state, scale, good_steps = carry
            batch = task.sample(batches, index, task.train)
            narrow = jax.tree.map(lambda p: p.astype(dtype), params)
            grads = jax.grad(scaled_loss)(narrow, batch, scale)
            updates, state = optimizer.update(grads, state, params, loss_scale=scale)
            params = optax.apply_updates(params, updates)
            streak = optax.tree.get(state, "streak")
            scale, good_steps = next_scale(scale, good_steps, streak > 0, interval)
            return (params, state, scale, good_steps), None

        carry = (params, optimizer.init(params), first_scale, jnp.int32(0))
        (params, state, *_), _ = jax.lax.scan(step, carry, jnp.arange(STEPS))
        return params, optax.tree.get(state, "skipped_count")

    return jax.jit(jax.vmap(train, in_axes=(0, 0, None, None)))


def accuracies(dtype, order, first_scale, interval):
    """Gives the accuracies and the skipped steps of all seeds."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        *_, begin, score = begin_and_score()
        params, skipped = trainer(dtype, order)(
            *begin(np.arange(SEEDS)), np.float32(first_scale), np.int32(interval)
        )
        accuracy = np.asarray(score(params), np.float64)
    print(f"{dtype}, {order}: {accuracy.mean():.3f} ± {accuracy.std(ddof=1):.3f}")
    return accuracy, np.asarray(skipped)


RIGHT, WRONG = ORDERS


def test_float16_trains_as_float32_does():
    single, _ = accuracies("float32", RIGHT, 1.0, NEVER)
    # The scale starts too large, so that the check has something to do.
    half, skipped = accuracies("float16", RIGHT, 2.0**40, 40)
    assert np.all(skipped >= 2)
    # Twice the standard error of the difference, and five of the 1,000 images.
    noise = np.sqrt((half.var(ddof=1) + single.var(ddof=1)) / SEEDS)
    assert single.mean() > 0.8
    assert abs(half.mean() - single.mean()) <= 2 * noise + 0.005


@pytest.mark.parametrize(
    ("order", "first_scale", "interval"), [(RIGHT, 1.0, NEVER), (WRONG, 2.0**40, 40)]
)
def test_without_a_scale_or_in_the_wrong_order_it_stays_at_chance(
    order, first_scale, interval
):
    half, _ = accuracies("float16", order, first_scale, interval)
    assert half.max() < 0.3  # of ten classes
