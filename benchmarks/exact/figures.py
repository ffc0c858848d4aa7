"""Counts a subject: what XLA and JAX say of its programs, without running them.

Bytes, operations and temporaries are given in sizes of the gradient and rounded to
0.01: XLA also counts scalars, indices and partial sums, which another order of the same
work changes, and which are less than that of the 262,144 entries here. A further read
of the gradient is 1.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..collectives import ALL_REDUCE, collectives, compiled_on_mesh, sharded_tree
from ..costs import (
    COUNTED_ONLY,
    Cost,
    cost_alone,
    cost_beyond_adam,
    equations_per_leaf,
    structs,
)
from ..options import DTYPES
from . import traces
from .subjects import Clip, Ratio, Shapes

Figures = dict[str, float]
EQUATIONS = "equations per leaf"
STATE, STATE_PER_LEAF = "bytes of state", "bytes of state per leaf"
ALL_REDUCES = "all-reduces"
OTHERS = "other collectives"
MOVED = "bytes of collectives"
# Counts in sizes of the gradient are the same for any number of leaves.
LEAVES = 2
FEW, MANY = 4, 8


def shapes_of(tree: dict[str, Any]) -> Shapes:
    """Return the shapes of a tree by name."""
    return {name: leaf.shape for name, leaf in tree.items()}


def rounded(value: float) -> float:
    """Round to 0.01, without a negative zero."""
    return round(value, 2) + 0.0


@jax.numpy_dtype_promotion("standard")  # optimizers mix dtypes
def count(subject: Clip | Ratio) -> Figures:
    """Return the figures of a subject by name; of each, less is better."""
    if isinstance(subject, Ratio):
        return _ratios(subject)
    return {
        EQUATIONS: rounded(
            equations_per_leaf(lambda tree: _made(subject, tree), FEW, MANY)
        ),
        **_costs(subject),
        **_state(subject),
        **_on_mesh(subject),
        **traces.count(subject.recipe),
    }


def _made(subject: Clip, tree: dict[str, Any]) -> Any:
    return subject.make(shapes_of(tree))


def _named(prefix: str, cost: Cost) -> Figures:
    return {
        f"{prefix}: bytes": rounded(cost.bytes_accessed),
        f"{prefix}: flops": rounded(cost.flops),
        f"{prefix}: temporaries": rounded(cost.temporaries),
    }


def _costs(subject: Clip) -> Figures:
    """Count what it adds to a step with Adam, and its temporaries by itself."""
    found: Figures = {}
    for dtype in DTYPES:
        params = structs(LEAVES, jnp.dtype(dtype))
        clip = _made(subject, params)
        step = cost_beyond_adam(
            subject.around or clip, params, with_metrics=subject.with_metrics
        )
        found |= _named(dtype, step)
        alone = cost_alone(clip, params)
        found[f"{dtype}, donated: temporaries"] = rounded(alone.temporaries)
    return found


def _state(subject: Clip) -> Figures:
    """Return the bytes of the state, of which a part grows with the leaves."""

    def size(leaves: int) -> int:
        tree = structs(leaves)
        state = jax.tree.leaves(jax.eval_shape(_made(subject, tree).init, tree))
        return sum(array.size * array.dtype.itemsize for array in state)

    per_leaf = (size(MANY) - size(FEW)) / (MANY - FEW)
    return {STATE: size(FEW) - FEW * per_leaf, STATE_PER_LEAF: per_leaf}


def _on_mesh(subject: Clip) -> Figures:
    """Count the collectives for six leaves on a mesh of two axes."""
    clip = _made(subject, sharded_tree())
    found = list(collectives(compiled_on_mesh(clip)))
    all_reduces = sum(one.kind == ALL_REDUCE for one in found)
    return {
        ALL_REDUCES: all_reduces,
        OTHERS: len(found) - all_reduces,
        MOVED: sum(one.size for one in found),
    }


def _ratios(subject: Ratio) -> Figures:
    """Divide the counts of a program by those of the program without clipjax."""

    def cost(step: Any, argument: Any) -> Cost:
        lowered = jax.jit(step, donate_argnums=donated).lower(argument)
        return Cost.of(lowered.compile(COUNTED_ONLY), model.params)

    model = subject.model()
    donated = 0 if subject.donates else ()
    ours, plain = (cost(*program) for program in subject.programs(model))
    ratio = Cost(*(one / two for one, two in zip(ours, plain, strict=True)))
    return _named("relative to plain", ratio)
