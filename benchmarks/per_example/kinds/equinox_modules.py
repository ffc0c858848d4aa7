"""Modules of Equinox."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from .inputs import BATCH, filled, normal


def equinox_partitioned():
    """A module whose arrays are parameters and whose functions are not."""

    def modules(key):
        return eqx.nn.MLP(5, 2, 8, 1, key=key), eqx.nn.LayerNorm(5)

    both = eqx.filter_eval_shape(modules, jax.random.key(0))
    shapes, static = eqx.partition(
        both, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    )
    params = filled(shapes)

    def loss(params, inputs):
        network, norm = eqx.combine(params, static)
        return jnp.sum(jax.vmap(lambda row: network(norm(row)))(inputs) ** 2)

    return params, loss, normal(5, BATCH, 7, 5)


def equinox_attention():
    """The module itself as parameters: functions and all."""
    keys = jax.random.split(jax.random.key(0), 2)
    attention = eqx.nn.MultiheadAttention(
        2, 6, use_query_bias=True, use_key_bias=True, use_value_bias=True, key=keys[0]
    )
    params, static = eqx.partition(attention, eqx.is_inexact_array)

    def loss(params, inputs):
        layer = eqx.combine(params, static)
        return jnp.sum(layer(inputs, inputs, inputs) ** 2)

    return params, loss, normal(5, BATCH, 7, 6)


def equinox_cell():
    """A recurrent cell through a scan."""
    cell = eqx.nn.GRUCell(3, 5, key=jax.random.key(0))
    params, static = eqx.partition(cell, eqx.is_inexact_array)

    def loss(params, inputs):
        cell = eqx.combine(params, static)
        step = lambda state, value: (cell(value, state), None)  # noqa: E731
        return jnp.sum(jax.lax.scan(step, jnp.zeros(5), inputs)[0] ** 2)

    return params, loss, normal(5, BATCH, 6, 3)


KINDS = [equinox_partitioned, equinox_attention, equinox_cell]
