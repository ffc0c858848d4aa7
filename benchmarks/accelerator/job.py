"""What the parts of the command share: their time, tables, programs and failures."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax

from .. import page
from ..report import Run, Table, write_text
from ..timing import Arm

T = TypeVar("T")
# What a device that tells nothing of its memory is taken to have.
LEAST_MEMORY = 8e9


def known_memory(device: Any) -> float | None:
    """Return the bytes that a program may use on a device, if the device tells them."""
    try:
        told = device.memory_stats() or {}
    except jax.errors.JaxRuntimeError:  # some devices do not implement it
        told = {}
    return told.get("bytes_limit")


def memory(device: Any) -> float:
    """Return the bytes that a program may use on a device, few if it does not tell."""
    return known_memory(device) or LEAST_MEMORY


def in_words(error: BaseException) -> str:
    """Return an error as a cell of a table: a line, without what would end the cell."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name}: not installed"
    first_line = str(error).partition("\n")[0].replace("|", "/")
    return f"{type(error).__name__}: {first_line[:80]}"


@dataclasses.dataclass
class Job:
    """One run of the command.

    Attributes:
        options: of the command line.
        deadline: when the part that runs has to end, on the monotonic clock.
        failures: a line for everything that makes the exit code 1.
        text: what was printed.
        compile_seconds_per_leaf: of a step with Adam, once it is known.
    """

    options: argparse.Namespace
    deadline: float = math.inf
    failures: list[str] = dataclasses.field(default_factory=list)
    text: str = ""
    compile_seconds_per_leaf: float = 0.0
    _left_out: list[str] = dataclasses.field(default_factory=list)

    @property
    def device(self) -> Any:
        """The first device, on which all of it runs."""
        return jax.devices()[0]

    @property
    def rounds(self) -> int:
        """How often an arm is measured."""
        return 2 if self.options.small else 11

    @property
    def calls(self) -> int:
        """How many calls one measurement has: several hide the time to dispatch one."""
        return 1 if self.options.small else 10

    def print(self, text: str) -> None:
        """Print a paragraph, and add it to the file of the report."""
        print(text + "\n", flush=True)
        self.text += text + "\n\n"
        if self.options.out:
            write_text(self.options.out / "report.md", self.text)

    def fail(self, subject: str, error: BaseException | str) -> str:
        """Note a failure and return its words; a missing package is none."""
        words = error if isinstance(error, str) else in_words(error)
        if not isinstance(error, ModuleNotFoundError):
            self.failures.append(f"{subject}: {words}")
        return words

    @contextlib.contextmanager
    def table(
        self, part: str, title: str, about: str, columns: Mapping[str, str]
    ) -> Iterator[Table]:
        """Give a table to fill; write and print it, also when its part failed midway.

        Its rows show the progress on the standard error output.
        """
        table, run = Table(f"accelerator-{part}", title, about.strip(), columns), Run()
        self._left_out = []
        with contextlib.redirect_stdout(sys.stderr):
            try:
                yield table
            except Exception as error:  # the parts that follow do not need this one
                self.fail(title, error)
        if self._left_out:
            table.about += (
                f"\n\nLeft out for lack of time: {', '.join(self._left_out)}."
            )
        if self.options.small:
            table.claims.clear()  # times of small sizes say nothing
        table.about_run = run.about() | {"device": self.about_device()}
        if self.options.out:
            table.write(self.options.out)
        self.print(page.section(table))

    def about_device(self) -> dict[str, Any]:
        """Return what is stored of the device."""
        known = known_memory(self.device)
        return {
            "platform": self.device.platform,
            "kind": self.device.device_kind,
            "count": jax.device_count(),
            "memory_gib": known and round(known / 2**30),
        }

    def in_time(
        self, units: Mapping[str, T], longest: float = 0.0
    ) -> Iterator[tuple[str, T]]:
        """Give the units for which there is time, and note those that are left out.

        A unit cannot be interrupted while it compiles: it is given if as much time is
        left as the longest one before it took.

        Args:
            units: what is to be done, by name.
            longest: the seconds that one will take at least, if they are known.
        """
        for name, unit in units.items():
            start = time.monotonic()
            if start + longest > self.deadline:
                self.leave_out(name)
                continue
            yield name, unit
            longest = max(longest, time.monotonic() - start)

    def leave_out(self, name: str) -> None:
        """Note what there was no time for."""
        self._left_out.append(name)


def together(
    makers: Mapping[str, Callable[[], Arm]], *, first: str | None = None
) -> tuple[dict[str, Arm], dict[str, Exception]]:
    """Compile arms in threads, which takes about as long as the slowest, and try each.

    Args:
        makers: what compiles each arm, by name.
        first: an arm that is compiled before the others. XLA for GPUs chooses the
            algorithm of a matrix product by timing it, and remembers the choice for
            the programs that follow, so the GPU has to be idle meanwhile.

    Returns:
        the arms that ran, and the errors of the others, by name.
    """
    arms, errors = {}, {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = {}
        for name in sorted(makers, key=lambda name: name != first):
            futures[name] = pool.submit(makers[name])
            if name == first:
                concurrent.futures.wait([futures[name]])
    for name, future in futures.items():
        try:
            arm = future.result()
            result = jax.block_until_ready(arm.step(arm.carry))
            arm.carry = result if arm.donates else arm.carry
            arms[name] = arm
        except Exception as error:  # for example: it needs too much memory
            errors[name] = error
    return arms, errors
