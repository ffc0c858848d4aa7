"""Shapes, causality and initial weights of the demonstration models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipjax.demos.models.convolution import EncoderDecoder
from clipjax.demos.models.deep import DeepMLP
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


@pytest.mark.parametrize("is_pre_norm", [False, True])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_deep_mlp_without_branches_is_its_shortcuts_and_readout(
    normalisation, is_pre_norm
):
    inputs = jax.random.normal(jax.random.key(0), (6, 8))

    @jax.jit
    def outputs(inputs):
        model = DeepMLP(
            8,
            3,
            depth=5,
            width=8,
            normalisation=normalisation,
            is_pre_norm=is_pre_norm,
            shortcut=0.5,
            branch=0.0,
            rngs=nnx.Rngs(0),
        )
        return model(inputs), model.readout(inputs)

    found, direct = outputs(inputs)
    np.testing.assert_allclose(found, direct / 16, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("normalisation", "axis"), [("layer", 1), ("batch", 0), ("rms", None)]
)
def test_deep_mlp_normalizes_before_the_relu(normalisation, axis):
    inputs = 7 + 5 * jax.random.normal(jax.random.key(0), (64, 32))

    @jax.jit
    def normalized(inputs):
        model = DeepMLP(
            32, 3, depth=2, width=32, normalisation=normalisation, rngs=nnx.Rngs(0)
        )
        layer = model.hidden[0]
        return layer.norm(layer.linear(inputs)), layer(inputs)

    hidden, found = normalized(inputs)
    np.testing.assert_allclose(found, np.maximum(hidden, 0), atol=1e-6)
    if axis is None:
        np.testing.assert_allclose(np.square(hidden).mean(1), 1, rtol=1e-3)
    else:
        np.testing.assert_allclose(hidden.mean(axis), 0, atol=1e-3)
        np.testing.assert_allclose(hidden.std(axis), 1, rtol=1e-3)


@pytest.mark.parametrize("skips", [False, True])
def test_encoder_decoder_gives_a_value_for_each_pixel(skips):
    def build():
        model = EncoderDecoder(
            2, 5, width=4, depth=6, parts=3, skips=skips, rngs=nnx.Rngs(0)
        )
        hidden = jnp.ones((3, 8, 12, 2))
        sizes = [hidden := layer(hidden) for layer in model.encoder]
        return model(jnp.ones((3, 8, 12, 2))), sizes

    outputs, sizes = jax.eval_shape(build)
    assert outputs.shape == (3, 8, 12, 5)
    assert [each.shape[1] for each in sizes] == [8, 8, 4, 4, 2, 2]


def test_skips_carry_the_image_past_the_coarsest_level():
    """Without them the outputs of the four pixels of a block come from one number."""
    image = jax.random.normal(jax.random.key(0), (1, 4, 4, 1))

    @functools.partial(jax.jit, static_argnums=1)
    def outputs(image, skips):
        model = EncoderDecoder(
            1,
            1,
            width=16,
            depth=2,
            parts=2,
            kernel=1,
            skips=skips,
            rngs=nnx.Rngs(0),
        )
        return model(image)[0, :, :, 0]

    def spread(skips):
        blocks = np.asarray(outputs(image, skips)).reshape(2, 2, 2, 2)
        return np.ptp(blocks, axis=(1, 3)).max()

    assert spread(False) == 0
    assert spread(True) > 0.1
