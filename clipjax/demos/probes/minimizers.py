"""Which minimizer of an underdetermined least-squares problem descent reaches."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import clipjax

from ...plotting import plot_lines
from ..options import Whole
from .arguments import require
from .base import Report, beside
from .descend import descend

THRESHOLD = 0.5
CLIPS = {
    "none": clipjax.clip_by_global_norm(np.inf),
    "hard": clipjax.clip_by_global_norm(THRESHOLD),
    "soft": clipjax.soft_clip_by_global_norm(THRESHOLD),
    "value": clipjax.clip_by_value(THRESHOLD / 10, report=False),
    "block-wise": clipjax.clip_by_leaf_norm(THRESHOLD / 5),
}
REPORTED = dict(zip(CLIPS, ("7e-11", "7e-11", "7e-11", "3.5", "4.5"), strict=True))


class Measured(NamedTuple):
    """Paths of descent from zero on |Aθ - b|²/2 with more unknowns than equations.

    Attributes:
        clips: `(clips,)`, the names.
        steps: `(points,)`, the numbers of steps at which distances were recorded.
        distance: `(clips, seeds, points)`, from the minimizer of least norm.
        residual: `(clips, seeds)`, |Aθ - b| / |b| at the end.
        length: `(clips, seeds)`, |θ| at the end, over that of the minimizer of least
            norm.
    """

    clips: np.ndarray
    steps: np.ndarray
    distance: np.ndarray
    residual: np.ndarray
    length: np.ndarray


def measure(*, seeds: int = 5, equations: int = 20, steps: int = 1000) -> Measured:
    """Descend from zero with each clip.

    Args:
        seeds: independent problems, with Gaussian A and solution.
        equations: number of equations; there are three times as many unknowns, in five
            blocks.
        steps: number of steps.
    """
    require(Whole(), seeds=seeds)
    require(Whole(lowest=5), equations=equations)
    require(Whole(lowest=10), steps=steps)
    recorded = np.unique(np.geomspace(1, steps, 60).round().astype(int))
    unknowns = 3 * equations
    cuts = [unknowns * block // 5 for block in range(1, 5)]

    def blocks(vector: jax.Array) -> list[jax.Array]:
        return jnp.split(vector, cuts)

    def path(
        problem: tuple[jax.Array, jax.Array], clip: clipjax.Clip
    ) -> list[jax.Array]:
        matrix, aim = problem

        def gradient(params: list[jax.Array], step: jax.Array) -> list[jax.Array]:
            return blocks(matrix.T @ (matrix @ jnp.concatenate(params) - aim))

        optimizer = optax.chain(clip, optax.sgd(0.5))
        return descend(optimizer, gradient, blocks(jnp.zeros(unknowns)), steps)

    problems = [_problem(seed, equations, unknowns) for seed in range(seeds)]
    matrix, aim = (np.stack(part) for part in zip(*problems, strict=True))
    shortest = (np.linalg.pinv(matrix) @ aim[..., None])[..., 0]
    given = jnp.asarray(matrix, jnp.float32), jnp.asarray(aim, jnp.float32)
    norm = functools.partial(np.linalg.norm, axis=-1)
    found = []
    for clip in CLIPS.values():
        run = jax.jit(jax.vmap(functools.partial(path, clip=clip)))
        points = np.concatenate(run(given), axis=-1).astype(np.float64)
        end = points[:, -1]
        found.append(
            (
                norm(points[:, recorded - 1] - shortest[:, None]),
                norm((matrix @ end[..., None])[..., 0] - aim) / norm(aim),
                norm(end) / norm(shortest),
            )
        )
    distance, residual, length = (np.stack(part) for part in zip(*found, strict=True))
    return Measured(np.array(list(CLIPS)), recorded, distance, residual, length)


def _problem(seed: int, equations: int, unknowns: int) -> tuple[np.ndarray, np.ndarray]:
    """A and b, for a Gaussian solution."""
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((equations, unknowns)) / unknowns**0.5
    return matrix, matrix @ generator.standard_normal(unknowns)


def _alone(names: list[str], values: np.ndarray) -> list[tuple[str, None, np.ndarray]]:
    """Rows without a reported number."""
    return [(name, None, row) for name, row in zip(names, values, strict=True)]


def report(measured: Measured) -> Report:
    """Distances from the minimizer of least norm, next to reported ones."""
    clips, steps, distance, residual, length = measured
    names = [str(name) for name in clips]
    ends = dict(zip(names, distance[:, :, -1], strict=True))
    tables = [
        beside(
            "Distance from the minimizer of least norm at the end",
            [(name, REPORTED[name], ends[name]) for name in names],
        ),
        beside("|Aθ - b| / |b| at the end", _alone(names, residual)),
        beside("Norm over the least one at the end", _alone(names, length)),
    ]
    figure = plot_lines(
        dict(zip(names, distance, strict=True)),
        steps,
        x_label="step",
        y_label="distance to the minimizer of least norm",
        title="Underdetermined least squares, from zero",
        is_log=(True, True),
    )
    far = [name for name in names if ends[name].min() > 1e-2]
    near = [name for name in names if name not in far]
    return Report(
        tables,
        [
            f"Ends at the minimizer of least norm: {', '.join(near) or 'no arm'}. Ends "
            f"elsewhere: {', '.join(far) or 'no arm'}.",
            "Factors that are common to all entries keep θ in the row space of A, "
            "where the minimizer of least norm is the only one; a clip of entries or "
            "of blocks leaves it.",
            "Arrays are float32, so that distances of 1e-6 are rounding; a smaller "
            "reported distance needs float64. Other distances depend on the size and "
            "the scale of the problem, which were not reported.",
        ],
        figure,
    )
