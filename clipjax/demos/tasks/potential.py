"""Learn the Lennard-Jones potential, whose wall gives huge gradients."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from ...plotting.arms import read_arms
from ...plotting.canvas import GREY, open_canvas
from ...plotting.curves import draw_arms
from ..models.potential import forces
from .base import Goal, Outcome, Picture, Task
from .places import on_examples

WALL = (0.75, 0.9)  # distances in units of σ, where the energy is above 6 ε
MAIN = (0.97, 2.5)
NEAREST = 0.95  # of the pairs that are no close contacts
FORCE_WEIGHT = 0.1
TRUE = "Lennard-Jones"


def energies(distances: jax.Array) -> jax.Array:
    """Return 4 (r^-12 - r^-6), in units of ε, for r in units of σ."""
    attraction = distances**-6
    return 4 * (attraction**2 - attraction)


def draw_pairs(key: jax.Array, pairs: int, contacts: float) -> jax.Array:
    """Return random distances, a fraction of which are close contacts."""
    which, near, far = jax.random.split(key, 3)
    return jnp.where(
        jax.random.uniform(which, (pairs,)) < contacts,
        jax.random.uniform(near, (pairs,), minval=WALL[0], maxval=WALL[1]),
        jax.random.uniform(far, (pairs,), minval=NEAREST, maxval=MAIN[1]),
    )


def pair_loss(model: Callable[[jax.Array], jax.Array], batch: jax.Array) -> jax.Array:
    """Return the mean squared error of energies, plus 0.1 times that of forces."""
    energy_error = model(batch) - energies(batch)
    force_error = forces(model, batch) - forces(energies, batch)
    return jnp.mean(energy_error**2 + FORCE_WEIGHT * force_error**2)


class Regions(NamedTuple):
    """Distances for scores and figures: each array covers one region evenly."""

    main: jax.Array
    wall: jax.Array
    all: jax.Array


def regions(points: int = 256) -> Regions:
    """Return evenly spaced distances of each region."""
    limits = (MAIN, WALL, (WALL[0], MAIN[1]))
    return Regions(*(jnp.linspace(*each, points) for each in limits))


def force_errors(
    model: Callable[[jax.Array], jax.Array], held_out: Regions
) -> dict[str, jax.Array]:
    """Return the root mean square error of the forces of each region."""

    def error(distances: jax.Array) -> jax.Array:
        gap = forces(model, distances) - forces(energies, distances)
        return jnp.sqrt(jnp.mean(gap**2))

    return {
        "F-rmse main": error(held_out.main),
        "F-rmse wall": error(held_out.wall),
    }


def potential_task(
    build: Callable[[jax.Array], nnx.Module],
    *,
    batch: int = 32,
    contacts: float = 0.02,
) -> Task:
    """Return the task of energies and forces of pairs; every batch is new.

    Args:
        build: key to a model that maps distances `(pairs,)` to energies.
        batch: pairs per step.
        contacts: fraction of the pairs that are close contacts.
    """

    def sample(key: jax.Array, step: jax.Array, train: Any) -> jax.Array:
        del train
        return draw_pairs(jax.random.fold_in(key, step), batch, contacts)

    def outcome(model: Any, held_out: Regions) -> dict[str, jax.Array]:
        distances = held_out.all
        return {"energy": model(distances), "force": forces(model, distances)}

    return Task(
        source=f"Lennard-Jones pairs at distances {NEAREST} to {MAIN[1]} σ, "
        f"{contacts:.2g} of them close contacts at {WALL[0]} to {WALL[1]} σ",
        build=build,
        train=(),
        held_out=regions(),
        sample=sample,
        loss=pair_loss,
        evaluate=force_errors,
        unit="ε², forces in ε/σ",
        # Two of five batches of 32 pairs contain no close contact at all.
        goal=Goal(must_fall=False),
        places={"per_example": on_examples},
        picture=Picture(
            outcome,
            draw_curves,
            "Energy and force of a pair against its distance: the median over seeds "
            "and their range. Close contacts, the wall, are shaded, and the force is "
            "scored to the right of the dotted line, in the main region. The vertical "
            "axes are linear between -1 and 1 and logarithmic beyond.",
        ),
    )


def draw_curves(outcomes: Mapping[str, Outcome]) -> Figure:
    """Draw learned energies and forces beside the true ones."""
    distances = regions().all
    true = {
        "energy": np.asarray(energies(distances)),
        "force": np.asarray(forces(energies, distances)),
    }
    canvas = open_canvas(2, None, 2.4, is_shared=False)
    canvas.label("distance in σ", "")
    for panel, name, unit in zip(canvas.panels, true, ("ε", "ε/σ"), strict=True):
        curves = {TRUE: true[name]}
        curves |= {arm: outcome[name] for arm, outcome in outcomes.items()}
        draw_arms(panel, read_arms(name, curves, name, np.asarray(distances)))
        panel.axvspan(*WALL, color=GREY, alpha=0.25, linewidth=0)
        panel.axvline(MAIN[0], color=GREY, linestyle=":")
        panel.set_yscale("symlog", linthresh=1)
        panel.set_ylabel(f"{name} in {unit}")
    canvas.legend()
    return canvas.figure
