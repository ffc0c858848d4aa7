"""A private train step against the plain one.

    python -m benchmarks.private_step [words of a model's name] [--rounds 11]

The plain step is the gradient of the summed loss and Adam; the private one is
``clipped_grad`` and ``dp_adam``; the peer is ``jax_privacy``'s clip, its Gaussian
privatizer and Adam. Times are medians of the ratios in rounds of shuffled order;
temporaries and arithmetic are XLA's counts. It needs the extra ``bench``.

On a CPU the noise costs a fixed 10 to 30 ns for each parameter, the more the busier the
machine: much of it is the bits of threefry, whose rounds XLA runs as a loop over the
whole array, in three times its memory. With 0.93M parameters the perceptron is
therefore beyond 1.2: in time 2.1 to 2.6 for 256 images, 1.24 to 1.29 for 1024, and 1.12
for 4096; in temporaries 3.4 for 256, which are 10 MB more, and 0.94 for 1024, since the
noise is drawn when the gradient's memory is free again. None of these makes the noise
much cheaper there: one draw for all leaves, complex numbers, the generator rbg
(slower), numbers in double precision (slower). A third less is taken by a loop over
rows, which no mesh could split, and half of the bits by
``jax.threefry_partitionable(False)``, which meshes pay for with communication.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clipjax import privacy

from .options import Parser, positive, table
from .per_example import peers
from .per_example.models import MODELS, Model, perceptron
from .timing import (
    Arm,
    compile_arm,
    median_milliseconds,
    paired_ratio,
    time_arms,
)

WIDTHS = (784, 512, 512, 512, 10)
PATIENCE = 5.0
GATE = 1.2
NOISE: dict[str, Any] = {"sensitivity": peers.CLIP_NORM, "noise_multiplier": 1.0}
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


STEPS = {
    "plain": (peers.plain, lambda: optax.adam(1e-3)),
    "private": (peers.ours, ours_adam),
    "jax_privacy": (peers.jax_privacy, peer_adam),
}


def train_step(name: str, model: Model) -> tuple[Callable[[Any], Any], Any]:
    """Return a train step and its carry: parameters, optimizer's state and batch."""
    make_gradient, make_optimizer = STEPS[name]
    gradient = make_gradient(model.loss, len(model.batch))
    optimizer = make_optimizer()

    def step(carry: Any) -> Any:
        params, state, batch = carry
        updates, state = optimizer.update(gradient((params, *batch)), state, params)
        return optax.apply_updates(params, updates), state, batch

    # Copies, since every step donates its own.
    params, batch = jax.tree.map(jnp.array, (model.params, model.batch))
    return step, (params, optimizer.init(params), batch)


def compiled_step(name: str, model: Model) -> Any:
    """Compile a train step that donates its carry."""
    step, carry = train_step(name, model)
    return jax.jit(step, donate_argnums=0).lower(carry).compile()


def noise_arm(model: Model) -> Arm:
    """Compile the noise alone, added to a donated sum."""
    noise = privacy.gaussian_noise(key=jax.random.key(0), **NOISE)
    total = jax.tree.map(jnp.array, model.params)
    return compile_arm(
        "noise", lambda carry: noise.update(*carry), (total, noise.init(total))
    )


def compare(name: str, model: Model, rounds: int) -> list[str]:
    """Measure one model, and return its row."""
    # A copy of the perceptron for each of 1024 examples takes 4 GB.
    is_small = jax.tree.leaves(model.batch)[0].shape[0] <= 256
    steps = STEPS if is_small else ("plain", "private")
    arms = {step: compile_arm(step, *train_step(step, model)) for step in steps}
    noise = noise_arm(model)
    time_arms([*arms.values(), noise], rounds, patience=PATIENCE)
    plain, private = arms["plain"], arms["private"]
    peer = arms.get("jax_privacy")
    return [
        name,
        f"{median_milliseconds(plain):.1f}",
        f"{paired_ratio(private, plain):.2f}",
        f"{paired_ratio(peer, plain):.2f}" if peer else "",
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
