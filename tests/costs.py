"""Counts of what a clip costs: equations, bytes, temporary memory, all-reduces.

Nothing is run here: the numbers are those of jaxprs and of XLA's compiled programs, so
they do not depend on how busy the machine is. Bytes are given in sizes of the gradient,
which makes them numbers of reads and writes of it.
"""

import functools
import inspect
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

SHAPE = (256, 512)
LEAVES = 6
RANK = 8


def structs(count=LEAVES, dtype=jnp.float32, shape=SHAPE):
    """Return a tree of equal leaves: shapes and dtypes, no arrays."""
    leaf = jax.ShapeDtypeStruct(shape, dtype)
    return {f"layer{number:03d}": leaf for number in range(count)}


def without_report(recipe, *args):
    """Call the recipe of a clip of entries with `report=False`, where it has that."""
    has_report = "report" in inspect.signature(recipe).parameters
    return recipe(*args, **({"report": False} if has_report else {}))


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


def equations_per_leaf(make_clip, few=200, many=260):
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


# Bytes and temporary memory


class Cost(NamedTuple):
    """What XLA counts, in sizes of the gradient; of conditionals, both branches."""

    bytes_accessed: float
    temporaries: float

    @classmethod
    def of(cls, compiled, size):
        return cls(
            compiled.cost_analysis()["bytes accessed"] / size,
            compiled.memory_analysis().temp_size_in_bytes / size,
        )


def size_of(tree):
    """Return the bytes of a tree of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def cost_alone(clip, dtype, *, params_too=True):
    """Return the cost of `update`, with the gradient and the state donated."""
    grads = structs(dtype=dtype)
    arguments = (grads, jax.eval_shape(clip.init, grads))
    arguments += (grads,) if params_too else ()
    update = jax.jit(clip.update, donate_argnums=(0, 1))
    return Cost.of(update.lower(*arguments).compile(), size_of(grads))


def compile_step(transformation, dtype, *, with_metrics=None):
    """Compile a train step, parameters and state donated.

    Each gradient is a matrix product, which XLA:CPU does not fuse into what follows: it
    lies in memory, as in training. An argument of the step would not do in bfloat16,
    where XLA:CPU computes the product, and so Adam's first read, in float32.
    """

    def factor(size, number, shift):
        angles = jnp.arange(1.0 * RANK * size) * (number + 1) + shift
        return jnp.sin(angles).reshape(-1, RANK).astype(dtype)

    def step(carry, shift):
        params, state = carry
        grads = {
            name: factor(SHAPE[0], number, shift) @ factor(SHAPE[1], number, shift).T
            for number, name in enumerate(params)
        }
        updates, state = transformation.update(grads, state, params)
        told = with_metrics(state) if with_metrics else {}
        return (optax.apply_updates(params, updates), state), told

    params = structs(dtype=dtype)
    with jax.numpy_dtype_promotion("standard"):  # Adam itself mixes dtypes
        carry = params, jax.eval_shape(transformation.init, params)
        shift = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.jit(step, donate_argnums=0).lower(carry, shift).compile()


def cost_beyond_adam(clip, dtype):
    """Return what the clip adds to the cost of a step with Adam."""
    adam = optax.adam(1e-3)
    chain = compile_step(optax.chain(clip, adam), dtype)
    added = zip(_cost_of_step(chain, dtype), _adam(jnp.dtype(dtype)), strict=True)
    return Cost(*(with_clip - without for with_clip, without in added))


@functools.cache
def _adam(dtype):
    return _cost_of_step(compile_step(optax.adam(1e-3), dtype), dtype)


def _cost_of_step(compiled, dtype):
    return Cost.of(compiled, size_of(structs(dtype=dtype)))


# All-reduces


def all_reduces(compiled):
    """Count the all-reduces that every step executes, outside of conditionals."""
    bodies, entry = _computations(compiled.as_text())
    calls = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")
    count, found, waiting = 0, set(), [entry]
    while waiting:
        name = waiting.pop()
        if name not in found and name in bodies:
            found.add(name)
            count += len(re.findall(r" all-reduce(?:-start)?\(", bodies[name]))
            waiting += calls.findall(bodies[name])
    return count


def _computations(text):
    """Return the computations of a program in XLA's text form, and the entry's name."""
    bodies, entry, name = {}, "", ""
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line)
        if header:
            name = header[2]
            bodies[name] = ""
            entry = name if header[1] else entry
        elif name:
            bodies[name] += line + "\n"
    return bodies, entry
