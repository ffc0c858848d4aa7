"""Kinds of options: each one checks, parses and documents the values it accepts."""

import dataclasses
import difflib
import pathlib
from collections.abc import Iterable
from typing import Any, Protocol


class Kind(Protocol):
    """A set of accepted values, which `str(kind)` describes for messages."""

    def parse(self, text: str) -> Any:
        """Parse a text of the command line; ValueError if it is not accepted."""
        ...

    def accepts(self, value: Any) -> bool:
        """Return whether a value is in the set."""
        ...


@dataclasses.dataclass(frozen=True)
class Whole:
    """Whole numbers in a range; a billion at most, which keeps them within 32 bits."""

    largest: int = 10**9
    lowest: int = 1

    def __str__(self) -> str:
        return f"a whole number from {self.lowest} to {self.largest}"

    def parse(self, text: str) -> int:
        return int(text)

    def accepts(self, value: Any) -> bool:
        """True for an int (not a bool) in the range."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and self.lowest <= value <= self.largest


@dataclasses.dataclass(frozen=True)
class OptionalWhole(Whole):
    """Whole numbers from 1, or None."""

    def accepts(self, value: Any) -> bool:
        """True for an int (not a bool) in the range, and for None."""
        return value is None or super().accepts(value)


@dataclasses.dataclass(frozen=True)
class Fraction:
    """Numbers from 0 to 1, without 1."""

    def __str__(self) -> str:
        return "a number from 0 to below 1"

    def parse(self, text: str) -> float:
        return float(text)

    def accepts(self, value: Any) -> bool:
        """True for an int or float in the range."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and 0 <= value < 1


@dataclasses.dataclass(frozen=True)
class Probability:
    """Numbers between 0 and 1, without both."""

    def __str__(self) -> str:
        return "a number above 0 and below 1"

    def parse(self, text: str) -> float:
        return float(text)

    def accepts(self, value: Any) -> bool:
        """True for a float in the range."""
        return isinstance(value, float) and 0 < value < 1


@dataclasses.dataclass(frozen=True)
class Positive:
    """Numbers above zero, in a range in which float32 products do not overflow."""

    def __str__(self) -> str:
        return "a finite number above 0 (1e-30 to 1e30)"

    def parse(self, text: str) -> float:
        return float(text)

    def accepts(self, value: Any) -> bool:
        """True for an int or float in the range."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and 1e-30 <= value <= 1e30


@dataclasses.dataclass(frozen=True)
class NotNegative:
    """Finite numbers from zero."""

    def __str__(self) -> str:
        return "0 or a finite number above 0 (1e-30 to 1e30)"

    def parse(self, text: str) -> float:
        return float(text)

    def accepts(self, value: Any) -> bool:
        """True for zero and for the numbers that `Positive` accepts."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (value == 0 or Positive().accepts(value))


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Several different finite numbers above zero, separated by commas."""

    def __str__(self) -> str:
        return "finite numbers above 0 (1e-30 to 1e30), each once, with commas"

    def parse(self, text: str) -> tuple[float, ...]:
        return tuple(float(part) for part in text.split(","))

    def accepts(self, value: Any) -> bool:
        """True for a tuple of at least one number, without duplicates."""
        are_good = isinstance(value, tuple) and all(map(Positive().accepts, value))
        return are_good and 0 < len(value) == len(set(value))


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
    """Any text that is not empty; its meaning is checked where it is used."""

    meaning: str

    def __str__(self) -> str:
        return self.meaning

    def parse(self, text: str) -> str:
        """The text itself."""
        return text

    def accepts(self, value: Any) -> bool:
        """True for text that is not empty."""
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
    """A path or None; the file or directory is checked when it is read."""

    meaning: str

    def __str__(self) -> str:
        return f"{self.meaning}, its name in UTF-8"

    def parse(self, text: str) -> pathlib.Path:
        """Return the path; refuse an empty text and names that are not UTF-8."""
        if not text:
            raise ValueError
        text.encode()  # UnicodeEncodeError is a ValueError
        return pathlib.Path(text)

    def accepts(self, value: Any) -> bool:
        """True for a path or None."""
        return value is None or isinstance(value, pathlib.Path)


def option(default: Any, kind: Kind, meaning: str) -> Any:
    """Return a dataclass field with the kind of its values and its help text."""
    return dataclasses.field(
        default=default, metadata={"kind": kind, "meaning": meaning}
    )


def flag(name: str) -> str:
    """Return the name of a field on the command line."""
    return "--" + name.replace("_", "-")


def check(settings: Any) -> None:
    """Raise a ValueError for the first field with a value its kind refuses."""
    for field in dataclasses.fields(settings):
        kind = field.metadata.get("kind")
        value = getattr(settings, field.name)
        if kind is not None and not kind.accepts(value):
            raise ValueError(f"{flag(field.name)} {value!r}: expected {kind}")


def read(kind: Kind, text: str) -> Any:
    """Parse the text of an option on the command line.

    Raises:
        ValueError: the message names the text, the accepted values and a near miss.
    """
    try:
        value = kind.parse(text)
    except ValueError:
        value = None
    if value is None or not kind.accepts(value):
        hint = did_you_mean(text, getattr(kind, "names", ()))
        raise ValueError(f"{text!r}: expected {kind}{hint}")
    return value


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean …?" with the most similar name; empty if there is none."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
