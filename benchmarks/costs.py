"""Counts of what clips cost: equations, reading, bytes, operations, temporary memory.

Nothing is run here: the numbers are those of jaxprs and of XLA's compiled programs, so
they do not depend on how busy the machine is. Bytes are given in sizes of the gradient,
which makes them numbers of reads and writes of it.
"""

import functools
import itertools
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import clipjax

SHAPE = (256, 512)
LEAVES = 6
RANK = 8


def structs(count=LEAVES, dtype=jnp.float32, shape=SHAPE):
    """Return a tree of equal leaves: shapes and dtypes, no arrays."""
    leaf = jax.ShapeDtypeStruct(shape, dtype)
    return {f"layer{number:03d}": leaf for number in range(count)}


# Equations


def equations(jaxpr):
    """Count the equations of a jaxpr and of all jaxprs in their parameters."""
    return sum(1 + sum(map(equations, _inner(eqn.params))) for eqn in jaxpr.eqns)


def _inner(params):
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(item, "jaxpr", item)  # of a ClosedJaxpr
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


def equations_per_leaf(make_clip, few=60, many=80):
    """Return how many equations a further leaf adds to `update`.

    Args:
        make_clip: returns the clip for a tree of shapes.
        few: leaves of the smaller tree.
        many: leaves of the larger tree.
    """

    def count(leaves):
        grads = structs(leaves)
        clip = make_clip(grads)
        state = jax.eval_shape(clip.init, grads)
        return equations(jax.make_jaxpr(clip.update)(grads, state, grads).jaxpr)

    return (count(many) - count(few)) / (many - few)


# Reading


class Path(NamedTuple):
    """What a reader passes who follows one gradient through `update`.

    Attributes:
        functions: of clipjax that are called, nested ones too.
        files: that they lie in.
        changes: how often a call lies in another file than the call before.
    """

    functions: int
    files: int
    changes: int


def readers_path(clip):
    """Trace an update of two leaves, and follow the calls of clipjax's functions.

    Those of ``jax_internals`` are left out as JAX's are: each reads an attribute.
    """
    root = pathlib.Path(clipjax.__file__).parent
    calls = []

    def is_read(file):
        path = pathlib.Path(file)
        return root in path.parents and path.parent.name != "jax_internals"

    def follow(frame, event, _):
        code = frame.f_code
        # Comprehensions and lambdas are no functions to a reader.
        is_named = not code.co_name.startswith("<")
        if event == "call" and is_named and is_read(code.co_filename):
            calls.append((code.co_filename, code.co_qualname))

    grads = structs(2)
    state = jax.eval_shape(clip.init, grads)
    before = sys.getprofile()
    sys.setprofile(follow)
    try:
        jax.make_jaxpr(clip.update)(grads, state, grads)
    finally:
        sys.setprofile(before)
    files = [file for file, _ in calls]
    changes = sum(one != two for one, two in itertools.pairwise(files))
    return Path(len(set(calls)), len(set(files)), changes)


# Bytes, operations and temporary memory

# XLA counts before it makes machine code, which takes it five sixths of the time of
# these small programs. Without LLVM's optimizations, and with its older code generator,
# which newer JAX does not have, it is faster, and fusions, buffers and so the counts
# are the same (`tests/test_bench_check.py`).
COUNTED_ONLY: Any = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):
    COUNTED_ONLY["xla_cpu_use_fusion_emitters"] = False


class Cost(NamedTuple):
    """What XLA counts; of conditionals, both branches.

    Attributes:
        bytes_accessed: in sizes of the gradient.
        temporaries: in sizes of the gradient.
        flops: for each entry of the gradient.
    """

    bytes_accessed: float
    temporaries: float
    flops: float

    @classmethod
    def of(cls, compiled, params):
        leaves = jax.tree.leaves(params)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        counts = compiled.cost_analysis()
        return cls(
            counts["bytes accessed"] / size,
            compiled.memory_analysis().temp_size_in_bytes / size,
            counts.get("flops", 0.0) / sum(leaf.size for leaf in leaves),
        )


def unplaced(tree):
    """Leave it to JAX on which device a tree of shapes lies."""
    return tree


def cost_alone(clip, params, place=unplaced):
    """Return the cost of `update`, with the gradient and the state donated."""
    arguments = place((params, jax.eval_shape(clip.init, params), params))
    with jax.numpy_dtype_promotion("standard"):  # optimizers in recipes mix dtypes
        update = jax.jit(clip.update, donate_argnums=(0, 1)).lower(*arguments)
    return Cost.of(update.compile(_options(place)), params)


def _options(place):
    """Return the compiler's options: those of the CPU backend, if it compiles."""
    return COUNTED_ONLY if place in (None, unplaced) else None


def products(params, shift):
    """Compute gradients as XLA:CPU does not fuse into what follows: as products."""

    def factor(size, number, dtype):
        angles = jnp.arange(1.0 * RANK * size) * (number + 1) + shift
        return jnp.sin(angles).reshape(-1, RANK).astype(dtype)

    return {
        name: factor(leaf.shape[0], number, leaf.dtype)
        @ factor(leaf.shape[1], number, leaf.dtype).T
        for number, (name, leaf) in enumerate(params.items())
    }


def compile_step(clip, params, place=None, *, with_metrics=None):
    """Compile a step of a clip and Adam; parameters and state are donated.

    The gradient lies in memory. On CPUs the step computes it, since XLA:CPU computes
    products, and so Adam's first read, of bfloat16 in float32. With ``place`` it is an
    argument: XLA:TPU would fuse the products with Adam.

    Args:
        clip: a transformation in front of Adam, or a function that wraps Adam.
        params: a tree of shapes.
        place: says on which devices a tree of shapes lies.
        with_metrics: a function of the state whose results the step returns too.
    """
    adam = optax.adam(1e-3)
    chain: Any = clip(adam) if callable(clip) else optax.chain(clip, adam)

    def step(carry, given):
        params, state = carry
        grads = given if place else products(params, given)
        updates, state = chain.update(grads, state, params)
        told = with_metrics(state) if with_metrics else {}
        return (optax.apply_updates(params, updates), state), told

    given = params if place else jax.ShapeDtypeStruct((), jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # Adam itself mixes dtypes
        carry = params, jax.eval_shape(chain.init, params)
        arguments = (place or unplaced)((carry, given))
        lowered = jax.jit(step, donate_argnums=0).lower(*arguments)
    return lowered.compile(_options(place))


NO_CLIP = optax.identity()


def cost_beyond_adam(clip, params, place=None, peer=NO_CLIP, *, with_metrics=None):
    """Return what the clip adds to the cost of a step with Adam, or with a peer too."""
    step = compile_step(clip, params, place, with_metrics=with_metrics)
    with_clip = Cost.of(step, params)
    leaf = jax.tree.leaves(params)[0]
    without = _cost_with(peer, len(params), leaf.dtype, leaf.shape, place)
    return Cost(*(one - two for one, two in zip(with_clip, without, strict=True)))


@functools.cache
def _cost_with(clip, count, dtype, shape, place):
    params = structs(count, dtype, shape)
    return Cost.of(compile_step(clip, params, place), params)
