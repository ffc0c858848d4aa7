"""Book-keeping gives the norms and sums of a loop over single examples."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from oracle import flat

from clipjax.per_example.ghost import ghost, make_plan
from clipjax.per_example.jaxprs import trace
from clipjax.trees import NamedLeaves

BATCH = 4
NHWC = ("NHWC", "HWIO", "NHWC")
NWC = ("NWC", "WIO", "NWC")


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def tokens(length=7, size=11):
    # Few words, so that some of them come several times.
    return jax.random.randint(jax.random.key(0), (BATCH, length), 0, size)


def mlp():
    params = {"w1": normal(0, 8, 16), "b1": normal(1, 16), "w2": normal(2, 16, 3)}

    def loss(params, example):
        inputs, target = example
        hidden = jax.nn.gelu(inputs @ params["w1"] + params["b1"])
        return jnp.sum((hidden @ params["w2"] - target) ** 2)

    return params, loss, (normal(3, BATCH, 8), normal(4, BATCH, 3))


def tied_embedding():
    shapes = {"embedding": (11, 6), "query": (2, 6, 3), "out": (2, 3, 6)}
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}

    def loss(params, words):
        hidden = params["embedding"][words]
        heads = jnp.tanh(jnp.einsum("td,hdk->thk", hidden, params["query"]))
        hidden = jnp.einsum("thk,hkd->td", heads, params["out"])
        scores = jax.nn.log_softmax(hidden @ params["embedding"].T)
        return -jnp.sum(scores[jnp.arange(words.size), words])

    return params, loss, tokens()


def recurrent():
    shapes = {"input": (4, 6), "hidden": (6, 6), "bias": (6,), "out": (6, 2)}
    params = {
        name: 0.5 * normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())
    }

    def loss(params, inputs):
        def step(state, value):
            total = value @ params["input"] + state @ params["hidden"] + params["bias"]
            return jnp.tanh(total), jnp.tanh(total)

        _, states = jax.lax.scan(step, jnp.zeros(6), inputs)
        return jnp.sum((states @ params["out"]) ** 2)

    return params, loss, normal(5, BATCH, 9, 4)


def scanned_layers():
    params = {"kernel": normal(0, 3, 5, 5), "bias": normal(1, 3, 5)}

    @jax.checkpoint
    def layer(hidden, weights):
        return jnp.tanh(hidden @ weights["kernel"] + weights["bias"])

    def loss(params, inputs):
        step = lambda hidden, weights: (layer(hidden, weights), None)  # noqa: E731
        return jnp.sum(jax.lax.scan(step, inputs, params)[0] ** 2)

    return params, loss, normal(5, BATCH, 7, 5)


def slices():
    loss = lambda params, inputs: jnp.sum(  # noqa: E731
        (jnp.tanh(inputs @ params["w"][0]) @ params["w"][1]) ** 2
    )
    return {"w": normal(0, 2, 5, 5)}, loss, normal(5, BATCH, 7, 5)


def one_kernel_for_queries_keys_values():
    def loss(params, inputs):
        query, key, value = jnp.split(inputs @ params["qkv"], 3, -1)
        return jnp.sum((jax.nn.softmax(query @ key.T) @ value) ** 2)

    return {"qkv": normal(0, 5, 15)}, loss, normal(5, BATCH, 7, 5)


def used_twice():
    loss = lambda params, inputs: jnp.sum(  # noqa: E731
        jnp.tanh(jnp.tanh(inputs @ params["w"]) @ params["w"]) ** 2
    )
    return {"w": normal(0, 5, 5)}, loss, normal(5, BATCH, 7, 5)


def used_transposed():
    loss = lambda params, inputs: jnp.sum(  # noqa: E731
        jnp.tanh(jnp.tanh(inputs @ params["w"]) @ params["w"].T) ** 2
    )
    return {"w": normal(0, 5, 5)}, loss, normal(5, BATCH, 7, 5)


def mixture_of_experts():
    params = {"gate": normal(0, 5, 3), "expert": normal(1, 3, 5, 4)}

    def loss(params, inputs):
        gates = jax.nn.softmax(inputs @ params["gate"])
        outputs = jnp.tanh(jnp.einsum("td,edf->etf", inputs, params["expert"]))
        return jnp.sum(jnp.einsum("te,etf->tf", gates, outputs) ** 2)

    return params, loss, normal(5, BATCH, 7, 5)


def low_rank_adapter():
    frozen = normal(9, 5, 4)

    def loss(params, inputs):
        return jnp.sum((inputs @ frozen + inputs @ params["a"] @ params["b"]) ** 2)

    return {"a": normal(0, 5, 2), "b": normal(1, 2, 4)}, loss, normal(5, BATCH, 7, 5)


def convolutions():
    shapes = {"one": (3, 2, 2, 6), "depthwise": (3, 3, 1, 12), "up": (3, 3, 12, 2)}
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}

    def loss(params, image):
        convolve = jax.lax.conv_general_dilated
        hidden = convolve(
            *(image[None], params["one"], (2, 1), ((1, 0), (2, 1))),
            rhs_dilation=(1, 2),
            feature_group_count=2,
            dimension_numbers=NHWC,
        )
        hidden = convolve(
            *(jnp.tanh(hidden), params["depthwise"], (1, 1), "SAME"),
            feature_group_count=6,
            dimension_numbers=NHWC,
        )
        hidden = jax.lax.conv_transpose(
            jnp.tanh(hidden), params["up"], (2, 2), "SAME", dimension_numbers=NHWC
        )
        return jnp.sum(jnp.tanh(hidden) ** 2)

    return params, loss, normal(5, BATCH, 7, 6, 4)


def convolution_in_a_scan():
    def loss(params, inputs):
        def step(hidden, value):
            moved = jax.lax.conv_general_dilated(
                value[None], params["k"], (1,), "SAME", dimension_numbers=NWC
            )
            return jnp.tanh(moved[0] + hidden), None

        return jnp.sum(jax.lax.scan(step, jnp.zeros((5, 3)), inputs)[0] ** 2)

    return {"k": normal(1, 3, 2, 3)}, loss, normal(5, BATCH, 6, 5, 2)


def linen_lstm():
    cell = nn.RNN(nn.OptimizedLSTMCell(6))
    params = cell.init(jax.random.key(0), jnp.ones((1, 5, 3)))
    loss = lambda params, inputs: jnp.sum(cell.apply(params, inputs[None]) ** 2)  # noqa: E731
    return params, loss, normal(5, BATCH, 5, 3)


def linen_attention_with_dropout():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, inputs, deterministic):
            hidden = nn.LayerNorm()(inputs)
            hidden = nn.MultiHeadDotProductAttention(2, qkv_features=8)(hidden)
            return nn.Dropout(0.3)(nn.Dense(4)(hidden), deterministic=deterministic)

    block = Block()
    params = block.init(jax.random.key(0), jnp.ones((5, 4)), True)

    def loss(params, example):
        inputs, key = example
        outputs = block.apply(params, inputs, False, rngs={"dropout": key})
        return jnp.sum(outputs**2)

    keys = jax.random.split(jax.random.key(1), BATCH)
    return params, loss, (normal(5, BATCH, 5, 4), keys)


def nnx_network():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Conv(2, 3, (3, 3), rngs=rngs)
            self.norm = nnx.RMSNorm(3, rngs=rngs)
            self.last = nnx.Linear(3 * 16, 2, rngs=rngs)

        def __call__(self, image):
            return self.last(jax.nn.relu(self.norm(self.first(image))).reshape(-1))

    definition, params = nnx.split(Network(nnx.Rngs(0)), nnx.Param)
    loss = lambda params, image: jnp.sum(  # noqa: E731
        nnx.merge(definition, params)(image) ** 2
    )
    return params, loss, normal(5, BATCH, 4, 4, 2)


def dense_uses():
    def loss(params, inputs):
        hidden = inputs @ (params["w"] * 2) + jax.nn.softplus(params["s"])
        return jnp.sum(hidden**2) + jnp.sum(params["decay"] ** 2)

    params = {"w": normal(0, 5, 4), "s": normal(1, 4), "decay": normal(2, 3)}
    return params, loss, normal(5, BATCH, 7, 5)


MODELS = [
    mlp,
    tied_embedding,
    recurrent,
    scanned_layers,
    slices,
    one_kernel_for_queries_keys_values,
    used_twice,
    used_transposed,
    mixture_of_experts,
    low_rank_adapter,
    convolutions,
    convolution_in_a_scan,
    linen_lstm,
    linen_attention_with_dropout,
    nnx_network,
    dense_uses,
]


def with_aux(loss):
    return lambda params, example: (loss(params, example), ())


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_norms_and_sum(model):
    # Flax and Optax rely on promotion of dtypes and ranks.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params, loss, batch = model()
        weights = jnp.array([0.5, 0.0, 2.0, 1.0])

        @jax.jit
        def run(params, batch):
            found = ghost(with_aux(loss), params, batch)
            names = found.squares
            total = found.weighted_sum({name: weights for name in names})
            return found.squares, found.values, total

        squares, values, total = run(params, batch)
        single = jax.jit(jax.value_and_grad(loss))
        expected = np.zeros(flat(params).size)
        for i in range(BATCH):
            value, gradient = single(params, jax.tree.map(lambda x, i=i: x[i], batch))
            np.testing.assert_allclose(values[i], value, rtol=1e-5)
            whole = np.sum(flat(gradient) ** 2)
            for name, leaf in NamedLeaves.of(gradient).arrays.items():
                exact = np.sum(np.asarray(leaf, np.float64) ** 2)
                assert abs(squares[name][i] - exact) <= 1e-5 * whole, name
            expected += float(weights[i]) * flat(gradient)
    error = np.linalg.norm(flat(total) - expected)
    assert error <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("model", "dense"),
    [
        (mlp, {"b1"}),
        (tied_embedding, set()),
        (recurrent, {"bias"}),
        (scanned_layers, {"bias"}),
        (slices, set()),
        (used_transposed, set()),
        (dense_uses, {"w", "s", "decay"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_plan(model, dense):
    params, loss, batch = model()
    leaves = NamedLeaves.of(params)
    names, values = tuple(leaves.arrays), list(leaves.arrays.values())

    def flat_loss(values, example):
        arrays = dict(zip(names, values, strict=True))
        return loss(leaves.replace(arrays).tree(), example)

    with jax.numpy_rank_promotion("allow"):
        closed, _ = trace(flat_loss, values, jax.tree.map(lambda x: x[0], batch))
    plan = make_plan(closed.jaxpr, names, values)
    assert {names[leaf] for leaf in plan.dense} == dense


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_example_of_weight_zero_adds_nothing(bad):
    params, loss, (inputs, targets) = mlp()
    poisoned = inputs.at[1].set(bad)
    weights = jnp.array([1.0, 0.0, 1.0, 1.0])

    def run(inputs):
        found = ghost(with_aux(loss), params, (inputs, targets))
        return found.weighted_sum({name: weights for name in found.squares})

    clean, poisoned = jax.jit(run)(inputs), jax.jit(run)(poisoned)
    np.testing.assert_array_equal(flat(poisoned), flat(clean))


def test_sum_of_all_is_the_plain_gradient():
    params, loss, batch = tied_embedding()
    found = ghost(with_aux(loss), params, batch)
    ones = {name: jnp.ones(BATCH) for name in found.squares}
    plain = jax.grad(lambda p: jnp.sum(jax.vmap(lambda x: loss(p, x))(batch)))(params)
    difference = optax.tree.sub(found.weighted_sum(ones), plain)
    assert optax.tree.norm(difference) <= 1e-5 * optax.tree.norm(plain)
