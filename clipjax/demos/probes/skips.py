"""The first layer's gradient of an encoder and decoder, with and without skips."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from ...diagnostics import leaf_norms
from ...plotting import plot_lines
from ..models.convolution import EncoderDecoder
from ..options import Whole
from .arguments import require
from .base import Report, beside, number
from .gradients import random_loss_grads

SCALES = (1.0, 2.0, 4.0)


class Measured(NamedTuple):
    """Arrays of shape `(seeds, scales)`: norm of the gradient of the first weight.

    Attributes:
        scales: `(scales,)`, variance of the weights times their fan-in; 2 is He's.
        dense: fully connected layers without skips.
        dense_skips: the same with concatenated skips.
        convolution: 3 x 3 convolutions without skips.
        convolution_skips: the same with concatenated skips.
    """

    scales: np.ndarray
    dense: np.ndarray
    dense_skips: np.ndarray
    convolution: np.ndarray
    convolution_skips: np.ndarray


def measure(
    *,
    seeds: int = 3,
    depth: int = 12,
    watch: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Differentiate `EncoderDecoder` under a random linear loss.

    Args:
        seeds: independent weights, images and losses.
        depth: layers of the encoder, and of the decoder; even, since the convolutional
            network halves its resolution once.
        watch: called with the name of the next network.
    """
    require(Whole(), seeds=seeds, depth=depth)
    if depth % 2:
        raise ValueError(f"depth must be even, got {depth}")

    def norms(
        shape: tuple[int, ...], *, kernel: int, parts: int, skips: bool
    ) -> np.ndarray:
        def of_seed(key: jax.Array, scale: float) -> jax.Array:
            weights, drawn, loss = jax.random.split(key, 3)
            model = EncoderDecoder(
                shape[-1],
                shape[-1],
                width=shape[-1],
                depth=depth,
                parts=parts,
                kernel=kernel,
                skips=skips,
                scale=scale,
                rngs=nnx.Rngs(params=weights),
            )
            grads = random_loss_grads(model, jax.random.normal(drawn, shape), loss)
            return leaf_norms(grads)["encoder/0/kernel"]

        watch(f"{'with' if skips else 'without'} skips, kernel {kernel}")
        # One program for all scales.
        run = jax.jit(jax.vmap(of_seed, (0, None)))
        columns = [run(keys, scale) for scale in SCALES]
        return np.stack(columns, axis=1)

    keys = jax.random.split(jax.random.key(0), seeds)
    # A 1 x 1 convolution of one pixel is a fully connected layer.
    dense, images = (256, 1, 1, 64), (16, 8, 8, 16)
    return Measured(
        np.array(SCALES),
        norms(dense, kernel=1, parts=1, skips=False),
        norms(dense, kernel=1, parts=1, skips=True),
        norms(images, kernel=3, parts=2, skips=False),
        norms(images, kernel=3, parts=2, skips=True),
    )


def report(measured: Measured) -> Report:
    """The norms next to reported ones for fully connected layers."""
    kinds = {
        "dense, no skip": (measured.dense, ("2.8e-5", ".080", "232")),
        "dense, skips": (measured.dense_skips, (".048", ".096", "6.6")),
        "convolution, no skip": (measured.convolution, (None, None, None)),
        "convolution, skips": (measured.convolution_skips, (None, None, None)),
    }
    rows = [
        (f"{name}, scale {scale:g}", said[index], values[:, index])
        for name, (values, said) in kinds.items()
        for index, scale in enumerate(measured.scales)
    ]
    figure = plot_lines(
        {name: values for name, (values, _) in kinds.items()},
        measured.scales,
        x_label="variance of the weights times fan-in",
        y_label="gradient norm of the first weight",
        title="Encoder and decoder at initialization",
        is_log=(True, True),
    )
    ranges = [
        number(np.median(values[:, -1]) / np.median(values[:, 0]))
        for values in (
            measured.dense,
            measured.dense_skips,
            measured.convolution,
            measured.convolution_skips,
        )
    ]
    return Report(
        [beside("Gradient of the first encoder layer's weight", rows)],
        [
            f"From scale {measured.scales[0]:g} to {measured.scales[-1]:g} the "
            f"gradient changes by a factor of {ranges[0]} without skips and "
            f"{ranges[1]} with them (dense), {ranges[2]} and {ranges[3]} "
            "(convolutions).",
            "The reported network's loss and last layer are not known.",
        ],
        figure,
    )
