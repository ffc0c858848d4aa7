"""The report of a heat map: a table, sentences and a figure."""

import csv
import html
import io
import math
from typing import Any

import numpy as np

from .. import plotting
from ..diagnostics import suggest_thresholds
from . import files, pages
from .arms import recipe
from .heat_map import HeatMap, Run
from .presets import Tuning

FILES = ("report.html", "heat_map.json", "heat_map.csv", "heat_map.png")


def label(threshold: float) -> str:
    """Return the heading of a column."""
    return "no clip" if threshold == math.inf else f"{threshold:g}"


def cells(heat: HeatMap) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the table; a star marks the best cell."""
    best = heat.best()
    rows = []
    for row, rate in enumerate(heat.learning_rates):
        texts = [f"{rate:g}"]
        for column in range(len(heat.thresholds)):
            bad = int(heat.diverged[row, column].sum())
            mean = heat.mean[row, column]
            text = f"{mean:.3f}" if np.isfinite(mean) and mean < 1e4 else "-"
            text += f" ({bad} div.)" if bad else ""
            texts.append(text + (" *" if best == (row, column) else ""))
        rows.append(texts)
    return ["rate", *map(label, heat.thresholds)], rows


def pasted(settings: Tuning, heat: HeatMap) -> str | None:
    """Return the Python expression of the best cell; None if every cell diverged."""
    best = heat.best()
    if best is None:
        return None
    row, column = best
    return recipe(
        settings.optimizer,
        float(heat.learning_rates[row]),
        float(heat.thresholds[column]),
    )


def findings(heat: HeatMap) -> list[str]:
    """Return the findings, a list of sentences."""
    best, unclipped = heat.best(), heat.best(slice(-1, None))
    if best is None:
        return ["Every cell diverged: these learning rates are too high."]
    said = [f"Best cell: {_cell(heat, best)}."]
    if unclipped is None:
        said.append("Without a clip every learning rate diverged.")
    elif unclipped != best:
        gap = heat.mean[unclipped] - heat.mean[best]
        noise = max(np.ptp(heat.loss[best]), np.ptp(heat.loss[unclipped]))
        tie = ", within the range over seeds: no difference to rely on"
        said.append(
            f"Best without a clip: {_cell(heat, unclipped)}, {gap:.3f} above"
            f"{tie if gap <= noise else ''}."
        )
    free = heat.highest_rate(-1)
    clipped = heat.highest_rate(best[1])
    said.append(
        f"Learning rates without divergence: {_range(heat, free)} without a clip"
    )
    if label(heat.thresholds[best[1]]) != "no clip":
        said[-1] += f", {_range(heat, clipped)} with {heat.thresholds[best[1]]:g}"
    said[-1] += "."
    if best[0] in (0, len(heat.learning_rates) - 1):
        end = "lowest" if best[0] == 0 else "highest"
        said.append(
            f"The best learning rate is the {end} one tried: try beyond it, too."
        )
    return said


def _cell(heat: HeatMap, at: tuple[int, int]) -> str:
    row, column = at
    spread = heat.loss[at].std(ddof=1) if heat.loss.shape[-1] > 1 else 0.0
    threshold = heat.thresholds[column]
    with_clip = "no clip" if threshold == math.inf else f"threshold {threshold:g}"
    return (
        f"learning rate {heat.learning_rates[row]:g}, {with_clip}, loss "
        f"{heat.mean[at]:.3f} ± {spread:.3f}"
    )


def _range(heat: HeatMap, highest: float | None) -> str:
    return "none of those tried" if highest is None else f"up to {highest:g}"


def suggestion(heat: HeatMap) -> dict[str, Any] | None:
    """Return the recommendation from the norms alone, and the heat map's best columns.

    The norms are those of the runs without a clip at their best learning rate, as
    recorded before clipping was ever tried. None if all of these runs diverged, or if
    every cell with a clip did.
    """
    unclipped, best = heat.best(slice(-1, None)), heat.best(slice(0, -1))
    if unclipped is None or best is None:
        return None
    row = unclipped[0]
    try:
        table = suggest_thresholds(heat.norms[row].ravel())
    except ValueError:  # too few steps to tell
        return None
    limits, recommended = heat.thresholds[:-1], table.recommended

    def distance(threshold: float, column: int) -> float:
        return abs(math.log(threshold / limits[column]))

    nearest = min(
        range(len(limits)), key=lambda column: distance(recommended.threshold, column)
    )
    same_rate = np.where(heat.is_usable, heat.mean, np.inf)[row, :-1]
    return {
        "learning_rate": float(heat.learning_rates[row]),
        "rows": [each._asdict() for each in table.rows],
        "recommended": recommended._asdict(),
        "reason": " ".join([table.reason, *table.cautions]),
        "best_column": float(limits[best[1]]),
        "best_column_at_this_rate": float(limits[int(np.argmin(same_rate))]),
        "columns_apart": abs(nearest - best[1]),
        "nearest_to_best": min(
            table.rows, key=lambda each: distance(each.threshold, best[1])
        )._asdict(),
    }


def say_suggestion(suggested: dict[str, Any]) -> str:
    """Return the recommendation from the norms alone, in two sentences."""
    apart = suggested["columns_apart"]
    recommended, near = suggested["recommended"], suggested["nearest_to_best"]
    where = {0: "that column", 1: "the column beside it"}.get(
        apart, f"{apart} columns away"
    )
    return (
        "The norms alone, recorded without a clip at learning rate "
        f"{suggested['learning_rate']:g}, recommend {recommended['threshold']:.3g} "
        f"({recommended['strategy']}); the best column is "
        f"{suggested['best_column_at_this_rate']:g} at that learning rate, and "
        f"{suggested['best_column']:g} over all: {where}. Of the strategies, "
        f"{near['strategy']} comes nearest to it, {near['threshold']:.3g}."
    )


def contents(
    settings: dict[str, Any],
    heat: HeatMap,
    runs: list[Run],
    command: str,
    paste: str | None,
    suggested: dict[str, Any] | None,
) -> dict[str, bytes]:
    """Return the files of a heat map, by name."""
    best = heat.best()
    said = findings(heat)
    content = {
        "command": command,
        "settings": settings,
        "learning_rates": heat.learning_rates,
        "thresholds": heat.thresholds,
        "loss": heat.loss,
        "diverged": heat.diverged,
        "best": best and [heat.learning_rates[best[0]], heat.thresholds[best[1]]],
        "highest_learning_rate": [
            heat.highest_rate(column) for column in range(len(heat.thresholds))
        ],
        "recipe": paste,
        "suggested": suggested,
        "findings": said,
        "note": "'loss' and 'diverged' have the axes learning rate, threshold, seed. "
        "Values that are not finite are the texts 'inf', '-inf' and 'nan'.",
    }
    table = io.StringIO()
    names = ("learning_rate", "threshold", "seed", "loss", "diverged", "clipped")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(run, name) for name in names] for run in runs)
    figure = plotting.plot_sweep(
        heat.mean,
        heat.learning_rates,
        heat.thresholds,
        diverged=~heat.is_usable,
        label="mean of the last losses",
    )
    png = pages.to_png(figure)
    return {
        "heat_map.json": files.to_json(content),
        "heat_map.csv": table.getvalue().encode(),
        "heat_map.png": png,
        "report.html": _page(settings, heat, said, command, paste, suggested, png),
    }


def _page(
    settings: dict[str, Any],
    heat: HeatMap,
    said: list[str],
    command: str,
    paste: str | None,
    suggested: dict[str, Any] | None,
    png: bytes,
) -> bytes:
    name = f"{settings['task'].upper()}: learning rate and threshold"
    alt = f"Heat map of the loss by learning rate and threshold. {said[0]}"
    caption = (
        "A cell is the mean over seeds of the last losses. Cells without a number "
        "diverged."
    )
    pasted = f"<pre>{html.escape(paste)}</pre>\n" if paste else ""
    norms = (
        f"<h2>From the norms alone</h2>\n<p>{html.escape(say_suggestion(suggested))} "
        f"{html.escape(suggested['reason'])}</p>\n"
        if suggested
        else ""
    )
    body = f"""<h1>{html.escape(name)}</h1>
{pages.verdict(said)}
{pasted}{pages.figures([pages.figure(alt, png, caption, is_chart=False)])}
<h2>Numbers</h2>
{pages.table(*cells(heat))}
<p class="note">Rows are learning rates, columns thresholds. Mean of the last
{settings["last"]} of {settings["steps"]} losses over seeds ({settings["seeds"]} per
cell); * is the best cell; in parentheses, how many seeds diverged.</p>
{norms}<h2>Setup</h2>
<pre>{html.escape(command)}</pre>"""
    return pages.page(f"clipjax: {name}", body)
