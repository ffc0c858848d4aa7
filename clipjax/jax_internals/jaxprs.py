"""Jaxprs, as programs whose equations can be inspected and run one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from .versions import reads_internals

# The names that JAX gives to the operations of a program.
JIT = "jit"
CHECKPOINT = "remat2"
SCAN = "scan"
CAST = "convert_element_type"
STOP_GRADIENT = "stop_gradient"
ADD = "add"
CONCATENATE = "concatenate"
STACK = "stack"
TRANSPOSE = "transpose"
COPY = "copy"
BROADCAST = "broadcast_in_dim"
REARRANGING = (
    *(TRANSPOSE, BROADCAST, COPY),
    *("reshape", "squeeze", "slice", "split", "unstack", "rev"),
)
DOT = "dot_general"
CONVOLUTION = "conv_general_dilated"
GATHER = "gather"
DYNAMIC_SLICE = "dynamic_slice"


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A sequence of equations.

    Attributes:
        inputs: variables.
        constants: variables, apart from the inputs.
        equations: the equations.
        outputs: variables and literals.
    """

    inputs: tuple[Any, ...]
    constants: tuple[Any, ...]
    equations: tuple[Equation, ...]
    outputs: tuple[Any, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One operation of a program.

    Attributes:
        name: the operation, one of the names above or another.
        inputs: variables and literals.
        outputs: variables.
    """

    name: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    _equation: JaxprEqn = dataclasses.field(repr=False)
    _debug_info: Any = dataclasses.field(repr=False)

    @reads_internals
    def setting(self, name: str) -> Any:
        """Return a static parameter of the operation."""
        return self._equation.params[name]

    def run(self, values: Sequence[Any]) -> list[Any]:
        """Return the results.

        The equation runs as a jaxpr of its own: ``jaxpr_as_fun`` takes any equation,
        while the protocol for binding a primitive with its parameters differs between
        releases.
        """
        variables: list[Any] = []
        arguments: list[Any] = []
        for atom, value in zip(self.inputs, values, strict=True):
            if not is_literal(atom) and atom not in variables:
                variables.append(atom)
                arguments.append(value)
        return list(jaxpr_as_fun(self._alone(variables))(*arguments))

    @reads_internals
    def _alone(self, variables: list[Any]) -> ClosedJaxpr:
        debug_info = self._debug_info._replace(
            arg_names=("",) * len(variables), result_paths=("",) * len(self.outputs)
        )
        single = Jaxpr(
            (),
            variables,
            list(self.outputs),
            [self._equation],
            self._equation.effects,
            debug_info=debug_info,
        )
        return ClosedJaxpr(single, ())

    def inner(self) -> tuple[Program, Sequence[Any]]:
        """Return what a jit, checkpoint or scan runs, and its constants' values."""
        return _opened(self.setting("jaxpr"))

    @reads_internals
    def scan_counts(self) -> tuple[int, int]:
        """Return how many inputs of a scan are constants, and how many are carried."""
        settings = self._equation.params
        if "num_consts" in settings:  # before JAX 0.12
            return settings["num_consts"], settings["num_carry"]
        constants, carried, _ = settings["ft_in"].unpack()
        return len(constants), len(carried)


@reads_internals
def _opened(jaxpr: Any) -> tuple[Program, Sequence[Any]]:
    values: Sequence[Any] = ()
    if isinstance(jaxpr, ClosedJaxpr):
        jaxpr, values = jaxpr.jaxpr, jaxpr.consts
    equations = [
        Equation(
            equation.primitive.name,
            tuple(equation.invars),
            tuple(equation.outvars),
            equation,
            jaxpr.debug_info,
        )
        for equation in jaxpr.eqns
    ]
    program = Program(
        tuple(jaxpr.invars),
        tuple(jaxpr.constvars),
        tuple(equations),
        tuple(jaxpr.outvars),
    )
    return program, values


def trace(function: Any, *arguments: Any) -> tuple[Program, Sequence[Any], Any]:
    """Trace a function of arrays or of ``ShapeDtypeStruct``.

    Returns:
        The program, the values of its constants, and the tree structure of the result.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    return *_opened(closed), jax.tree.structure(shape)


def is_literal(atom: Any) -> bool:
    """Return whether an input or output is a constant in the program's text."""
    return isinstance(atom, Literal)


def is_variable(atom: Any) -> bool:
    """Return whether an input or output is a variable."""
    return not is_literal(atom)


def read_all(atoms: Sequence[Any], environment: dict[Any, Any]) -> list[Any]:
    """Return the values of literals and variables."""
    return [
        _value_of(atom) if is_literal(atom) else environment[atom] for atom in atoms
    ]


@reads_internals
def _value_of(literal: Any) -> Any:
    return literal.val


@reads_internals
def shape_of(atom: Any) -> tuple[int, ...]:
    """Return the shape of a literal or variable."""
    return tuple(atom.aval.shape)


@reads_internals
def dtype_of(atom: Any) -> Any:
    """Return the dtype of a literal or variable."""
    return atom.aval.dtype
