"""What a probe reports, and how measured numbers stand beside reported ones."""

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
    """What a probe found.

    Attributes:
        tables: the numbers.
        findings: what they show, one sentence each.
        figure: the picture of them.
    """

    tables: Sequence[Table]
    findings: Sequence[str]
    figure: Figure


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def over_seeds(values: ArrayLike) -> str:
    """The mean, and with several seeds the lowest and the highest value."""
    values = np.ravel(np.asarray(values, np.float64))
    mean = number(values.mean())
    if len(values) == 1 or values.min() == values.max():
        return mean
    return f"{mean} ({number(values.min())} to {number(values.max())})"


def is_apart(reported: str, values: ArrayLike) -> bool:
    """Whether a reported number lies outside of what the seeds gave.

    The reported number stands for all numbers that round to it: "0.35" for those from
    0.345 to 0.355. A value that is not finite is apart from every number.
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
    """A table of measured numbers beside reported ones.

    Args:
        title: what the table is about.
        rows: a name; the reported number as it is written there, which tells its
            rounding, or None where none was reported; and the measured numbers, one
            per seed.
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
