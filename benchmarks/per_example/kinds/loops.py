"""Loops over time and over layers, and branches."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .inputs import BATCH, normal, normals


def recurrent():
    """One cell through a scan."""
    shapes = {"input": (4, 6), "hidden": (6, 6), "bias": (6,), "out": (6, 2)}
    params = normals(shapes, size=0.5)

    def loss(params, inputs):
        def step(state, value):
            total = value @ params["input"] + state @ params["hidden"] + params["bias"]
            return jnp.tanh(total), jnp.tanh(total)

        _, states = jax.lax.scan(step, jnp.zeros(6), inputs)
        return jnp.sum((states @ params["out"]) ** 2)

    return params, loss, normal(5, BATCH, 9, 4)


def _layer(hidden, weights):
    return jnp.tanh(hidden @ weights["kernel"] + weights["bias"])


def scanned_layers_with_remat():
    """A scan over stacked layers, each of them computed again on the way back."""

    def loss(params, inputs):
        layer = jax.checkpoint(_layer)
        step = lambda hidden, weights: (layer(hidden, weights), None)  # noqa: E731
        return jnp.sum(jax.lax.scan(step, inputs, params)[0] ** 2)

    return normals({"kernel": (3, 5, 5), "bias": (3, 5)}), loss, normal(5, BATCH, 7, 5)


def scan_in_a_scan():
    """A recurrent cell in scanned layers, backwards in time."""

    def loss(params, inputs):
        def layer(inputs, weights):
            def step(state, value):
                state = jnp.tanh(value @ weights["in"] + state @ weights["hidden"])
                return state, state

            return jax.lax.scan(step, jnp.zeros(4), inputs, reverse=True)[1], None

        return jnp.sum(jax.lax.scan(layer, inputs, params)[0] ** 2)

    params = normals({"in": (3, 4, 4), "hidden": (3, 4, 4)})
    return params, loss, normal(5, BATCH, 5, 4)


def carried_by_a_scan():
    """A kernel that is part of the state."""

    def loss(params, inputs):
        def step(state, value):
            kernel, hidden = state
            return (kernel, jnp.tanh(value + hidden @ kernel)), None

        state = params["kernel"], jnp.zeros(4)
        return jnp.sum(jax.lax.scan(step, state, inputs)[0][1] ** 2)

    return normals({"kernel": (4, 4)}), loss, normal(5, BATCH, 5, 4)


def branches():
    """A kernel in either branch, by example, and one in both."""
    params = normals({"yes": (5, 4), "no": (5, 4), "out": (4, 2)})

    def loss(params, inputs):
        hidden = jax.lax.cond(
            inputs[0, 0] > 0,
            lambda: jnp.tanh(inputs @ params["yes"]) @ params["out"],
            lambda: inputs @ params["no"] @ params["out"],
        )
        return jnp.sum(hidden**2)

    return params, loss, normal(5, BATCH, 7, 5)


KINDS = [
    recurrent,
    scanned_layers_with_remat,
    scan_in_a_scan,
    carried_by_a_scan,
    branches,
]
