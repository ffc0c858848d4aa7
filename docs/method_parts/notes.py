"""Reads docs/method_notes: what a method is for, its pitfalls, and what is like it."""

from __future__ import annotations

import dataclasses
import pathlib
import tomllib
from collections.abc import Mapping
from typing import Any

FOLDER = pathlib.Path(__file__).parent.parent / "method_notes"


@dataclasses.dataclass(frozen=True)
class Notes:
    """The hand-written half of a page.

    Attributes:
        group: the title of the group of methods with the same purpose.
        use: when to use it.
        avoid: when not to.
        pitfalls: one sentence or more each.
        related: what is said of other methods, by name: "clips …, as …".
    """

    group: str
    use: str
    avoid: str
    pitfalls: list[str]
    related: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Group:
    """Methods with the same purpose, by name and in order."""

    title: str
    intro: str
    methods: Mapping[str, Notes]


def read_groups() -> list[Group]:
    """Reads all groups in the order of their files; a method may be in one only."""
    groups = []
    for path in sorted(FOLDER.glob("[0-9]_*.toml")):
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        title, intro = table.pop("title"), table.pop("intro").strip()
        notes = {name: Notes(title, **entry) for name, entry in table.items()}
        groups.append(Group(title, intro, notes))
    return groups


def read_others() -> list[dict[str, Any]]:
    """Reads what is no recipe: wrappers and functions with a page of their own."""
    path = FOLDER / "others.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))["rows"]


def read_coordinates() -> dict[str, dict[str, str]]:
    """Reads the meaning of each value on the four axes."""
    path = FOLDER / "coordinates.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))
