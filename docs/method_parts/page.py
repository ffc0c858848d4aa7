"""Lays out the page of one recipe."""

from __future__ import annotations

import re

from .costs import Cost, count
from .docstrings import Recipe, as_markdown
from .notes import Notes, read_coordinates
from .scenes import SCENES, Scene
from .tables import AXES, as_table, on_the_axes

NAMES = ("Adam", "SGD")
REPORT = 11  # numbers that every clip's report has; the rest is per leaf or group


def page_of(recipe: Recipe, notes: Notes) -> str:
    """Makes the page of a recipe."""
    parts = [
        f"# {recipe.name}",
        as_markdown(recipe.summary),
        equation(recipe.equation),
        f"Purpose: [{notes.group}](../methods.md#{anchor(notes.group)}). "
        f"Entry in the API: `clipjax.{recipe.name}`.",
        figures(recipe.name, SCENES[recipe.name]),
        "## When to use it",
        f"**Use it when:** {lower_first(notes.use)}",
        f"**Do not use it when:** {lower_first(notes.avoid)}",
        "## What it does" if recipe.body else "",
        as_markdown(recipe.body),
        "## Coordinates",
        "Every clip is a choice on four axes ([glossary](../glossary.md)); "
        "`clipjax.clip_by` combines them freely.",
        coordinates(recipe),
        "## Arguments",
        f"```py\n{recipe.call}\n```",
        "\n".join(
            f"- `{name}`: {as_markdown(text)}" for name, text in recipe.arguments
        ),
        as_markdown(f"Returns {lower_first(recipe.returns)}"),
        "## Example",
        f"```python\n{recipe.example}\n\n```",
        "[Start](../start.md#clip-in-a-chain) puts a clip into a training step, and"
        " [Placement](../placement.md) says where in the chain it stands.",
        "## Edge cases",
        as_markdown(recipe.table),
        "## Pitfalls",
        "\n".join(f"- {pitfall}" for pitfall in notes.pitfalls),
        "## Cost",
        costs(recipe, count(recipe.name)),
        "## Related",
        "\n".join(
            f"- [{name}]({name}.md) {text}." for name, text in notes.related.items()
        ),
        "## Source",
        f"{as_markdown(recipe.reference).rstrip('.')}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def arguments(recipe: Recipe) -> str:
    """List the arguments with their meaning."""
    lines = (f"- `{name}`: {as_markdown(text)}" for name, text in recipe.arguments)
    return "\n".join(lines)


def equation(formula: str) -> str:
    """Show a formula, its parts below each other so that a phone shows them all."""
    parts = [part.strip() for part in re.split(r"\\qquad|, \\quad", formula)]
    if len(parts) > 1:
        lines = " \\\\\n".join(part.rstrip(",") for part in parts)
        formula = f"\\begin{{gathered}}\n{lines}\n\\end{{gathered}}"
    return f"$$\n{formula}\n$$"


def anchor(title: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def lower_first(text: str) -> str:
    """Begin a sentence in lower case, unless with a name."""
    if text.startswith(NAMES):
        return text
    return text[0].lower() + text[1:]


def figures(name: str, scene: Scene) -> str:
    """Show the figures of a recipe, and say what is in them."""
    folder = "../figures/methods"
    lines = [f"![What comes out of {name}, against what goes in]({folder}/{name}.svg)"]
    call = f"`clipjax.{scene.drawn or scene.plain}`"
    caption = f"{call}: the {scene.what} after the clip against the one before"
    if scene.path:
        alt = f"The threshold of {name} over 200 steps with one spike"
        lines.append(f"![{alt}]({folder}/{name}-path.svg)")
        caption += (
            ", at a step after 120 usual ones; and 200 steps whose gradients have "
            "log-normal norms about 1, and a spike of 100 at step 121"
        )
    caption += "."
    first, growth = scene.params
    if growth != 1:
        last = first * growth
        caption += f" The norm of the parameters grows from {first:g} to {last:g}."
    if scene.as_reported:
        caption += " Both are those of the report in the clip's state."
    if scene.kind == "outlier":
        caption += " The other 63 entries of the leaf are 0.03."
    if scene.kind == "matrix":
        caption += " The matrix has a second singular value of 0.5."
    return "\n".join([*lines, "", caption])


def coordinates(recipe: Recipe) -> str:
    """Explain the place of a recipe on each axis in one line."""
    meanings = read_coordinates()
    rows = []
    for axis, value in zip(AXES, on_the_axes(recipe.coordinates), strict=True):
        meaning = meanings[axis][value.split("(")[0]]
        rows.append([axis, value if value == "–" else f"`{value}`", meaning])
    return as_table(["axis", "here", "meaning"], rows)


def costs(recipe: Recipe, cost: Cost) -> str:
    """List what was counted."""
    per_group = recipe.coordinates.startswith("group")
    reads = [amount(cost.reductions, "sum or maximum", "sums or maxima")]
    reads += [amount(cost.products, "product", "products") + " of matrices"] * (
        cost.products > 0
    )
    reads += ["1 SVD"] * (cost.decompositions > 0)
    where = {
        None: "not possible: gather the matrices first, or clip under `jit`",
        0: "none",
    }.get(cost.collectives, f"{cost.collectives}")
    rows = [
        ["state for the report", numbers(cost.report, per_group)],
        ["state of the threshold", numbers(cost.memory, per_group)],
    ]
    if any(cost.optimizer):
        inside = numbers(cost.optimizer, per_group)
        rows.append(["state of the optimizer in it", inside])
    rows += [
        ["`update` needs", " and ".join(["the gradient", *cost.needs])],
        ["reductions of each leaf", ", ".join(reads)],
        ["all-reduces in `shard_map`, for leaves that are split alike", where],
    ]
    call = f"`clipjax.{SCENES[recipe.name].plain}`"
    intro = (
        f"Counted from the state and the traced program of {call}; XLA may join "
        "several all-reduces into one. Reductions are "
        "those of arrays of a leaf's size, parameters and moments included; the scaled "
        "update is one more read and one write. The branch for extreme magnitudes, "
        "which seldom runs, does not count."
    )
    return f"{intro}\n\n{as_table(['what', 'how much'], rows)}"


def amount(count: int, one: str, many: str) -> str:
    """Write a count with its noun."""
    return f"{count} {one if count == 1 else many}"


def numbers(counts: tuple[int, int, int], per_group: bool) -> str:
    """Write how many numbers a state has: at first, per leaf, and per parameter."""
    fixed, per_leaf, per_parameter = counts
    base = REPORT if fixed >= REPORT else 0
    per_block = {
        "": base if per_group else fixed,
        " per group": fixed - base if per_group else 0,
        " per leaf": per_leaf,
        " per parameter": per_parameter,
    }
    terms = [f"{count:,}{what}" for what, count in per_block.items() if count]
    if not terms:
        return "none"
    first, space, rest = terms[0].partition(" ")
    noun = "number" if first == "1" else "numbers"
    return " + ".join([f"{first} {noun}{space}{rest}", *terms[1:]])
