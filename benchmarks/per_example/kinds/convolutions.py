"""Convolutions of every sort."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .inputs import BATCH, normal

NHWC = ("NHWC", "HWIO", "NHWC")
NWC = ("NWC", "WIO", "NWC")
OPTIONS = {
    "strided": {"window_strides": (2, 1), "padding": ((1, 0), (2, 1))},
    "dilated": {"rhs_dilation": (1, 2)},
    "grouped": {"feature_group_count": 2},
    "depthwise": {"feature_group_count": 4},
    "transposed": {"lhs_dilation": (2, 2), "padding": ((2, 1), (1, 2))},
}


def _convolution(name):
    options = {"window_strides": (1, 1), "padding": "VALID", **OPTIONS[name]}

    def kind():
        def loss(params, image):
            hidden = jax.lax.conv_general_dilated(
                *(image[None], params["kernel"]), dimension_numbers=NHWC, **options
            )
            return jnp.sum(jnp.tanh(hidden) ** 2)

        channels = 4 // options.get("feature_group_count", 1)
        params = {"kernel": normal(0, 3, 2, channels, 8)}
        return params, loss, normal(5, BATCH, 7, 6, 4)

    kind.__name__ = f"{name}_convolution"
    return kind


def convolutions_in_a_row():
    """Strided, dilated and grouped; depthwise; transposed."""
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
    """The same kernel at every step."""

    def loss(params, inputs):
        def step(hidden, value):
            moved = jax.lax.conv_general_dilated(
                value[None], params["k"], (1,), "SAME", dimension_numbers=NWC
            )
            return jnp.tanh(moved[0] + hidden), None

        return jnp.sum(jax.lax.scan(step, jnp.zeros((5, 3)), inputs)[0] ** 2)

    return {"k": normal(1, 3, 2, 3)}, loss, normal(5, BATCH, 6, 5, 2)


def convolutions_with_one_kernel():
    """One after the other, beside each other, and in a product as well."""

    def loss(params, images):
        convolve = jax.lax.conv_general_dilated
        one, two = (
            convolve(
                *(jnp.tanh(image)[None], params["k"], (1, 1), "SAME"),
                feature_group_count=2,
                dimension_numbers=NHWC,
            )
            for image in images
        )
        both = convolve(
            *(jnp.tanh(one * two), params["point"], (1, 1), "SAME"),
            dimension_numbers=NHWC,
        )
        return jnp.sum((jnp.tanh(both) @ params["point"][0, 0].T) ** 2)

    params = {"k": normal(0, 3, 3, 2, 4), "point": normal(1, 1, 1, 4, 4)}
    return params, loss, normal(5, BATCH, 2, 5, 5, 4)


KINDS = [
    *map(_convolution, OPTIONS),
    convolutions_in_a_row,
    convolution_in_a_scan,
    convolutions_with_one_kernel,
]
