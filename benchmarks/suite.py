"""The tables that `make bench` measures, in the order of RESULTS.md."""

from __future__ import annotations

import pathlib

TABLES = pathlib.Path(__file__).parent / "tables"
# A table is the file `test_NAME.py`.
ORDER = (
    "clip_and_adam_costs_one_read",
    "clip_alone_is_one_read_and_one_copy",
    "time_is_linear_in_bytes",
    "many_leaves_cost_little_more",
    "compilation_beside_optax",
    "devices_add_no_collectives",
    "recipes_cost_about_a_global_clip",
    "spectral_recipes_cost_their_products",
    "train_steps_cost_two_percent_more",
    "metrics_and_recorder_cost_one_percent",
    "skips_cost_about_as_much_as_apply_if_finite",
    "adaptive_thresholds_do_not_wait_for_the_host",
    "clipping_per_example_costs_a_plain_gradient",
    "clipping_per_example_scales_like_the_plain_gradient",
    "clipping_per_example_needs_the_memory_of_a_gradient",
    "private_step_costs_little_more",
)
# The tables of `python -m benchmarks.accelerator`, which lead RESULTS.md.
PARTS_ON_ACCELERATOR = (
    *("bandwidth", "clips", "numbers", "steps", "per-example", "leaves"),
)


def tables_of_suite() -> tuple[str, ...]:
    """Return the names of all tables.

    Raises:
        ValueError: `ORDER` does not name the files that there are.
    """
    files = {path.stem.removeprefix("test_") for path in TABLES.glob("test_*.py")}
    if files != set(ORDER):
        raise ValueError(f"ORDER and {TABLES} differ by {files ^ set(ORDER)}")
    return ORDER


def path_of(name: str) -> pathlib.Path:
    """Return the file that measures a table."""
    return TABLES / f"test_{name}.py"
