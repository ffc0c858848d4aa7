"""What a setting accepts: one description checks it, parses it and documents it."""

import argparse
import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

LARGEST = 10**9


class Kind(Protocol):
    """A set of accepted values; `str(kind)` says which, for messages."""

    def parse(self, text: str) -> Any:
        """The value that a command line text stands for; ValueError if none."""
        ...

    def accepts(self, value: Any) -> bool:
        """Whether a value is in the set."""
        ...


@dataclasses.dataclass(frozen=True)
class Whole:
    """Whole numbers from 1 to a billion, which keeps them within 32 bits."""

    def __str__(self) -> str:
        return f"a whole number from 1 to {LARGEST}"

    def parse(self, text: str) -> int:
        return int(text)

    def accepts(self, value: Any) -> bool:
        """True for an int (not a bool) in the range."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and 1 <= value <= LARGEST


@dataclasses.dataclass(frozen=True)
class Positive:
    """Finite numbers above zero."""

    def __str__(self) -> str:
        return "a finite number above 0"

    def parse(self, text: str) -> float:
        return float(text)

    def accepts(self, value: Any) -> bool:
        """True for a finite int or float above zero."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value) and value > 0


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a few names."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}"

    def parse(self, text: str) -> str:
        """The name itself."""
        return text

    def accepts(self, value: Any) -> bool:
        """True for one of the names."""
        return value in self.names


@dataclasses.dataclass(frozen=True)
class Name:
    """Any text that is not empty; what it must name is checked where it is used."""

    meaning: str

    def __str__(self) -> str:
        return self.meaning

    def parse(self, text: str) -> str:
        """The text itself."""
        return text

    def accepts(self, value: Any) -> bool:
        """True for text with something in it."""
        return isinstance(value, str) and bool(value.strip())


@dataclasses.dataclass(frozen=True)
class Names:
    """Several names, separated by commas on the command line."""

    meaning: str

    def __str__(self) -> str:
        return self.meaning

    def parse(self, text: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text.split(","))

    def accepts(self, value: Any) -> bool:
        """True for a tuple of at least one name, none of them empty."""
        return bool(value) and all(isinstance(part, str) and part for part in value)


@dataclasses.dataclass(frozen=True)
class OptionalPath:
    """A path or None; what stands there is checked when it is read."""

    meaning: str

    def __str__(self) -> str:
        return self.meaning

    def parse(self, text: str) -> pathlib.Path:
        """The path; an empty text is not one."""
        if not text:
            raise ValueError
        return pathlib.Path(text)

    def accepts(self, value: Any) -> bool:
        """True for a path or None."""
        return value is None or isinstance(value, pathlib.Path)


def option(default: Any, kind: Kind, meaning: str) -> Any:
    """A dataclass field that knows what it accepts and what it means."""
    return dataclasses.field(
        default=default, metadata={"kind": kind, "meaning": meaning}
    )


def flag(name: str) -> str:
    """How a field is called on the command line."""
    return "--" + name.replace("_", "-")


def check(settings: Any) -> None:
    """Raise a ValueError for the first field with a value its kind refuses."""
    for field in dataclasses.fields(settings):
        kind = field.metadata.get("kind")
        value = getattr(settings, field.name)
        if kind is not None and not kind.accepts(value):
            raise ValueError(f"{flag(field.name)} {value!r}: expected {kind}")


def converter(kind: Kind) -> Callable[[str], Any]:
    """What argparse calls to read and check a value."""

    def convert(text: str) -> Any:
        try:
            value = kind.parse(text)
        except ValueError:
            value = None
        if value is None or not kind.accepts(value):
            raise argparse.ArgumentTypeError(f"{text!r}: expected {kind}")
        return value

    return convert


def add_argument(parser: argparse._ActionsContainer, field: Any, note: str) -> None:
    """Add the command line option of a field made by `option`."""
    parser.add_argument(
        flag(field.name),
        type=converter(field.metadata["kind"]),
        default=argparse.SUPPRESS,
        metavar=field.name.upper(),
        help=f"{field.metadata['meaning']}{note}".replace("%", "%%"),
    )
