"""Shapes, causality and initial weights of the demonstration models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipjax.demos.models.mlp import INITIALISATIONS, MLP, NORMALISATIONS
from clipjax.demos.models.rnn import CELLS, RNN
from clipjax.demos.models.transformer import Transformer

VOCABULARY, GAIN = 11, 1.7


def sequence_models():
    models = {
        f"rnn-{cell}-{layers}": lambda rngs, cell=cell, layers=layers: RNN(
            VOCABULARY, hidden=8, layers=layers, cell=cell, gain=GAIN, rngs=rngs
        )
        for cell, layers in zip(CELLS, (1, 1, 2), strict=True)
    }
    return models | {
        "transformer": lambda rngs: Transformer(
            VOCABULARY, context=9, layers=2, width=8, heads=2, rngs=rngs
        )
    }


SEQUENCE_MODELS = sequence_models()


@pytest.fixture(params=SEQUENCE_MODELS, scope="module")
def sequence_model(request):
    """Graph and parameters; built under jit, which is much faster than eagerly."""
    return nnx.split(jax.jit(lambda: SEQUENCE_MODELS[request.param](nnx.Rngs(0)))())


@functools.partial(jax.jit, static_argnums=0)
def apply(graph, params, tokens):
    return nnx.merge(graph, params)(tokens)


def test_sequence_model_gives_logits_for_each_position(sequence_model):
    logits = apply(*sequence_model, jnp.zeros((2, 9), jnp.int32))
    assert logits.shape == (2, 9, VOCABULARY)
    assert logits.dtype == jnp.float32


def test_sequence_model_does_not_look_ahead(sequence_model):
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, VOCABULARY)
    changed = tokens.at[:, 5].set((tokens[:, 5] + 1) % VOCABULARY)
    before, after = (apply(*sequence_model, each) for each in (tokens, changed))
    np.testing.assert_allclose(before[:, :5], after[:, :5], rtol=1e-5, atol=1e-7)
    # From the changed position on, every output differs: memory does reach forward.
    gap = np.abs(np.asarray(before - after))[:, 5:].max(axis=(0, 2))
    assert (gap > 1e-5).all()


def test_sequence_model_trains_every_parameter(sequence_model):
    graph, params = sequence_model
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (4, 9))
    weights = np.random.default_rng(2).standard_normal((4, 9, VOCABULARY), np.float32)

    @jax.jit
    def grad(params):
        return jax.grad(lambda p: (nnx.merge(graph, p)(tokens) * weights).sum())(params)

    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(grad(params)))


@pytest.mark.parametrize(
    "sequence_model",
    [name for name in SEQUENCE_MODELS if name.startswith("rnn")],
    indirect=True,
    scope="module",
)
def test_recurrent_blocks_are_orthogonal_times_gain(sequence_model):
    for cell in nnx.merge(*sequence_model).cells:
        kernel = np.asarray(cell.dense_h.kernel[...])
        for block in np.split(kernel, kernel.shape[1] // 8, axis=1):
            np.testing.assert_allclose(block @ block.T, GAIN**2 * np.eye(8), atol=1e-5)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("depth", [1, 4])
def test_mlp_has_depth_linear_layers(depth, normalisation):
    def build():
        model = MLP(
            20,
            10,
            depth=depth,
            width=16,
            normalisation=normalisation,
            rngs=nnx.Rngs(0),
        )
        return model(jnp.ones((5, 20))), nnx.state(model)

    logits, state = jax.eval_shape(build)
    assert logits.shape == (5, 10)
    kernels = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 2]
    assert len(kernels) == depth


@pytest.mark.parametrize(
    ("init", "variance"),
    [("he", 2 / 400), ("torch", 1 / (3 * 400)), ("lecun", 1 / 400)],
)
def test_mlp_initial_variance(init, variance):
    model = jax.jit(lambda: MLP(400, 300, depth=1, init=init, rngs=nnx.Rngs(0)))()
    kernel = np.asarray(model.readout.kernel[...])
    # 120,000 weights: the sample variance is within 3 % with a wide margin.
    assert kernel.var() == pytest.approx(variance, rel=0.03)
    assert model.readout.bias is not None
    bias = np.asarray(model.readout.bias[...])
    assert (np.abs(bias).max() > 0) == (init == "torch")
    assert np.abs(bias).max() <= 400**-0.5


def test_torch_initialisation_vanishes_with_depth_and_he_does_not():
    inputs = jax.random.normal(jax.random.key(0), (64, 256))

    def spread(init):
        @jax.jit
        def outputs(inputs):
            return MLP(256, 256, depth=10, init=init, rngs=nnx.Rngs(0))(inputs)

        # Over the batch: how much the output still depends on the input.
        return float(outputs(inputs).std(axis=0).mean())

    assert set(INITIALISATIONS) >= {"he", "torch"}
    assert spread("he") > 0.3
    assert spread("torch") < 0.01
