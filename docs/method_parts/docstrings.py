"""Reads the docstrings of recipes, the one source of their pages."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from typing import Any

from clipjax import recipes

HEADINGS = ("Args", "Returns", "Raises", "Example", "References")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a recipe's docstring and signature say about it.

    Attributes:
        body: paragraphs between the coordinates and the table of inputs and results.
        table: the lines of that table.
        arguments: pairs of name and meaning.
        example: lines with prompts, and their outputs.
        call: the signature, with defaults.
        family: the module that defines it.
    """

    name: str
    summary: str
    equation: str
    coordinates: str
    reference: str
    body: str = ""
    table: str = ""
    arguments: tuple[tuple[str, str], ...] = ()
    returns: str = ""
    raises: str = ""
    example: str = ""
    call: str = ""
    family: str = ""

    @property
    def paper(self) -> str:
        """Its first reference, with the authors or the title as the link's text."""
        first = self.reference.split(";")[0]
        link = re.search(r"`([^`<]+?)\s*<([^>]+)>`_", first)
        if link is None:
            return as_markdown(first)
        title, address = link.groups()
        authors = first[: link.start()].strip(", ")
        year = re.search(r"\b(19|20)\d\d\b", first[link.end() :])
        if authors:
            names = authors.split(", ")
            more = " et al." if len(names) > 1 else ""
            title = f"{names[0]}{more}"
        title = title.split(":")[0]
        return f"[{title}{f' {year[0]}' if year else ''}]({address})"


def read_recipe(name: str, docstring: str, call: str = "", family: str = "") -> Recipe:
    """Reads a recipe's docstring, or says what it lacks."""
    sections = split_sections(docstring)
    parts = {
        "summary": r"\A(.+?)\n\n",
        "equation": r"^\.\. math::(.+?)\n\n(?=\S)",
        "coordinates": r"^Coordinates: ``(.+?)``$",
    }
    found = {}
    for part, pattern in parts.items():
        match = re.search(pattern, sections[""], re.DOTALL | re.MULTILINE)
        if match is None:
            raise ValueError(f"the docstring of {name} has no {part}")
        found[part] = " ".join(match.group(1).split())
    for heading in HEADINGS:
        if heading not in sections:
            raise ValueError(f"the docstring of {name} has no {heading.lower()}")
    rest = sections[""].split(f"Coordinates: ``{found['coordinates']}``")[1]
    body, bar, table = rest.partition("| input | result |")
    if not bar:
        raise ValueError(f"the docstring of {name} has no table of inputs and results")
    return Recipe(
        name=name,
        reference=" ".join(sections["References"].split()),
        body=body.strip(),
        table=(bar + table).strip(),
        arguments=tuple(split_entries(sections["Args"])),
        returns=" ".join(sections["Returns"].split()),
        raises=sections["Raises"],
        example=sections["Example"],
        call=call,
        family=family,
        **found,
    )


def split_sections(docstring: str) -> dict[str, str]:
    """Splits a docstring at its headings; the first part has the empty name."""
    pattern = rf"^({'|'.join(HEADINGS)}):\n"
    first, *rest = re.split(pattern, docstring, flags=re.MULTILINE)
    texts = (textwrap.dedent(text).strip() for text in rest[1::2])
    return {"": first, **dict(zip(rest[::2], texts, strict=True))}


def split_entries(section: str) -> list[tuple[str, str]]:
    """Splits a section with entries such as ``name: meaning``."""
    entries = re.split(r"^(?=\S)", section, flags=re.MULTILINE)
    pairs = (entry.split(":", 1) for entry in entries if entry.strip())
    return [(name.strip(), " ".join(text.split())) for name, text in pairs]


def read_recipes() -> dict[str, Recipe]:
    """Reads every recipe that clipjax exports, by name."""
    return {
        name: read_recipe(
            name,
            inspect.getdoc(function) or "",
            call_of(name, function),
            function.__module__.rpartition(".")[2],
        )
        for name, function in vars(recipes).items()
        if inspect.isfunction(function)
    }


def call_of(name: str, function: Any) -> str:
    """Writes the signature without types, in one line if that fits."""
    written: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in written:
            written.append("*")
        default = parameter.default
        if default is parameter.empty:
            written.append(parameter.name)
        else:  # the only class among the defaults is a dtype
            is_dtype = isinstance(default, type)
            shown = f"jnp.{default.__name__}" if is_dtype else repr(default)
            written.append(f"{parameter.name}={shown}")
    line = f"clipjax.{name}({', '.join(written)})"
    if len(line) <= 88:
        return line
    return f"clipjax.{name}(\n    " + ",\n    ".join(written) + ",\n)"


def as_markdown(text: str) -> str:
    """Turns the links, quotes and formulas of a docstring into Markdown."""
    text = re.sub(r"`([^`<]+?)\s*<([^>]+)>`_+", link, text)
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def link(match: re.Match[str]) -> str:
    """Writes a link of reStructuredText in Markdown, in one line."""
    return f"[{' '.join(match.group(1).split())}]({match.group(2)})"
