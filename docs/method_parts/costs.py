"""What a recipe costs, counted from its state and from the traced program."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

import clipjax

from .scenes import SCENES, make

ROWS, COLUMNS = 512, 256
SVD = ("svd", "eigh")
Numbers = tuple[int, int, int]
COLLECTIVES = ("psum", "psum2", "psum_invariant", "pmax", "pmin", "all_gather")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Counts of a recipe with its default arguments.

    Attributes:
        report: numbers in the state for the report: at first, per leaf, per parameter.
        memory: numbers that the clip remembers, likewise.
        optimizer: numbers of an optimizer in it, likewise.
        needs: what `update` needs besides the gradient.
        reductions: sums and maxima over arrays of a leaf's size.
        products: products of matrices of a leaf's size.
        decompositions: singular value decompositions.
        collectives: all-reduces inside of shard_map; None where it cannot be split.
    """

    report: Numbers
    memory: Numbers
    optimizer: Numbers
    needs: tuple[str, ...]
    reductions: int
    products: int
    decompositions: int
    collectives: int | None


@jax.numpy_dtype_promotion("standard")  # also in the tests, for Optax's moments
def count(name: str) -> Cost:
    """Counts what a recipe costs."""
    clip = make(SCENES[name].plain)
    sizes = [state_sizes(clip, tree(n, r)) for n, r in ((1, 4), (2, 4), (1, 8))]
    report, memory, optimizer = map(by_size, zip(*sizes, strict=True))
    grads = tree(1)
    state = jax.eval_shape(clip.init, grads)
    counts = {"reductions": 0, "products": 0, "decompositions": 0}
    for kind, times in heavy(jax.make_jaxpr(clip.update)(grads, state, grads).jaxpr):
        counts[kind] += times
    return Cost(
        report,
        memory,
        optimizer,
        tuple(needs(clip, name, grads, state)),
        collectives=collectives(name),
        **counts,
    )


def by_size(counts: tuple[int, ...]) -> Numbers:
    """Split counts for one leaf, two leaves, and one of twice the size."""
    one, two, longer = counts
    leaf = 4 * COLUMNS
    per_parameter = (longer - one) // leaf
    per_leaf = two - one - per_parameter * leaf
    return one - per_leaf - per_parameter * leaf, per_leaf, per_parameter


def tree(leaves: int, rows: int = ROWS) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a tree of matrices, all of one kind."""
    shape = jax.ShapeDtypeStruct((rows, COLUMNS), jnp.float32)
    return {f"layer_{number}/kernel": shape for number in range(leaves)}


def state_sizes(clip: Any, params: Any) -> tuple[int, int, int]:
    """Count the numbers in a state: of reports, of memories, and of all else."""
    state = jax.eval_shape(clip.init, params)
    is_clip = lambda node: isinstance(node, clipjax.ClipState)  # noqa: E731
    clips = [n for n in jax.tree.leaves(state, is_leaf=is_clip) if is_clip(n)]
    memory = sum(size(found.clip_memory) for found in clips)
    report = sum(size(found) for found in clips) - memory
    return report, memory, size(state) - report - memory


def size(struct: Any) -> int:
    """Count the numbers in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(struct))


def needs(clip: Any, name: str, grads: Any, state: Any) -> Iterator[str]:
    """Find out what update needs besides the gradient, by leaving it out."""
    try:
        jax.eval_shape(clip.update, grads, state)
    except ValueError as error:
        if "params" not in str(error):
            raise
        yield "the parameters"
    if name == "larc_clip":
        yield "the learning rate, if it is no argument of the recipe"


def heavy(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """Yield what reads an array of a leaf's size, and how often it runs.

    The branch for extreme magnitudes (`cond`) is left out: it does not usually run.
    """
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "cond":
            continue
        large = any(is_large(v) for v in equation.invars)
        inner = [*subprograms(equation.params)]
        if name in SVD:
            yield "decompositions", times
        elif inner:
            repeats = times * equation.params.get("length", 1)
            for program in inner:
                yield from heavy(program, repeats if name == "scan" else times)
        elif name == "dot_general" and large:
            yield "products", times
        elif large and not any(map(is_large, equation.outvars)):
            yield "reductions", times


def is_large(variable: Any) -> bool:
    """Tell arrays of a leaf's size from norms of its units, and from scalars."""
    return getattr(variable.aval, "size", 0) >= COLUMNS**2


def subprograms(params: dict[str, Any]) -> Iterator[Any]:
    """Yield the programs that an equation calls."""
    for value in params.values():
        for entry in value if isinstance(value, tuple | list) else (value,):
            program = getattr(entry, "jaxpr", entry)
            if hasattr(program, "eqns"):
                yield program


def collectives(name: str) -> int | None:
    """Count the all-reduces for a leaf that is split over one mesh axis."""
    scene = SCENES[name]
    if not scene.sharded:
        return None
    clip = make(scene.sharded)
    split = PartitionSpec("data")

    def step(grads: Any) -> Any:
        return clip.update(grads, clip.init(grads), grads)[0]

    sharded = jax.shard_map(
        step,
        mesh=AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,)),
        in_specs=split,
        out_specs=split,
        check_vma=False,
    )
    return sum(all_reduces(jax.make_jaxpr(sharded)(tree(1)).jaxpr))


def all_reduces(jaxpr: Any) -> Iterator[int]:
    """Yield 1 for each collective, outside of the branch for extreme magnitudes."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in COLLECTIVES:
            yield 1
        elif equation.primitive.name != "cond":
            for program in subprograms(equation.params):
                yield from all_reduces(program)
