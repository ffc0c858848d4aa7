"""Finds where a loss uses its parameters in products whose gradient has a short form.

A variable of the jaxpr is either a view of a parameter, an array with the same entries
in another arrangement, or anything else. Where a view meets something else in a matrix
product or a look-up, there is a site: the parameter's gradient is then a product of
what came in and of what comes back. A parameter that is used in any other way is
dense: its gradient is made for every example.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from .jaxprs import (
    CHECKPOINTS,
    INLINED,
    inner_jaxpr,
    is_literal,
    is_variable,
    run_equation,
    scan_counts,
    shape_of,
)

REARRANGING = (
    "transpose",
    "reshape",
    "squeeze",
    "expand_dims",
    "broadcast_in_dim",
    "slice",
    "split",
    "convert_element_type",
    "copy",
    "rev",
)
Path = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class View:
    """A parameter in another arrangement.

    Attributes:
        leaf: the parameter's position.
        arrange: gives the array from the parameter, with the axes of the scans that
            step through it in front.
        levels: the scans that step through it, by depth.
        shape: of the variable, without those axes.
    """

    leaf: int
    arrange: Callable[[Any], Any]
    levels: tuple[int, ...]
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Site:
    """An equation in which a view meets something else.

    Attributes:
        path: positions of the equation and of those around it.
        tap: that of the sum in which its product ends, or the path itself: what comes
            back is the same for all terms, and is kept once.
        kind: ``dot``, ``lookup`` or ``convolution``.
        equation: the equation.
        view: the parameter's arrangement there.
        operand: which input of the equation it is.
        lengths: how many steps the scans around it take, outermost first.
    """

    path: Path
    tap: Path
    kind: str
    equation: Any
    view: View
    operand: int
    lengths: tuple[int, ...]

    @property
    def other(self) -> int:
        """The input that depends on the example."""
        return 1 - self.operand

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the product, with the scans' axes in front."""
        return self.lengths + shape_of(self.equation.outvars[0])


class Walk:
    """One pass over a jaxpr, with some parameters taken as views."""

    def __init__(self):
        """Has found nothing yet."""
        self.sites: list[Site] = []
        self.dense: dict[int, str] = {}

    def visit(
        self, jaxpr: Any, views: dict[Any, View], path: Path, lengths: tuple[int, ...]
    ) -> None:
        """Follows the views through the equations, adding those that they make."""
        sums = Sums(jaxpr)
        for position, equation in enumerate(jaxpr.eqns):
            inputs = [
                None if is_literal(atom) else views.get(atom)
                for atom in equation.invars
            ]
            if not any(inputs):
                continue
            here = (*path, position)
            name = equation.primitive.name
            if name in REARRANGING:
                self._rearrange(jaxpr, equation, inputs, views)
            elif name in INLINED or name in CHECKPOINTS:
                self._call(equation, inputs, views, here, lengths)
            elif name == "scan":
                self._scan(equation, inputs, here, lengths)
            else:
                kind = site_kind(equation, inputs)
                operand, view = next(
                    (i, view) for i, view in enumerate(inputs) if view is not None
                )
                if kind is None or (kind == "lookup" and view.levels):
                    self._make_dense(inputs, f"used in {name}")
                    continue
                tap = (*path, sums.last(position))
                self.sites.append(
                    Site(here, tap, kind, equation, view, operand, lengths)
                )

    def finish(self, jaxpr: Any, views: dict[Any, View], reason: str) -> None:
        """Makes dense what a jaxpr gives out as it is."""
        outputs = [None if is_literal(v) else views.get(v) for v in jaxpr.outvars]
        self._make_dense(outputs, reason)

    def _make_dense(self, views: list[View | None], reason: str) -> None:
        for view in views:
            if view is not None:
                self.dense.setdefault(view.leaf, reason)

    def _rearrange(self, jaxpr, equation, inputs, views) -> None:
        view = inputs[0]
        sizes = [math.prod(shape_of(atom)) for atom in equation.outvars]
        if equation.primitive.name == "broadcast_in_dim" and sizes != [
            math.prod(view.shape)
        ]:
            self._make_dense(inputs, "repeated by broadcasting")
            return

        for index, variable in enumerate(equation.outvars):

            def arrange(leaf: Any, index: int = index) -> Any:
                step = lambda value: run_equation(jaxpr, equation, [value])[index]  # noqa: E731
                for _ in view.levels:
                    step = jax.vmap(step)
                return step(view.arrange(leaf))

            views[variable] = View(view.leaf, arrange, view.levels, shape_of(variable))

    def _call(self, equation, inputs, views, here, lengths) -> None:
        jaxpr, _ = inner_jaxpr(equation)
        inside = {
            variable: view
            for variable, view in zip(jaxpr.invars, inputs, strict=True)
            if view
        }
        self.visit(jaxpr, inside, here, lengths)
        for outer, inner in zip(equation.outvars, jaxpr.outvars, strict=True):
            if not is_literal(inner) and inner in inside:
                views[outer] = inside[inner]

    def _scan(self, equation, inputs, here, lengths) -> None:
        jaxpr, _ = inner_jaxpr(equation)
        constants, count = scan_counts(equation)
        carried = constants + count
        self._make_dense(inputs[constants:carried], "carried by a scan")
        inside = {}
        for index, (variable, view) in enumerate(
            zip(jaxpr.invars, inputs, strict=True)
        ):
            if view and index < constants:
                inside[variable] = view
            elif view and index >= carried:
                levels = (*view.levels, len(lengths))
                inside[variable] = dataclasses.replace(
                    view, levels=levels, shape=view.shape[1:]
                )
        self.visit(jaxpr, inside, here, (*lengths, equation.params["length"]))
        self.finish(jaxpr, inside, "given out by a scan")


class Sums:
    """Where the results of a jaxpr's equations are used."""

    def __init__(self, jaxpr: Any):
        """Looks through all equations."""
        self.equations = jaxpr.eqns
        self.users: dict[Any, list[int | None]] = {}
        for position, equation in enumerate(jaxpr.eqns):
            for atom in filter(is_variable, equation.invars):
                self.users.setdefault(atom, []).append(position)
        for atom in filter(is_variable, jaxpr.outvars):
            self.users.setdefault(atom, []).append(None)

    def last(self, position: int) -> int:
        """Gives the last of the sums that an equation's result goes into, alone."""
        while True:
            (result,) = self.equations[position].outvars
            match self.users.get(result):
                case [int(user)] if self._adds(user, shape_of(result)):
                    position = user
                case _:
                    return position

    def _adds(self, position: int, shape: tuple[int, ...]) -> bool:
        equation = self.equations[position]
        return equation.primitive.name == "add" and all(
            shape_of(atom) == shape for atom in equation.invars
        )


def site_kind(equation: Any, inputs: list[View | None]) -> str | None:
    """Tells what kind of site an equation is, or None."""
    if sum(view is not None for view in inputs) != 1:
        return None
    if equation.primitive.name == "dot_general":
        return "dot"
    if equation.primitive.name == "conv_general_dilated" and inputs[1] is not None:
        return "convolution" if equation.params["batch_group_count"] == 1 else None
    if equation.primitive.name == "gather" and inputs[0] is not None:
        return "lookup" if _is_lookup(equation, inputs[0]) else None
    return None


def _is_lookup(equation: Any, view: View) -> bool:
    """Tells whether a gather takes whole rows of a matrix, by one index each."""
    numbers = equation.params["dimension_numbers"]
    rank = len(shape_of(equation.outvars[0]))
    return (
        len(view.shape) == 2
        and tuple(numbers.start_index_map) == (0,)
        and tuple(numbers.collapsed_slice_dims) == (0,)
        and tuple(numbers.offset_dims) == (rank - 1,)
        and not numbers.operand_batching_dims
        and tuple(equation.params["slice_sizes"]) == (1, view.shape[1])
    )
