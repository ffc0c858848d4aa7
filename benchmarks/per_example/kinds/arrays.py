"""Models of plain arrays, without loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .inputs import BATCH, normal, normals, tokens


def dense():
    """Two layers, one with a bias."""
    params = normals({"w1": (8, 16), "b1": (16,), "w2": (16, 3)})

    def loss(params, example):
        inputs, target = example
        hidden = jax.nn.gelu(inputs @ params["w1"] + params["b1"])
        return jnp.sum((hidden @ params["w2"] - target) ** 2)

    return params, loss, (normal(3, BATCH, 8), normal(4, BATCH, 3))


def embedding_with_repeated_words():
    """A table that is only read."""

    def loss(params, words):
        return jnp.sum(jnp.tanh(params["embedding"][words] @ params["out"]) ** 2)

    return normals({"embedding": (5, 6), "out": (6, 3)}), loss, tokens(size=5)


def tied_embedding_and_einsum():
    """A table that is read and multiplied by, and products over several axes."""
    params = normals({"embedding": (11, 6), "query": (2, 6, 3), "out": (2, 3, 6)})

    def loss(params, words):
        hidden = params["embedding"][words]
        heads = jnp.tanh(jnp.einsum("td,hdk->thk", hidden, params["query"]))
        hidden = jnp.einsum("thk,hkd->td", heads, params["out"])
        scores = jax.nn.log_softmax(hidden @ params["embedding"].T)
        return -jnp.sum(scores[jnp.arange(words.size), words])

    return params, loss, tokens()


def attention_with_biases():
    """Queries, keys and values with biases; the keys' has a gradient of zero."""
    params = normals({name: (6, 2, 3) for name in ("query", "key", "value")})
    params |= {f"{name} bias": normal(9, 2, 3) for name in list(params)}

    def loss(params, inputs):
        query, key, value = (
            jnp.einsum("td,dhk->thk", inputs, params[name]) + params[f"{name} bias"]
            for name in ("query", "key", "value")
        )
        scores = jax.nn.softmax(jnp.einsum("thk,shk->hts", query, key))
        return jnp.sum(jnp.einsum("hts,shk->thk", scores, value) ** 2)

    return params, loss, normal(5, BATCH, 7, 6)


def one_kernel_for_queries_keys_values():
    """A kernel whose product is split."""

    def loss(params, inputs):
        query, key, value = jnp.split(inputs @ params["qkv"], 3, -1)
        return jnp.sum((jax.nn.softmax(query @ key.T) @ value) ** 2)

    return {"qkv": normal(0, 5, 15)}, loss, normal(5, BATCH, 7, 5)


def slices():
    """Layers stacked in one array: slices that must not be taken for the same."""

    def loss(params, inputs):
        return jnp.sum((jnp.tanh(inputs @ params["w"][0]) @ params["w"][1]) ** 2)

    return {"w": normal(0, 2, 5, 5)}, loss, normal(5, BATCH, 7, 5)


def used_twice():
    """The same kernel in two layers."""

    def loss(params, inputs):
        hidden = jnp.tanh(inputs @ params["w"])
        return jnp.sum(jnp.tanh(hidden @ params["w"]) ** 2)

    return {"w": normal(0, 5, 5)}, loss, normal(5, BATCH, 7, 5)


def used_transposed():
    """The same kernel in two layers, once transposed."""

    def loss(params, inputs):
        hidden = jnp.tanh(inputs @ params["w"])
        return jnp.sum(jnp.tanh(hidden @ params["w"].T) ** 2)

    return {"w": normal(0, 5, 5)}, loss, normal(5, BATCH, 7, 5)


def mixture_of_experts():
    """All experts, mixed by gates."""
    params = normals({"gate": (5, 3), "expert": (3, 5, 4)})

    def loss(params, inputs):
        gates = jax.nn.softmax(inputs @ params["gate"])
        outputs = jnp.tanh(jnp.einsum("td,edf->etf", inputs, params["expert"]))
        return jnp.sum(jnp.einsum("te,etf->tf", gates, outputs) ** 2)

    return params, loss, normal(5, BATCH, 7, 5)


def best_two_experts():
    """The best two experts of each word, whose kernels are looked up."""
    params = normals({"gate": (5, 4), "expert": (4, 5, 4)})

    def loss(params, inputs):
        scores, chosen = jax.lax.top_k(inputs @ params["gate"], 2)
        kernels = params["expert"][chosen]
        outputs = jnp.tanh(jnp.einsum("td,tkdf->tkf", inputs, kernels))
        mixed = jnp.einsum("tk,tkf->tf", jax.nn.softmax(scores), outputs)
        return jnp.sum(mixed**2)

    return params, loss, normal(5, BATCH, 7, 5)


def best_two_experts_by_dispatch():
    """The best two experts of each word, to which words are sent."""
    params = normals({"gate": (5, 4), "up": (4, 5, 6), "down": (4, 6, 5)})

    def loss(params, inputs):
        scores, chosen = jax.lax.top_k(inputs @ params["gate"], 2)
        gates = jnp.einsum(
            "tk,tke->te", jax.nn.softmax(scores), jax.nn.one_hot(chosen, 4)
        )
        sent = jnp.einsum("te,td->etd", (gates > 0).astype(inputs.dtype), inputs)
        hidden = jax.nn.relu(jnp.einsum("etd,edf->etf", sent, params["up"]))
        outputs = jnp.einsum("etf,efd->etd", hidden, params["down"])
        return jnp.sum(jnp.einsum("te,etd->td", gates, outputs) ** 2)

    return params, loss, normal(5, BATCH, 7, 5)


def low_rank_adapter():
    """Two thin kernels beside a constant one."""
    frozen = normal(9, 5, 4)

    def loss(params, inputs):
        return jnp.sum((inputs @ frozen + inputs @ params["a"] @ params["b"]) ** 2)

    return normals({"a": (5, 2), "b": (2, 4)}), loss, normal(5, BATCH, 7, 5)


def frozen_integer_and_absent():
    """Parameters behind stop_gradient, integers and None beside trained ones."""
    params = normals({"first": (5, 4), "last": (4, 2), "frozen": (4, 4)})
    params |= {"table": jnp.arange(4), "none": None}

    def loss(params, inputs):
        hidden = jnp.tanh(inputs @ params["first"])
        hidden = hidden @ jax.lax.stop_gradient(params["frozen"])
        return jnp.sum((hidden[:, params["table"]] @ params["last"]) ** 2)

    return params, loss, normal(5, BATCH, 7, 5)


def auxiliary_output():
    """A loss that gives its hidden units as well."""

    def loss(params, inputs):
        hidden = jnp.tanh(inputs @ params["first"])
        return jnp.sum((hidden @ params["last"]) ** 2), {"hidden": hidden}

    return normals({"first": (5, 4), "last": (4, 2)}), loss, normal(5, BATCH, 7, 5)


def custom_derivative():
    """A product inside a function with its own derivative."""

    @jax.custom_vjp
    def scaled(weights, inputs):
        return inputs @ weights

    def backward(saved, cotangent):
        weights, inputs = saved
        return 2 * inputs.T @ cotangent, cotangent @ weights.T

    scaled.defvjp(lambda w, x: (x @ w, (w, x)), backward)

    def loss(params, inputs):
        return jnp.sum(jnp.tanh(scaled(params["first"], inputs) @ params["last"]) ** 2)

    return normals({"first": (5, 4), "last": (4, 2)}), loss, normal(5, BATCH, 7, 5)


def joined_kernels():
    """Kernels joined along the outputs, the inputs, and as a stack."""

    def loss(params, inputs):
        wide = jnp.concatenate([params["a"], params["b"].T], 1).astype(jnp.float32)
        hidden = jnp.tanh(inputs @ wide + params["bias"])
        hidden = jnp.tanh(hidden @ jnp.concatenate([params["b"], params["c"]]))
        stacked = jnp.stack([params["d"], params["e"]])
        return jnp.sum(jnp.einsum("td,idf->itf", hidden, stacked) ** 2)

    shapes = {"a": (5, 3), "b": (2, 5), "c": (3, 5), "d": (5, 4), "e": (5, 4)}
    return normals(shapes | {"bias": (5,)}), loss, normal(5, BATCH, 7, 5)


def experts_looked_up():
    """A kernel for each word, by its index."""

    def loss(params, words):
        hidden = jnp.tanh(jnp.einsum("tdf,d->tf", params["expert"][words], jnp.ones(5)))
        return jnp.sum(hidden**2)

    return normals({"expert": (11, 5, 4)}), loss, tokens()


def scaled_repeated_and_bare():
    """Uses other than in products: by a factor, an activation, a penalty."""

    def loss(params, inputs):
        hidden = inputs @ (params["w"] * 2) + jax.nn.softplus(params["s"])
        return jnp.sum(hidden**2) + jnp.sum(params["decay"] ** 2)

    return (
        normals({"w": (5, 4), "s": (4,), "decay": (3,)}),
        loss,
        normal(5, BATCH, 7, 5),
    )


KINDS = [
    dense,
    embedding_with_repeated_words,
    tied_embedding_and_einsum,
    attention_with_biases,
    one_kernel_for_queries_keys_values,
    slices,
    used_twice,
    used_transposed,
    mixture_of_experts,
    best_two_experts,
    best_two_experts_by_dispatch,
    low_rank_adapter,
    frozen_integer_and_absent,
    auxiliary_output,
    custom_derivative,
    joined_kernels,
    experts_looked_up,
    scaled_repeated_and_bare,
]
