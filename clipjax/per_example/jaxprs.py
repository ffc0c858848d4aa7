"""Access to jaxprs, through ``jax.extend`` alone; no other file looks inside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

# Names differ between JAX releases.
INLINED = ("pjit", "jit", "closed_call", "core_call")
CHECKPOINTS = ("checkpoint", "remat", "remat2")


def is_literal(atom: Any) -> bool:
    """Return whether an input of an equation is a constant."""
    return isinstance(atom, Literal)


def is_variable(atom: Any) -> bool:
    """Return whether an input of an equation is a variable."""
    return not is_literal(atom)


def run_equation(parent: Any, equation: Any, values: Sequence[Any]) -> list[Any]:
    """Return the results of one equation.

    The equation runs as a jaxpr of its own: ``jaxpr_as_fun`` is public, while the
    protocol for binding a primitive with its parameters differs between releases.
    """
    variables = []
    arguments = []
    for atom, value in zip(equation.invars, values, strict=True):
        if not is_literal(atom) and atom not in variables:
            variables.append(atom)
            arguments.append(value)
    debug_info = parent.debug_info._replace(
        arg_names=("",) * len(variables), result_paths=("",) * len(equation.outvars)
    )
    single = Jaxpr(
        (),
        variables,
        list(equation.outvars),
        [equation],
        equation.effects,
        debug_info=debug_info,
    )
    return list(jaxpr_as_fun(ClosedJaxpr(single, ()))(*arguments))


def inner_jaxpr(equation: Any) -> tuple[Any, Sequence[Any]]:
    """Return the jaxpr that a call, a checkpoint or a scan runs, and its constants."""
    jaxpr = equation.params["jaxpr"]
    if isinstance(jaxpr, ClosedJaxpr):
        return jaxpr.jaxpr, jaxpr.consts
    return jaxpr, ()


def scan_counts(equation: Any) -> tuple[int, int]:
    """Return how many inputs of a scan are constants, and how many are carried."""
    settings = equation.params
    if "num_consts" in settings:
        return settings["num_consts"], settings["num_carry"]
    constants, carried, _ = settings["ft_in"].unpack()  # from JAX 0.12 on
    return len(constants), len(carried)


def read_all(atoms: Sequence[Any], environment: dict[Any, Any]) -> list[Any]:
    """Return the values of an equation's inputs."""
    return [atom.val if is_literal(atom) else environment[atom] for atom in atoms]


def shape_of(atom: Any) -> tuple[int, ...]:
    """Return the shape of a variable."""
    return tuple(atom.aval.shape)


def trace(function: Any, *arguments: Any) -> tuple[Any, Any]:
    """Return a function's closed jaxpr, and the tree structure of its result."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    return closed, jax.tree.structure(shape)
