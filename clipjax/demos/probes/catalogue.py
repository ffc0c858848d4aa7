"""The names of the probes; nothing is imported before one of them is run."""

import importlib
from types import ModuleType
from typing import NamedTuple

from ..options import did_you_mean


class Entry(NamedTuple):
    """One probe.

    Attributes:
        summary: what it measures, for the list on the command line.
        is_experiment: whether its numbers stand beside those reported elsewhere, so
            that `clipjax probe experiments` runs it.
    """

    summary: str
    is_experiment: bool = False


# The name of a probe is that of its module, with "-" in place of "_".
PROBES = {
    "attention-scaling": Entry(
        "variance and gradient of attention logits with and without 1/sqrt(d)", True
    ),
    "outliers": Entry("a regression with wrong examples, each clipped by itself", True),
}

GROUPS = {
    "all": tuple(PROBES),
    "experiments": tuple(name for name, entry in PROBES.items() if entry.is_experiment),
}


def load(name: str) -> ModuleType:
    """The module of a probe, with its functions `measure` and `report`.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in PROBES:
        accepted = ", ".join((*PROBES, *GROUPS))
        hint = did_you_mean(name, (*PROBES, *GROUPS))
        raise ValueError(f"unknown probe {name!r}{hint}; accepted: {accepted}")
    return importlib.import_module(f".{name.replace('-', '_')}", __package__)
