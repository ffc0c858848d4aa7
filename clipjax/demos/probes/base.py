"""The report of a probe, and tables that compare measured with reported numbers."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike


class Table(NamedTuple):
    """A table of texts; each row has as many cells as the header."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Report(NamedTuple):
    """The report of a probe.

    Attributes:
        tables: the numbers.
        findings: the conclusions, one sentence each.
        figure: the figure of the numbers.
    """

    tables: Sequence[Table]
    findings: Sequence[str]
    figure: Figure


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def over_seeds(values: ArrayLike) -> str:
    """Format the mean and, for several seeds, the lowest and the highest value."""
    values = np.ravel(np.asarray(values, np.float64))
    mean = number(values.mean())
    if len(values) == 1 or values.min() == values.max():
        return mean
    return f"{mean} ({number(values.min())} to {number(values.max())})"


def is_apart(reported: str, values: ArrayLike) -> bool:
    """Return whether a reported number lies outside the range over seeds.

    The reported number stands for all numbers that round to it: "0.35" for those from
    0.345 to 0.355. A measured value that is not finite differs from every number.
    """
    values = np.ravel(np.asarray(values, np.float64))
    if not np.isfinite(values).all():
        return True
    digits, _, power = reported.lower().partition("e")
    decimals = len(digits.partition(".")[2])
    half = 0.5 * 10.0 ** (int(power or 0) - decimals)
    middle = float(reported)
    slack = half * (1 + 1e-9)
    return not values.min() - slack <= middle <= values.max() + slack


def beside(title: str, rows: Iterable[tuple[str, str | None, ArrayLike]]) -> Table:
    """Return a table of measured and reported numbers.

    Args:
        title: the title of the table.
        rows: a name; the reported number as text with its own rounding, or None if
            there is none; and the measured numbers, one per seed.
    """
    cells = []
    for name, reported, measured in rows:
        verdict = (
            ""
            if reported is None
            else "differs"
            if is_apart(reported, measured)
            else "agrees"
        )
        cells.append((name, reported or "", over_seeds(measured), verdict))
    return Table(title, ("", "reported", "measured", ""), cells)
