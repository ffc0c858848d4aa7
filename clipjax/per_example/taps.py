"""Runs a jaxpr so that its sites can be read: what goes in, and what comes back.

To the product of each site, or the sum in which it ends, a tap is added, an array of
zeros. The derivative with respect to it is what comes back there. What goes into the
product is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from .jaxprs import (
    CHECKPOINTS,
    inner_jaxpr,
    read_all,
    run_equation,
    scan_counts,
)
from .views import Path, Site

Taps = Mapping[Path, Any]


class Runner:
    """Runs jaxprs with the sites that were found in them."""

    def __init__(self, sites: Sequence[Site]):
        """Notes which equations are sites, and which have sites inside."""
        self.sites = {site.path: site for site in sites}
        self.parents = {
            path[:length] for path in self.sites for length in range(1, len(path))
        }

    def run(
        self,
        jaxpr: Any,
        constants: Sequence[Any],
        arguments: Sequence[Any],
        taps: Taps,
        path: Path = (),
    ) -> tuple[list[Any], dict[Path, Any]]:
        """Gives the results, and the records by site."""
        environment = dict(zip(jaxpr.constvars, constants, strict=True))
        environment |= dict(zip(jaxpr.invars, arguments, strict=True))
        records: dict[Path, Any] = {}
        for position, equation in enumerate(jaxpr.eqns):
            here = (*path, position)
            values = read_all(equation.invars, environment)
            if here in self.sites:
                results = run_equation(jaxpr, equation, values)
                records[here] = values[self.sites[here].other]
            elif here in self.parents:
                results, found = self._inside(equation, values, taps, here)
                records |= found
            else:
                results = run_equation(jaxpr, equation, values)
            if here in taps:
                results = [results[0] + taps[here].astype(results[0].dtype)]
            environment |= dict(zip(equation.outvars, results, strict=True))
        return read_all(jaxpr.outvars, environment), records

    def _inside(self, equation: Any, values: list[Any], taps: Taps, here: Path):
        jaxpr, constants = inner_jaxpr(equation)
        tapped = [path for path in taps if path[: len(here)] == here]
        read = [path for path in self.sites if path[: len(here)] == here]

        def inline(values: list[Any], taps: list[Any]) -> tuple[list[Any], list[Any]]:
            results, records = self.run(
                jaxpr, constants, values, dict(zip(tapped, taps, strict=True)), here
            )
            return results, [records[path] for path in read]

        ordered = [taps[path] for path in tapped]
        name = equation.primitive.name
        if name == "scan":
            results, records = _scan(equation, inline, values, ordered)
        elif name in CHECKPOINTS:
            results, records = jax.checkpoint(
                inline,
                prevent_cse=equation.params["prevent_cse"],
                policy=equation.params["policy"],
            )(values, ordered)
        else:
            results, records = inline(values, ordered)
        return results, dict(zip(read, records, strict=True))


def _scan(equation: Any, body: Any, values: list[Any], taps: list[Any]):
    """Runs a scan anew, with taps among what it steps through and gives out."""
    settings = equation.params
    first, carried = scan_counts(equation)
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
        length=settings["length"],
        reverse=settings["reverse"],
        unroll=settings["unroll"],
    )
    return [*carry, *outputs], records
