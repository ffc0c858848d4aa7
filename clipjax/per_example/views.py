"""Analysis of a loss: which parameters have a gradient in factored form, and where.

A variable of the traced loss is a *view* if it holds the entries of a parameter in
another arrangement (transposed, reshaped, sliced). An equation in which a view meets
another array, in a matrix product, a convolution or a look-up, is a *site*: there the
parameter's gradient is a product of the other operand and the cotangent, so that its
norm follows from the two factors. A parameter that is used in any other way is *dense*:
its gradient is computed for every example.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..jax_internals import (
    Equation,
    Program,
    dtype_of,
    is_literal,
    is_variable,
    jaxprs,
    shape_of,
)

Path = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class View:
    """A parameter in another arrangement.

    Attributes:
        leaf: the parameter's position.
        arrange: a function from the parameter to the array, whose leading axes are
            those of the scans that step through it.
        levels: the depths of the scans that step through it.
        shape: the array's shape, without those leading axes.
        place: for an array that has been concatenated with others, the axis and the
            start of its part in the result; otherwise None.
    """

    leaf: int
    arrange: Callable[[Any], Any]
    levels: tuple[int, ...]
    shape: tuple[int, ...]
    place: tuple[int, int] | None = None

    def then(self, step: Callable[[Any], Any], **changes: Any) -> View:
        """Return the view after one more step of rearrangement."""
        for _ in self.levels:
            step = jax.vmap(step)
        arrange = lambda leaf: step(self.arrange(leaf))  # noqa: E731
        return dataclasses.replace(self, arrange=arrange, **changes)


Views = tuple[View, ...]


@dataclasses.dataclass(frozen=True)
class Site:
    """An equation in which a view meets another array.

    Attributes:
        path: the positions of the enclosing equations, outermost first, and of this
            one.
        tap: the path of the last sum that the product is a term of, or ``path`` itself.
            All terms of a sum have the same cotangent, which is kept once.
        kind: ``dot``, ``lookup`` or ``convolution``.
        equation: the equation.
        view: the parameter's arrangement there.
        operand: which input of the equation the view is.
        lengths: the lengths of the scans around the equation, outermost first.
    """

    path: Path
    tap: Path
    kind: str
    equation: Equation
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
        return self.lengths + shape_of(self.equation.outputs[0])


class Walk:
    """One pass over a program that follows the views of parameters.

    A variable has no view, one view, or one for each parameter concatenated in it.

    Attributes:
        sites: the sites found so far.
        dense: for each parameter that turned out to be dense, the reason.
    """

    def __init__(self):
        self.sites: list[Site] = []
        self.dense: dict[int, str] = {}

    def visit(
        self,
        program: Program,
        views: dict[Any, Views],
        path: Path,
        lengths: tuple[int, ...],
    ) -> None:
        """Follow the views through a program's equations, and enter what they yield.

        Args:
            program: the program.
            views: the views of its inputs; those of other variables are added.
            path: the positions of the equations around it.
            lengths: the lengths of the scans around it.
        """
        sums = Sums(program)
        for position, equation in enumerate(program.equations):
            inputs = [_views_of(atom, views) for atom in equation.inputs]
            if not any(inputs):
                continue
            here = (*path, position)
            name = equation.name
            if name in jaxprs.REARRANGING:
                self._rearrange(equation, inputs, views)
            elif name == jaxprs.CAST:
                self._cast(equation, inputs, views)
            elif name == jaxprs.STOP_GRADIENT:
                continue
            elif name in (jaxprs.CONCATENATE, jaxprs.STACK):
                self._join(equation, inputs, views)
            elif name in (jaxprs.JIT, jaxprs.CHECKPOINT):
                self._call(equation, inputs, views, here, lengths)
            elif name == jaxprs.SCAN:
                self._scan(equation, inputs, here, lengths)
            elif kind := site_kind(equation, inputs):
                operand = 0 if inputs[0] else 1
                tap = (*path, sums.last(position))
                self.sites += [
                    Site(here, tap, kind, equation, view, operand, lengths)
                    for view in inputs[operand]
                ]
            else:
                self._make_dense(inputs, f"used in {name}")

    def finish(self, program: Program, views: dict[Any, Views], reason: str) -> None:
        """Mark as dense every parameter that a program returns unchanged."""
        self._make_dense([_views_of(atom, views) for atom in program.outputs], reason)

    def _make_dense(self, views: list[Views], reason: str) -> None:
        for view in itertools.chain(*views):
            self.dense.setdefault(view.leaf, reason)

    def _rearrange(self, equation, inputs, views) -> None:
        sizes = [math.prod(shape_of(atom)) for atom in equation.outputs]
        if equation.name == jaxprs.BROADCAST and sizes != [
            math.prod(shape_of(equation.inputs[0]))
        ]:
            self._make_dense(inputs, "repeated by broadcasting")
            return
        if any(view.place for view in inputs[0]):
            self._rearrange_parts(equation, inputs, views)
            return
        for index, variable in enumerate(equation.outputs):

            def step(value: Any, index: int = index) -> Any:
                return equation.run([value])[index]

            views[variable] = tuple(
                view.then(step, shape=shape_of(variable)) for view in inputs[0]
            )

    def _rearrange_parts(self, equation, inputs, views) -> None:
        name, (variable, *_) = equation.name, equation.outputs
        if name == jaxprs.TRANSPOSE:
            order = equation.setting("permutation")
            views[variable] = tuple(
                view.then(
                    lambda part: part.transpose(order),
                    shape=tuple(view.shape[axis] for axis in order),
                    place=(order.index(view.place[0]), view.place[1]),
                )
                for view in inputs[0]
            )
        elif name == jaxprs.COPY:
            views[variable] = inputs[0]
        else:
            self._make_dense(inputs, f"joined to others before {name}")

    def _cast(self, equation, inputs, views) -> None:
        (variable,) = equation.outputs
        dtype = dtype_of(variable)
        if not jnp.issubdtype(dtype, jnp.floating):
            self._make_dense(inputs, f"cast to {dtype}")
        # A cast keeps the entries in place. The norm is that of the gradient before it
        # is rounded to the narrower dtype.
        views[variable] = inputs[0]

    def _join(self, equation, inputs, views) -> None:
        is_stack = equation.name == jaxprs.STACK
        axis = equation.setting("axis" if is_stack else "dimension")
        start, joined = 0, []
        for atom, parts in zip(equation.inputs, inputs, strict=True):
            if any(view.place for view in parts):
                self._make_dense([parts], "joined to others twice")
            for view in parts:
                if is_stack:
                    shape = (*view.shape[:axis], 1, *view.shape[axis:])
                    view = view.then(partial(jnp.expand_dims, axis=axis), shape=shape)
                joined.append(dataclasses.replace(view, place=(axis, start)))
            start += 1 if is_stack else shape_of(atom)[axis]
        views[equation.outputs[0]] = tuple(joined)

    def _call(self, equation, inputs, views, here, lengths) -> None:
        program, _ = equation.inner()
        inside = dict(zip(program.inputs, inputs, strict=True))
        self.visit(program, inside, here, lengths)
        for outer, inner in zip(equation.outputs, program.outputs, strict=True):
            views[outer] = _views_of(inner, inside)

    def _scan(self, equation, inputs, here, lengths) -> None:
        program, _ = equation.inner()
        constants, count = equation.scan_counts()
        carried = constants + count
        self._make_dense(inputs[constants:carried], "carried by a scan")
        inside = dict(zip(program.inputs[:constants], inputs, strict=False))
        for variable, views in zip(
            program.inputs[carried:], inputs[carried:], strict=True
        ):
            if any(view.place is not None for view in views):
                self._make_dense([views], "joined to others before a scan")
            inside[variable] = tuple(
                dataclasses.replace(
                    view, levels=(*view.levels, len(lengths)), shape=view.shape[1:]
                )
                for view in views
            )
        self.visit(program, inside, here, (*lengths, equation.setting("length")))
        self.finish(program, inside, "given out by a scan")


def _views_of(atom: Any, views: dict[Any, Views]) -> Views:
    return () if is_literal(atom) else views.get(atom, ())


class Sums:
    """Where the results of a program's equations are used."""

    def __init__(self, program: Program):
        self.equations = program.equations
        self.users: dict[Any, list[int | None]] = {}
        for position, equation in enumerate(program.equations):
            for atom in filter(is_variable, equation.inputs):
                self.users.setdefault(atom, []).append(position)
        for atom in filter(is_variable, program.outputs):
            self.users.setdefault(atom, []).append(None)

    def last(self, position: int) -> int:
        """Return the last of the sums that an equation's result is a term of.

        Args:
            position: the equation's position, which is returned if its result is used
                more than once, or in no sum.
        """
        while True:
            (result,) = self.equations[position].outputs
            match self.users.get(result):
                case [int(user)] if self._adds(user, shape_of(result)):
                    position = user
                case _:
                    return position

    def _adds(self, position: int, shape: tuple[int, ...]) -> bool:
        equation = self.equations[position]
        return equation.name == jaxprs.ADD and all(
            shape_of(atom) == shape for atom in equation.inputs
        )


def site_kind(equation: Equation, inputs: list[Views]) -> str | None:
    """Return the kind of site that an equation is, or None if it is no site."""
    shapes = map(shape_of, (*equation.inputs, *equation.outputs))
    is_real = jnp.issubdtype(dtype_of(equation.outputs[0]), jnp.floating)
    if sum(map(bool, inputs)) != 1 or not is_real or any(0 in s for s in shapes):
        return None
    name = equation.name
    if name == jaxprs.DOT:
        return "dot"
    (first, *_) = (view for views in inputs for view in views)
    if first.place is not None:
        return None
    if name == jaxprs.CONVOLUTION and inputs[1]:
        return "convolution" if equation.setting("batch_group_count") == 1 else None
    if name in (jaxprs.GATHER, jaxprs.DYNAMIC_SLICE) and inputs[0] and not first.levels:
        return "lookup" if _is_lookup(equation, first) else None
    return None


def _is_lookup(equation: Equation, view: View) -> bool:
    """Return whether an equation selects whole rows, by one index each.

    The other axes may have indices too, as under ``vmap``. They have no effect if
    indices are clipped: a slice as long as its axis fits at one place only.
    """
    axes = len(view.shape) - 1
    if not axes or tuple(equation.setting("slice_sizes")) != (1, *view.shape[1:]):
        return False
    if equation.name == jaxprs.DYNAMIC_SLICE:
        return True
    numbers = equation.setting("dimension_numbers")
    rank = len(shape_of(equation.outputs[0]))
    starts, collapsed = numbers.start_index_map, numbers.collapsed_slice_dims
    offsets = rank - axes - (not collapsed)
    return (
        tuple(starts[:1]) == (0,)
        and (len(starts) == 1 or is_clipped(equation))
        and tuple(collapsed) in ((0,), ())
        and tuple(numbers.offset_dims) == tuple(range(offsets, rank))
        and not numbers.operand_batching_dims
    )


def is_clipped(equation: Equation) -> bool:
    """Return whether a look-up replaces an index out of bounds by the nearest valid."""
    is_gather = equation.name == jaxprs.GATHER
    return not is_gather or "CLIP" in str(equation.setting("mode"))
