"""What clips cost by XLA's counts, as one table: equations, reads, temporaries, lines.

    python -m benchmarks.gates

Counts do not depend on the machine. They are those of the tests in ``test_cost.py``:
equations per leaf of the jaxpr; reads and writes of the gradient, and temporaries in
sizes of the gradient, in a step with Adam beyond Adam's own, on XLA's CPU backend. Last
come the functions and files that a gradient passes, and the size of the engine.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import jax.numpy as jnp

import clipjax

from .clips import without_report
from .costs import cost_beyond_adam, equations_per_leaf, readers_path, structs
from .options import Parser, table

# The rooms of the engine in the first edition and in the second.
ENGINE = (
    "casts clipper distributed engine floats measured measurement order report scaling "
    "sums trees granularity granularity/* norms norms/* rules guards core/* spectral/*"
).split()


def clips() -> dict[str, Any]:
    """Return one clip of every structure."""
    unit = clipjax.clip_by(1.0, granularity=clipjax.granularity.unit())
    return {
        "global": clipjax.clip_by_global_norm(1.0),
        "learnt (zclip)": clipjax.zclip(),
        "leaf": clipjax.clip_by_leaf_norm(1.0),
        "unit": unit,
        "AGC": clipjax.adaptive_grad_clip(0.01),
        "entries": without_report(clipjax.clip_by_value, 1.0),
        "entries, report": clipjax.clip_by_value(1.0),
    }


def row(name: str, clip: Any) -> list[str]:
    """Return a row of the table."""
    cells = [name, f"{equations_per_leaf(lambda _: clip):.0f}"]
    for dtype in (jnp.float32, jnp.bfloat16):
        cost = cost_beyond_adam(clip, structs(dtype=dtype))
        cells.append(f"{cost.bytes_accessed:+.2f}, {max(cost.temporaries, 0):.2f}")
    return cells


def engine_size() -> str:
    """Return how long the engine is."""
    root = pathlib.Path(clipjax.__file__).parent
    files = sorted({f for part in ENGINE for f in root.glob(f"{part}.py")})
    lines = sum(len(file.read_text().splitlines()) for file in files)
    return f"The engine has {lines} lines in {len(files)} files."


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    Parser("gates", __doc__).parse_args(arguments)
    header = ["clip", "equations per leaf"]
    header += [f"{dtype}: reads, temporaries" for dtype in ("float32", "bfloat16")]
    print(table(header, [row(name, clip) for name, clip in clips().items()]))
    path = readers_path(clipjax.clip_by_global_norm(1.0))
    print(
        f"\nA gradient passes {path.functions} functions in {path.files} files, with "
        f"{path.changes} changes of file, in clip_by_global_norm(1.0).update."
    )
    print(engine_size())
    return 0


if __name__ == "__main__":
    sys.exit(main())
