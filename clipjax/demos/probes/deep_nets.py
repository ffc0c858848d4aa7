"""Gradient norms of deep networks at initialization, by normalization and shortcut."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from ...plotting import plot_lines
from ..models.deep import DeepMLP
from ..options import Whole
from .arguments import require
from .base import Report, beside, number
from .gradients import random_loss_grads

DEPTHS = (10, 50)
ARMS = {
    "plain": {},
    "plain, torch's weights": {"init": "torch"},
    "batch norm": {"normalisation": "batch"},
    "layer norm": {"normalisation": "layer"},
    "x + f(x)": {"shortcut": 1.0},
    "pre-layer-norm": {
        "shortcut": 1.0,
        "normalisation": "layer",
        "is_pre_norm": True,
    },
    "x + f(x) / L": {"shortcut": 1.0, "branch": None},
}


class Measured(NamedTuple):
    """Norms of gradients at initialization.

    Attributes:
        arms: names of the networks.
        depths: `(depths,)`, number of linear layers L.
        layers: by arm, `(seeds, L)` for the larger L: norm of each weight's gradient.
        first: `(arms, depths, seeds)`, of the first weight.
        last: the same of the last weight.
        total: the same of all parameters.
    """

    arms: tuple[str, ...]
    depths: np.ndarray
    layers: dict[str, np.ndarray]
    first: np.ndarray
    last: np.ndarray
    total: np.ndarray

    def growth(self, arm: str) -> np.ndarray:
        """Growth per layer of the first weight's gradient, `(seeds,)`."""
        short, long = self.first[self.arms.index(arm)]
        return (long / short) ** (1 / np.diff(self.depths)[0])


def measure(
    *,
    seeds: int = 3,
    width: int = 128,
    batch: int = 256,
    watch: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Differentiate ReLU networks of 10 and 50 layers under a random linear loss.

    Weights are He's unless the arm says otherwise, biases are 0, inputs Gaussian.

    Args:
        seeds: independent weights, inputs and losses.
        width: of all layers, and number of inputs and outputs.
        batch: number of inputs.
        watch: called with the name of the next network.
    """
    require(Whole(), seeds=seeds, width=width, batch=batch)

    def norms(arm: str, depth: int) -> tuple[np.ndarray, np.ndarray]:
        options = dict(ARMS[arm])
        if "branch" in options:
            options["branch"] = 1 / depth

        def of_seed(key: jax.Array) -> Any:
            weights, drawn, loss = jax.random.split(key, 3)
            rngs = nnx.Rngs(params=weights)
            model = DeepMLP(
                width, width, depth=depth, width=width, rngs=rngs, **options
            )
            inputs = jax.random.normal(drawn, (batch, width))
            return random_loss_grads(model, inputs, loss)

        watch(f"{arm}, {depth} layers")
        # By NumPy: JAX would compile the norms of all leaves anew for each depth.
        grads = jax.device_get(nnx.to_pure_dict(jax.vmap(of_seed)(keys)))
        hidden = [grads["hidden"][index]["linear"] for index in range(depth - 1)]
        weights = [layer["kernel"] for layer in [*hidden, grads["readout"]]]
        layers = np.stack([_lengths(leaf) for leaf in weights], axis=1)
        every = np.stack([_lengths(leaf) for leaf in jax.tree.leaves(grads)], axis=1)
        return layers, np.linalg.norm(every, axis=1)

    keys = jax.random.split(jax.random.key(0), seeds)
    found = [[norms(arm, depth) for depth in DEPTHS] for arm in ARMS]
    return Measured(
        tuple(ARMS),
        np.array(DEPTHS),
        {arm: runs[-1][0] for arm, runs in zip(ARMS, found, strict=True)},
        np.array([[layers[:, 0] for layers, _ in runs] for runs in found]),
        np.array([[layers[:, -1] for layers, _ in runs] for runs in found]),
        np.array([[total for _, total in runs] for runs in found]),
    )


def _lengths(leaf: np.ndarray) -> np.ndarray:
    """The norm by seed."""
    return np.linalg.norm(leaf.reshape(len(leaf), -1), axis=1)


REPORTED = [
    ("plain", 10, "first", ".063"),
    ("plain", 10, "last", ".075"),
    ("plain", 50, "first", ".059"),
    ("plain", 50, "last", ".065"),
    ("plain, torch's weights", 10, "first", "2.0e-5"),
    ("plain, torch's weights", 10, "last", "2.4e-5"),
    ("batch norm", 10, "first", ".252"),
    ("batch norm", 10, "last", ".044"),
    ("batch norm", 50, "first", "546"),
    ("batch norm", 50, "last", ".044"),
    ("layer norm", 50, "first", None),
    ("layer norm", 50, "last", None),
    ("x + f(x)", 10, "total", "10"),
    ("x + f(x)", 50, "total", "1.2e10"),
    ("pre-layer-norm", 50, "total", "1.2"),
    ("x + f(x) / L", 50, "total", ".41"),
]


def report(measured: Measured) -> Report:
    """The norms next to reported ones, and each layer's at the larger depth."""
    rows = []
    for arm, depth, which, said in REPORTED:
        place = measured.arms.index(arm), list(measured.depths).index(depth)
        values = getattr(measured, which)[place]
        rows.append((f"{arm}, {depth} layers, {which}", said, values))
    growth = measured.growth("batch norm")
    rows.append(("batch norm, growth per layer", "1.212", growth))
    figure = plot_lines(
        measured.layers,
        np.arange(1, measured.depths[-1] + 1),
        x_label="layer, from the input",
        y_label="gradient norm of its weight",
        title=f"{measured.depths[-1]} layers at initialization",
        is_log=(False, True),
    )
    tame = [
        arm
        for arm, norms in zip(measured.arms, measured.total[:, -1], strict=True)
        if 0.01 < norms.min() and norms.max() < 10
    ]
    return Report(
        [beside("Norms of the gradient of a random linear loss", rows)],
        [
            "With batch norm the first layer's gradient grows by "
            f"{number(growth.mean())} per layer; √(π/(π − 1)) = 1.211 is the theory "
            "of wide layers and large batches.",
            f"At {measured.depths[-1]} layers the gradient's norm is between 0.01 and "
            f"10 for: {', '.join(tame) or 'none'}.",
            "Whether the largest gradient is at the input or at the output depends on "
            "the architecture.",
            "Width, pre-norm and factor of the reported networks are not known: where "
            "those differ, this may be why.",
        ],
        figure,
    )
