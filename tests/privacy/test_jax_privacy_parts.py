"""Parts of jax_privacy in place of ours, and Optax's aggregation: the same updates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import assert_same_bits

import clipjax
from clipjax import privacy

batch_selection = pytest.importorskip("jax_privacy.batch_selection")
clipping = pytest.importorskip("jax_privacy.clipping")
noise_addition = pytest.importorskip("jax_privacy.noise_addition")
toeplitz = pytest.importorskip("jax_privacy.matrix_factorization.toeplitz")

# Their clipped_grad calls a function of Optax that Optax has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:optax.global_norm:DeprecationWarning")

EXAMPLES, BATCH, STEPS, CLIP, DIVISOR = 40, 6, 5, 0.7, 10.0
RNG = np.random.default_rng(3)
DATA = (
    RNG.normal(size=(EXAMPLES, 3)).astype(np.float32),
    RNG.normal(size=EXAMPLES).astype(np.float32),
)


@pytest.fixture(autouse=True)
def theirs_need():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def parameters():
    return {
        "first": jnp.asarray(np.sin(np.arange(12.0)).reshape(3, 4), jnp.float32),
        "last": jnp.asarray(np.cos(np.arange(4.0)), jnp.float32),
    }


def loss(params, x, y):
    hidden = jnp.tanh(x @ params["first"])
    return jnp.mean((hidden @ params["last"] - y) ** 2)


OPTIONS = {
    "l2_clip_norm": CLIP,
    "normalize_by": DIVISOR,
    "batch_argnums": (1, 2),
    "dtype": jnp.float32,
}
OURS = clipjax.clipped_grad(loss, **OPTIONS)
GRADS = {"clipjax": jax.jit(OURS), "jax_privacy": None}


def clipped_by(package):
    if GRADS[package] is None:
        GRADS[package] = jax.jit(clipping.clipped_grad(loss, **OPTIONS))
    return GRADS[package]


def drawn():
    """Their batches of a run: one sample of all examples, one of none."""
    strategy = batch_selection.CyclicPoissonSampling(0.25, iterations=STEPS - 2)
    samples = list(strategy.batch_iterator(EXAMPLES, rng=0))
    return [*samples, np.arange(EXAMPLES), np.arange(0)]


def trained(optimizer, package="clipjax"):
    """A run over their samples, split and padded by them."""
    params = parameters()
    state = optimizer.init(params)
    update = jax.jit(
        lambda clipped, state, params, is_last: optimizer.update(
            clipped, state, params, is_last=is_last
        )
    )
    for sample in drawn():
        batches = batch_selection.split_and_pad_global_batch(sample, BATCH)
        for position, indices in enumerate(batches):
            x, y = (array[indices] for array in DATA)
            clipped = clipped_by(package)(params, x, y, is_padding_example=indices < 0)
            updates, state = update(
                clipped, state, params, position == len(batches) - 1
            )
            params = optax.apply_updates(params, updates)
    return params


def close(mine, theirs):
    for one, other in zip(*map(jax.tree.leaves, (mine, theirs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def ours(noise_multiplier=0.0):
    return privacy.virtual_batches(
        privacy.dp_sgd(
            0.1,
            sensitivity=OURS.sensitivity("ADD_OR_REMOVE_ONE"),
            noise_multiplier=noise_multiplier,
            key=jax.random.key(0),
        )
    )


@functools.cache
def expected():
    return trained(ours())


def privatizer(kind, noise_multiplier):
    """Their noise at the same standard deviation as ours."""
    stddev = noise_multiplier * OURS.sensitivity("ADD_OR_REMOVE_ONE")
    made = {
        "independent": noise_addition.gaussian_privatizer,
        "dense": functools.partial(
            noise_addition.matrix_factorization_privatizer,
            toeplitz.materialize_lower_triangular(
                toeplitz.optimal_max_error_noising_coefs(STEPS)
            ),
        ),
        "streaming": functools.partial(
            noise_addition.matrix_factorization_privatizer,
            toeplitz.inverse_as_streaming_matrix(jnp.array([1.0, 0.5, 0.25])),
        ),
    }[kind]
    return made(stddev=stddev, prng_key=jax.random.key(1))


@pytest.mark.parametrize("kind", ["independent", "dense", "streaming"])
def test_runs_with_their_noise(kind):
    """Their batches and their noise, at zero: the run with ours."""
    optimizer = privacy.virtual_batches(
        optax.chain(privatizer(kind, 0.0), optax.sgd(0.1))
    )
    close(trained(optimizer), expected())


def test_run_with_their_clipped_grad():
    close(trained(ours(), "jax_privacy"), expected())


def test_optax_aggregates_to_the_same_update():
    """Optax divides by the number of rows: zeros stand for examples not drawn.

    For the gradients of a sample alone it divides by the sample's size, which is data
    and may be 0.
    """
    aggregate = optax.contrib.differentially_private_aggregate(
        CLIP, 0.0, jax.random.key(0)
    )
    params = parameters()
    state = aggregate.init(params)

    @jax.jit
    def advance(params, state, is_drawn):
        grads = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(params, *DATA)
        drawn_grads = jax.tree.map(
            lambda leaf: jnp.einsum("i,i...->i...", is_drawn, leaf), grads
        )
        mean, state = aggregate.update(drawn_grads, state)
        return jax.tree.map(
            lambda p, g: p - 0.1 * g * (EXAMPLES / DIVISOR), params, mean
        ), state

    for sample in drawn():
        is_drawn = np.isin(np.arange(EXAMPLES), sample).astype(np.float32)
        params, state = advance(params, state, is_drawn)
    close(params, expected())


@pytest.mark.parametrize("kind", ["dense", "streaming"])
def test_correlated_noise_advances_with_steps(kind):
    """Their noise of step t, whatever the number of batches of the steps before."""
    plain = privatizer(kind, 1.0)
    optimizer = privacy.virtual_batches(plain)
    zeros = jax.tree.map(jnp.zeros_like, parameters())
    state, other = optimizer.init(zeros), plain.init(zeros)
    update = jax.jit(
        lambda state, is_last: optimizer.update(zeros, state, is_last=is_last)
    )
    alone, found = jax.jit(lambda state: plain.update(zeros, state)), []
    for number in (1, 3, 2):
        for batch in range(number):
            updates, state = update(state, batch == number - 1)
        noise, other = alone(other)
        close(updates, noise)
        found.append(np.asarray(updates["first"]))
    assert np.std(found) > 0.01
    assert not np.array_equal(found[0], found[1])


def test_their_independent_noise_has_our_deviation():
    """The variance of N normal numbers has the relative deviation sqrt(2 / N)."""
    zeros = jnp.zeros(20_000)
    sensitivity = OURS.sensitivity("ADD_OR_REMOVE_ONE")
    for noise in (
        privatizer("independent", 3.0),
        privacy.gaussian_noise(sensitivity, 3.0, jax.random.key(0)),
    ):
        updates, _ = noise.update(zeros, noise.init(zeros))
        ratio = np.var(updates) / (3 * CLIP / DIVISOR) ** 2
        assert abs(ratio - 1) < 4 * np.sqrt(2 / zeros.size)


def test_our_batches_are_theirs():
    """The same arrays of our sample: one convention of padding."""
    sampler = privacy.PoissonSampler(
        EXAMPLES, 0.25, jax.random.key(0), batch_size=BATCH
    )
    for step in range(3):
        theirs = batch_selection.split_and_pad_global_batch(sampler.sample(step), BATCH)
        mine = [indices for indices, _ in sampler.batches(step)]
        assert_same_bits(mine, theirs)
