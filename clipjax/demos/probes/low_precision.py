"""Clipping in 16 bits: the loss scale, overflow and underflow of norms."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import clipjax

from ...plotting import plot_lines
from ..options import Positive, Whole
from .arguments import require
from .base import Report, Table, beside, number

GRADIENT = (0.03, 0.04)
INF = float("inf")


class Measured(NamedTuple):
    """Steps and norms in 16 bits.

    Attributes:
        scales: `(scales,)`, loss scales.
        right: `(scales, 2)`, the step for `GRADIENT`, unscaled and then clipped.
        wrong: `(scales, 2)`, the step, clipped and then unscaled.
        cases: names of float16 gradients.
        true_norms: `(cases,)`, their norms in float64.
        optax_norms: `(cases,)`, `optax.tree.norm` of them.
        norms: `(cases,)`, the norm that clipjax's clip reports.
        optax_steps: `(cases,)`, the norm after `optax.clip_by_global_norm`.
        steps: `(cases,)`, the norm after `clipjax.clip_by_global_norm`.
        optax_errors: `(seeds,)`, relative errors of `optax.tree.norm` of bfloat16
            gradients of 1,000 normal entries.
        errors: `(seeds,)`, those of the norm that clipjax reports.
        infinite_optax: `(2,)`, Optax's step for the float16 gradient (inf, 1).
        infinite: `(2,)`, that of clipjax with `skip_nonfinite`.
        skipped: steps that it counts as skipped.
    """

    scales: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    cases: tuple[str, ...]
    true_norms: np.ndarray
    optax_norms: np.ndarray
    norms: np.ndarray
    optax_steps: np.ndarray
    steps: np.ndarray
    optax_errors: np.ndarray
    errors: np.ndarray
    infinite_optax: np.ndarray
    infinite: np.ndarray
    skipped: int


def measure(*, threshold: float = 1.0, seeds: int = 10) -> Measured:
    """Clip scaled gradients in both orders, and float16 gradients by both libraries.

    Args:
        threshold: of every clip by global norm.
        seeds: random gradients in bfloat16.
    """
    require(Positive(), threshold=threshold)
    require(Whole(10_000), seeds=seeds)
    ours = clipjax.clip_by_global_norm(threshold)
    optaxs = optax.clip_by_global_norm(threshold)
    scales = 2.0 ** np.arange(0, 21)
    orders = (
        optax.chain(clipjax.unscale(), ours),
        optax.chain(ours, clipjax.unscale()),
    )

    def both_orders(scale):
        scaled = jnp.asarray(GRADIENT) * scale
        return [
            order.update(scaled, order.init(scaled), loss_scale=scale)[0]
            for order in orders
        ]

    steps = jax.jit(jax.vmap(both_orders))(jnp.asarray(scales, jnp.float32))
    right, wrong = map(np.asarray, steps)

    @jax.jit
    def clipped(grads):
        update, state = ours.update(grads, ours.init(grads))
        theirs = optaxs.update(grads, optaxs.init(grads))[0]
        norms = optax.tree.norm(grads), state.clip_info.norm_before
        return norms, (theirs, update)

    def measured(grads) -> tuple[float, ...]:
        """The true norm, those of Optax and clipjax, and those after their clips."""
        norms, updates = clipped(grads)
        return (_norm(grads), *map(float, norms), *map(_norm, updates))

    cases = {
        "1,000 entries of 300": jnp.full(1000, 300, jnp.float16),
        "257 entries of 16": jnp.full(257, 16, jnp.float16),
        "100,000 entries of 1": jnp.ones(100_000, jnp.float16),
        "1,000 entries of 1e-5": jnp.full(1000, 1e-5, jnp.float16),
    }
    rows = [measured(grads) for grads in cases.values()]
    true, optax_norms, norms, optax_steps, steps = np.array(rows).T
    normal = [
        jax.random.normal(jax.random.key(seed), (1000,)).astype(jnp.bfloat16)
        for seed in range(seeds)
    ]
    brain = np.array([measured(grads)[:3] for grads in normal])
    optax_errors, errors = np.abs(brain[:, 1:] / brain[:, :1] - 1).T
    skip = clipjax.skip_nonfinite(ours)

    @jax.jit
    def at_infinity(grads):
        theirs = optaxs.update(grads, optaxs.init(grads))[0]
        return theirs, *skip.update(grads, skip.init(grads))

    state: Any
    theirs, skipped, state = at_infinity(jnp.array([INF, 1.0], jnp.float16))
    return Measured(
        scales,
        right,
        wrong,
        tuple(cases),
        true,
        optax_norms,
        norms,
        optax_steps,
        steps,
        optax_errors=optax_errors,
        errors=errors,
        infinite_optax=_wide(theirs),
        infinite=_wide(skipped),
        skipped=int(state.skipped_count),
    )


def _wide(array) -> np.ndarray:
    return np.asarray(array, np.float64)


def _norm(array) -> float:
    return float(np.linalg.norm(_wide(array)))


def report(measured: Measured) -> Report:
    """Both orders beside the reported steps, and the norms of both libraries."""
    at = int(np.flatnonzero(measured.scales == 2.0**16)[0])
    said = {
        "unscale, then clip": (".03", ".04"),
        "clip, then unscale": ("9e-6", "1.2e-5"),
    }
    steps = dict(zip(said, (measured.right, measured.wrong), strict=True))
    rows = [
        (f"{name}, g = {entry}", said[name][index], steps[name][at, index])
        for name in said
        for index, entry in enumerate(GRADIENT)
    ]
    header = ("gradient", "true norm", "Optax's norm", "clipjax's norm")
    norms = [
        (name, *map(number, values))
        for name, *values in zip(
            measured.cases,
            measured.true_norms,
            measured.optax_norms,
            measured.norms,
            strict=True,
        )
    ]
    after = [
        (name, number(theirs), number(own))
        for name, theirs, own in zip(
            measured.cases, measured.optax_steps, measured.steps, strict=True
        )
    ]
    after.append(
        ("(inf, 1)", str(measured.infinite_optax), f"{measured.infinite}, skipped")
    )
    good, bad = (
        np.linalg.norm(step, axis=1) for step in (measured.right, measured.wrong)
    )
    figure = plot_lines(
        {"unscale, then clip": good, "clip, then unscale": bad},
        measured.scales,
        x_label="loss scale",
        y_label="norm of the step",
        title="Loss scale and clip",
        is_log=(True, True),
    )
    return Report(
        [
            beside("Step at loss scale 65,536", rows),
            Table("Norms of float16 gradients", header, norms),
            Table("Norms after a clip", ("gradient", "Optax", "clipjax"), after),
        ],
        [
            "Over these loss scales the norm of the step changes by a factor of "
            f"{number(good.max() / good.min())} if the gradient is unscaled first, and "
            f"by {number(bad.max() / bad.min())} if it is clipped first.",
            "The sum of squares in float16 overflows above 65,504 and underflows below "
            f"6e-8: off by more than 1 % are {_wrong(measured.optax_norms, measured)} "
            f"of {len(measured.cases)} norms of `optax.tree.norm`, and "
            f"{_wrong(measured.norms, measured)} of clipjax, which adds in float32. "
            "Where Optax's norm is infinite its clip returns zeros or NaN.",
            f"In bfloat16 the largest relative error of a norm is "
            f"{measured.optax_errors.max():.1e} with Optax, which stores it in 8 bits, "
            f"and {measured.errors.max():.1e} with clipjax.",
        ],
        figure,
    )


def _wrong(norms: np.ndarray, measured: Measured) -> int:
    return int((np.abs(norms / measured.true_norms - 1) > 0.01).sum())
