"""A private train step takes at most 1.2 times as long as the plain one.

None of these makes the noise of the small perceptron much cheaper: one draw for all
leaves, complex numbers, the generator rbg (slower), numbers in double precision
(slower). A third less is taken by a loop over rows, which no mesh could split, and half
of the bits by ``jax.threefry_partitionable(False)``, which meshes pay for with
communication.
"""

from __future__ import annotations

import functools

import pytest

from ..conftest import Bench
from ..per_example.models import Model, models, perceptron
from ..per_example.private_steps import GATE, STEPS, noise_arm, train_step
from ..timing import Arm, compile_arm, ratio, time_arms

ABOUT = """
The plain step is the gradient of the summed loss and Adam. The private step clips per
example, adds noise and applies Adam, by clipjax (`clipped_grad`, `dp_adam`) or by
jax_privacy (its clip of one example at a time, which is its fastest setting on CPUs,
its Gaussian privatizer, Adam). Both are divided by the plain step in the same rounds.
jax_privacy is left out for 4096 images, where it takes long. "Noise alone" is what the
noise takes when added to a sum in memory; memory and arithmetic are those of clipjax's
private step by XLA's counts.
"""
COLUMNS = {"model": "", "plain, ms": ".1f", "private": ".2f", "jax_privacy": ".2f"}
COLUMNS |= {"noise alone, ms": ".1f", "memory": ".2f", "memory, MB more": ".1f"}
COLUMNS |= {"arithmetic": ".2f"}
CHOSEN = (
    "transformer, 16 x 128 words",
    "tied Linen transformer, 16 x 128 words",
    "perceptron, 256 images",
)
WHY = (
    "Noise has a fixed cost per parameter, whatever the batch, and alone takes {noise} "
    "ms of a plain step's {plain} ms; much of it is the random bits of threefry, whose "
    "rounds XLA's CPU backend runs as a loop over the whole array, in three times its "
    "memory"
)


def chosen(small: bool) -> dict[str, functools.partial[Model]]:
    """Return two Transformers, and the perceptron with three sizes of the batch."""
    all_models = models(small=small)
    found = {name: all_models[name] for name in CHOSEN}
    _, *widths = found["perceptron, 256 images"].args
    for images in (1024, 4096):
        make = functools.partial(perceptron, images // (8 if small else 1), *widths)
        found[f"perceptron, {images} images"] = make
    return found


@pytest.mark.filterwarnings("ignore")  # of jax_privacy
def test_private_step_costs_little_more(bench: Bench) -> None:
    """Compare private steps with the plain one."""
    with bench.table("A private train step", ABOUT, COLUMNS) as table:
        for name, make in chosen(bench.small).items():
            model = make()
            arms = {
                step: compile_arm(step, *train_step(step, model))
                for step in STEPS
                if not (step == "jax_privacy" and "4096" in name)
            }
            noise = noise_arm(model)
            time_arms([*arms.values(), noise], bench.rounds(11), patience=1.0)
            plain, private, peer = (arms.get(step) for step in STEPS)
            assert plain and private
            time, memory = ratio(private, plain), relative_memory(private, plain)
            table.row(
                name,
                plain.milliseconds.median,
                time,
                ratio(peer, plain) if peer else None,
                noise.milliseconds.median,
                memory,
                (private.temporary_bytes - plain.temporary_bytes) / 1e6,
                private.flops / plain.flops,
            )
            why = WHY.format(
                noise=f"{noise.milliseconds.median:.0f}",
                plain=f"{plain.milliseconds.median:.0f}",
            )
            table.claim(f"{name}, time", time.median, at_most=GATE, why=why)
            table.claim(f"{name}, temporary memory", memory, at_most=GATE, why=why)
            if peer:
                claimed = f"{name}, time relative to jax_privacy"
                table.claim(claimed, ratio(private, peer).median, at_most=1.0)
            for arm in (*arms.values(), noise):
                arm.free()


def relative_memory(private: Arm, plain: Arm) -> float:
    """Return the private step's temporaries relative to the plain one's."""
    return private.temporary_bytes / plain.temporary_bytes
