"""What has changed between two sets of figures, of each of which less is better."""

from __future__ import annotations

from typing import NamedTuple

from .figures import Figures


class Change(NamedTuple):
    """A figure that differs from the committed one.

    Attributes:
        subject: what was counted.
        figure: the name of the count.
        was: the committed value; None if there is none.
        now: the value found; None if it is not counted any more.
    """

    subject: str
    figure: str
    was: float | None
    now: float | None

    @property
    def verdict(self) -> str:
        """Return ``better``, or what the command fails for."""
        if self.was is None:
            return "not committed"
        if self.now is None:
            return "not counted"
        return "worse" if self.now > self.was else "better"


def compare(was: dict[str, Figures], now: dict[str, Figures]) -> list[Change]:
    """Return all differences, those of figures that only one side has among them."""
    changes = []
    for subject in sorted(was.keys() | now.keys()):
        before, after = was.get(subject, {}), now.get(subject, {})
        for figure in sorted(before.keys() | after.keys()):
            change = Change(subject, figure, before.get(figure), after.get(figure))
            if change.was != change.now:
                changes.append(change)
    return changes
