"""A clip adds at most two per cent to the train step of three kinds of nets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

from .. import transformer
from ..arms import size_in_bytes, train_arm
from ..clips import pairs
from ..conftest import Bench
from ..per_example.models import Model, convolutional, lstm
from ..timing import ratio, time_arms

ABOUT = """
A whole train step: `value_and_grad`, a global clip, AdamW and `apply_updates`, with
parameters and state donated. {what} × AdamW is the time divided by that of the step
without a clip, with its quartiles. "AdamW, again" is a second copy of that step: its
true ratio is 1, so that its distance from 1 is the noise.
"""
COLUMNS = {"step": "", "ms": ".1f", "× AdamW": ".3f", "GB accessed": ".3f"}
COLUMNS |= {"temporary MB": ".1f", "trace s": ".2f", "compile s": ".1f"}
BAR = 1.02


class Net(NamedTuple):
    """What is trained.

    Attributes:
        loss: of the parameters and the batch.
        params: the parameters.
        batch: the other arguments of the loss.
        what: model and batch, in a sentence.
        calls: steps in one measurement.
    """

    loss: Callable[..., jax.Array]
    params: Any
    batch: tuple[Any, ...]
    what: str
    calls: int = 1


def attention(small: bool, dtype: str) -> Net:
    """Return a Transformer of four layers."""
    few = transformer.Sizes(layers=1, width=32, vocabulary=50, batch=2, context=8)
    sizes = few if small else transformer.Sizes()

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        return transformer.loss(params, tokens, sizes.heads)

    what = (
        f"The model is a decoder-only Transformer with {sizes.layers} layers of width "
        f"{sizes.width}, on {sizes.batch} sequences of {sizes.context} tokens."
    )
    params = transformer.parameters(sizes, jnp.dtype(dtype))
    return Net(loss, params, (transformer.tokens(sizes),), what)


def of_examples(model: Model, what: str, calls: int) -> Net:
    """Return the mean loss over the examples of a batch."""

    def loss(params: Any, *batch: Any) -> jax.Array:
        axes = (None, *[0] * len(batch))
        return jnp.mean(jax.vmap(model.loss, axes)(params, *batch))

    return Net(loss, model.params, model.batch, what, calls)


def recurrent(small: bool, dtype: str) -> Net:
    """Return an LSTM through a scan."""
    del dtype
    model = lstm(2, 4, 8) if small else lstm(32, 64, 256)
    what = "The model is an LSTM of 256 units through `scan`, on 32 sequences of 64."
    return of_examples(model, what, calls=4)


def images(small: bool, dtype: str) -> Net:
    """Return a convolutional net."""
    del dtype
    what = (
        "The model has two convolutions and two dense layers, on 64 images of 28 x 28."
    )
    return of_examples(convolutional(2 if small else 64), what, calls=2)


NETS: dict[str, tuple[str, str, Callable[[bool, str], Net]]] = {
    "transformer": ("a Transformer", "float32", attention),
    "transformer_bfloat16": ("a Transformer", "bfloat16", attention),
    "lstm": ("an LSTM", "float32", recurrent),
    "convolutional": ("a convolutional net", "float32", images),
}


@pytest.mark.parametrize("kind", NETS)
def test_train_steps_cost_two_percent_more(bench: Bench, kind: str) -> None:
    """Compare no clip, Optax's global clip and clipjax's."""
    named, dtype, build = NETS[kind]
    net = build(bench.small, dtype)
    ours, theirs = pairs()["global"]
    adamw = optax.adamw(1e-3)
    steps = {
        "AdamW": adamw,
        "AdamW, again": adamw,
        "optax.clip_by_global_norm": optax.chain(theirs, adamw),
        "clip_by_global_norm": optax.chain(ours, adamw),
    }
    size = size_in_bytes(net.params) / jnp.dtype(dtype).itemsize / 1e6
    title = f"Train step of {named}, {size:.1f}M parameters in {dtype}"
    about = ABOUT.format(what=net.what)
    with bench.table(title, about, COLUMNS, part=kind) as table:
        arms = [
            train_arm(name, step, net.loss, net.params, net.batch)
            for name, step in steps.items()
        ]
        time_arms(arms, bench.rounds(17), calls=net.calls)
        for arm in arms:
            table.row(
                arm.name,
                arm.milliseconds.median,
                ratio(arm, arms[0]),
                arm.bytes_accessed / 1e9,
                arm.temporary_bytes / 1e6,
                arm.trace_seconds,
                arm.compile_seconds,
            )
        table.claim(
            "a train step with clip_by_global_norm, relative to one without a clip",
            ratio(arms[-1], arms[0]).median,
            at_most=BAR,
        )
