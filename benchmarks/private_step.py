"""A private train step against the plain one.

    python -m benchmarks.private_step [words of a model's name] [--rounds 11]

The plain step is the gradient of the summed loss and Adam; the private one is
``clipped_grad`` and ``dp_adam``; the peer is ``jax_privacy``'s clip, its Gaussian
privatizer and Adam. Times are medians of the ratios in rounds of shuffled order;
temporaries and arithmetic are XLA's counts. It needs the extra ``bench``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clipjax import privacy

from .interleaved import (
    Arm,
    compile_arm,
    median_milliseconds,
    paired_ratio,
    time_arms,
)
from .options import Parser, positive, table
from .per_example import peers
from .per_example.models import MODELS, Model, perceptron

WIDTHS = (784, 512, 512, 512, 10)
PATIENCE = 5.0
AT_A_TIME = 256
GATE = 1.2
NOISE = {"sensitivity": peers.CLIP_NORM, "noise_multiplier": 1.0}
COLUMNS = (
    "model",
    "plain, ms",
    "private",
    "jax_privacy",
    "noise alone, ms",
    "private, memory",
    "private, arithmetic",
)


def models() -> dict[str, Callable[[], Model]]:
    """Return the models of the gate, and the perceptron in larger batches."""
    chosen = {
        name: make
        for name, make in MODELS.items()
        if "transformer" in name or "perceptron" in name
    }
    for images in (1024, 4096):
        chosen[f"perceptron, {images} images"] = lambda images=images: perceptron(
            images, *WIDTHS
        )
    return chosen


def peer_adam() -> optax.GradientTransformation:
    """Return Adam on jax_privacy's noisy sums."""
    from jax_privacy import noise_addition  # pyright: ignore[reportMissingImports]

    noise = noise_addition.gaussian_privatizer(
        stddev=NOISE["sensitivity"] * NOISE["noise_multiplier"],
        prng_key=jax.random.key(0),
    )
    return optax.chain(noise, optax.adam(1e-3))


def ours_adam() -> optax.GradientTransformation:
    """Return Adam on our noisy sums."""
    return privacy.dp_adam(1e-3, key=jax.random.key(0), **NOISE)


def peer_grad(model: Model) -> peers.Step:
    """Return jax_privacy's clip, which computes at most 256 gradients at a time."""
    size = jax.tree.leaves(model.batch)[0].shape[0]
    at_a_time = {"microbatch_size": AT_A_TIME} if size > AT_A_TIME else {}
    return peers.jax_privacy(model.loss, len(model.batch), **at_a_time)


STEPS = {
    "plain": (
        lambda model: peers.plain(model.loss, len(model.batch)),
        lambda: optax.adam(1e-3),
    ),
    "private": (lambda model: peers.ours(model.loss, len(model.batch)), ours_adam),
    "jax_privacy": (peer_grad, peer_adam),
}


def step_arm(name: str, model: Model) -> Arm:
    """Compile a train step; parameters, state and batch are its carry, donated."""
    make_gradient, make_optimizer = STEPS[name]
    gradient, optimizer = make_gradient(model), make_optimizer()

    def step(carry: Any) -> Any:
        params, state, batch = carry
        updates, state = optimizer.update(gradient((params, *batch)), state, params)
        return optax.apply_updates(params, updates), state, batch

    # Copies, since every step donates its own.
    params, batch = jax.tree.map(jnp.array, (model.params, model.batch))
    return compile_arm(name, step, (params, optimizer.init(params), batch))


def noise_arm(model: Model) -> Arm:
    """Compile the noise alone, added to a donated sum."""
    noise = privacy.gaussian_noise(key=jax.random.key(0), **NOISE)
    total = jax.tree.map(jnp.array, model.params)
    return compile_arm(
        "noise", lambda carry: noise.update(*carry), (total, noise.init(total))
    )


def compare(name: str, model: Model, rounds: int) -> list[str]:
    """Measure one model, and return its row."""
    arms = {step: step_arm(step, model) for step in STEPS}
    noise = noise_arm(model)
    time_arms([*arms.values(), noise], rounds, patience=PATIENCE)
    plain, private, peer = arms.values()
    return [
        name,
        f"{median_milliseconds(plain):.1f}",
        f"{paired_ratio(private, plain):.2f}",
        f"{paired_ratio(peer, plain):.2f}",
        f"{median_milliseconds(noise):.1f}",
        f"{private.temporary_bytes / plain.temporary_bytes:.2f}",
        f"{private.flops / plain.flops:.2f}",
    ]


def main(arguments: list[str]) -> None:
    """Print a table of the models whose names have all the words given."""
    parser = Parser("private_step", __doc__)
    parser.add_argument("words", nargs="*", help="words of a model's name")
    parser.add_argument("--rounds", type=positive, default=11)
    options = parser.parse_args(arguments)
    print(table(COLUMNS, []))
    for name, make in models().items():
        if all(word in name for word in options.words):
            row = compare(name, make(), options.rounds)
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
