"""Evaluation of a program that exposes the operands and cotangents of its sites.

A tap, an array of zeros, is added to the product of each site, or to the last sum that
the product is a term of. The derivative with respect to the tap is the cotangent there.
The other operand of the product is recorded and returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ..jax_internals import Equation, Program, jaxprs, read_all
from .views import Path, Site

Taps = Mapping[Path, Any]


class Runner:
    """Evaluates programs with taps at some sites.

    Attributes:
        sites: the sites by path.
        parents: the paths of equations that have sites inside.
    """

    def __init__(self, sites: Sequence[Site]):
        self.sites = {site.path: site for site in sites}
        self.parents = {
            path[:length] for path in self.sites for length in range(1, len(path))
        }

    def run(
        self,
        program: Program,
        constants: Sequence[Any],
        arguments: Sequence[Any],
        taps: Taps,
        path: Path = (),
    ) -> tuple[list[Any], dict[Path, Any]]:
        """Return the results, and the recorded operands by path of their site.

        Args:
            program: the program.
            constants: the values of its constants.
            arguments: its inputs.
            taps: arrays to add, by path.
            path: the path of the equation that calls the program.
        """
        environment = dict(zip(program.constants, constants, strict=True))
        environment |= dict(zip(program.inputs, arguments, strict=True))
        records: dict[Path, Any] = {}
        for position, equation in enumerate(program.equations):
            here = (*path, position)
            values = read_all(equation.inputs, environment)
            if here in self.sites:
                results = equation.run(values)
                records[here] = values[self.sites[here].other]
            elif here in self.parents:
                results, found = self._inside(equation, values, taps, here)
                records |= found
            else:
                results = equation.run(values)
            if here in taps:
                results = [results[0] + taps[here].astype(results[0].dtype)]
            environment |= dict(zip(equation.outputs, results, strict=True))
        return read_all(program.outputs, environment), records

    def _inside(self, equation: Equation, values: list[Any], taps: Taps, here: Path):
        program, constants = equation.inner()
        tapped = [path for path in taps if path[: len(here)] == here]
        read = [path for path in self.sites if path[: len(here)] == here]

        def inline(values: list[Any], taps: list[Any]) -> tuple[list[Any], list[Any]]:
            results, records = self.run(
                program, constants, values, dict(zip(tapped, taps, strict=True)), here
            )
            return results, [records[path] for path in read]

        ordered = [taps[path] for path in tapped]
        if equation.name == jaxprs.SCAN:
            results, records = _scan(equation, inline, values, ordered)
        elif equation.name == jaxprs.CHECKPOINT:
            results, records = jax.checkpoint(
                inline,
                prevent_cse=equation.setting("prevent_cse"),
                policy=equation.setting("policy"),
            )(values, ordered)
        else:
            results, records = inline(values, ordered)
        return results, dict(zip(read, records, strict=True))


def _scan(equation: Equation, body: Any, values: list[Any], taps: list[Any]):
    """Evaluate a scan with taps among its inputs, and records among its outputs."""
    first, carried = equation.scan_counts()
    second = first + carried
    constants, carry, stepped = values[:first], values[first:second], values[second:]

    def step(carry: list[Any], inputs: tuple[list[Any], list[Any]]):
        stepped, taps = inputs
        results, records = body([*constants, *carry, *stepped], taps)
        count = len(carry)
        return results[:count], (results[count:], records)

    carry, (outputs, records) = jax.lax.scan(
        step,
        carry,
        (stepped, taps),
        length=equation.setting("length"),
        reverse=equation.setting("reverse"),
        unroll=equation.setting("unroll"),
    )
    return [*carry, *outputs], records
