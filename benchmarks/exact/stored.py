"""The committed figures, by the version of JAX that they were counted with."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
from typing import Any

FILE = pathlib.Path(__file__).parent.parent / "results" / "exact.json"
SUBJECTS, OPTAX = "subjects", "optax"


def version() -> str:
    """Return the version of JAX, and that of jaxlib, where it is another."""
    jax, jaxlib = map(importlib.metadata.version, ("jax", "jaxlib"))
    return jax if jax == jaxlib else f"{jax} with jaxlib {jaxlib}"


def read() -> dict[str, Any]:
    """Return what is stored, by version; nothing if there is no file."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def entry(subjects: dict[str, Any], optax: dict[str, Any]) -> dict[str, Any]:
    """Return what is stored for one version: figures, and what they were counted with.

    Args:
        subjects: figures of clipjax, by subject.
        optax: figures of Optax's clips, for information.
    """
    return {
        "machine": platform.machine(),
        "versions": {"optax": importlib.metadata.version("optax")},
        SUBJECTS: subjects,
        OPTAX: optax,
    }


def write(stored: dict[str, Any]) -> None:
    """Replace the file at once."""
    FILE.parent.mkdir(exist_ok=True)
    new = FILE.with_name(f"{FILE.name}.{os.getpid()}.new")
    new.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", "utf-8")
    new.replace(FILE)
