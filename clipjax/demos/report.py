"""The files of a comparison: all of them complete, or none."""

import base64
import html
import importlib.metadata
import io
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from .. import plotting
from .compare import Result
from .presets import Settings
from .summary import Row, findings, table, window
from .tasks.base import Task

FIGURES = {
    "loss": "Median over seeds; the band reaches from the lowest to the highest seed. "
    "A cross marks where a seed left the real numbers.",
    "norm": "The norm that the clip saw and the norm it passed on.",
    "ratio": "1 where the gradient passed unchanged.",
    "threshold": "What each arm allowed.",
}
FILES = ("report.html", "results.json", *(f"{name}.png" for name in FIGURES))

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .35rem .5rem; border-bottom: 1px solid #ddd; text-align: right;
         font-variant-numeric: tabular-nums; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
code, pre { background: #f4f4f4; padding: .1rem .3rem; }
pre { padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; } img { max-width: 100%; }
figcaption, .note { color: #555; font-size: .9rem; }
"""


def check_destination(out: pathlib.Path) -> None:
    """Proves, before anything is trained, that the files can be written.

    Raises:
        ValueError: if `out` is not a directory, or nothing can be created in it or,
            where it does not exist yet, in the nearest directory above it.
    """
    accepted = "accepted: a new or existing directory that can be written to"
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise ValueError(f"--out {str(out)!r} is not a directory; {accepted}")
    for name in FILES:
        if (out / name).is_dir():
            raise ValueError(
                f"--out {str(out)!r} has a directory named {name!r}; {accepted}"
            )
    above = out.absolute()
    while not above.exists():
        above = above.parent
    try:
        # The permission bits do not tell: try it.
        os.rmdir(tempfile.mkdtemp(prefix=".clipjax-", dir=above))
    except OSError as error:
        raise ValueError(
            f"--out {str(out)!r} cannot be written to "
            f"({above}: {error.strerror}); {accepted}"
        ) from error


def write(
    out: pathlib.Path,
    settings: Settings,
    task: Task,
    results: Sequence[Result],
    rows: Sequence[Row],
    command: str,
) -> None:
    """Write report, results and figures beside `out`, and then move them there.

    An existing directory keeps its other files. What interrupts the writing leaves
    nothing behind.
    """
    figures = _figures(results, task.unit)
    versions = _versions()
    files: dict[str, bytes] = {f"{name}.png": png for name, png in figures.items()}
    files["results.json"] = _json(settings, results, rows, command, versions)
    files["report.html"] = _html(settings, task, rows, figures, command, versions)
    out = out.absolute()
    # Within an existing directory, which may be a mount of its own: moving a file is
    # atomic only inside one file system.
    beside = out if out.exists() else out.parent
    made = _make_parents(beside)
    temporary = beside / f".clipjax-{os.getpid()}"
    try:
        temporary.mkdir()
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        if out.exists():
            for name in FILES:
                os.replace(temporary / name, out / name)
        else:
            temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for directory in made:
            directory.rmdir()
        raise
    shutil.rmtree(temporary, ignore_errors=True)


def _make_parents(directory: pathlib.Path) -> list[pathlib.Path]:
    """Create the missing folders, and return them, deepest first."""
    missing = []
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        path.mkdir()
    return missing


def _figures(results: Sequence[Result], unit: str) -> dict[str, bytes]:
    def by_arm(name: str) -> dict[str, np.ndarray]:
        return {result.label: result.log[name] for result in results}

    width = window(results[0].log["loss"].shape[-1])
    raw, clipped = by_arm("grad_norm_raw"), by_arm("grad_norm_clipped")
    threshold = by_arm("threshold")
    figures = {
        "loss": plotting.plot_loss(by_arm("loss"), window=width, unit=unit),
        "norm": plotting.plot_norms(raw, clipped, threshold),
        "ratio": plotting.plot_clip_ratio(by_arm("clip_ratio"), window=width),
        "threshold": plotting.plot_threshold(threshold),
    }
    pngs = {}
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        pngs[name] = buffer.getvalue()
    return pngs


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("clipjax", "jax", "optax", "flax"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed (run from its sources)"
    return versions | {"backend": jax.default_backend()}


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become "inf", "-inf" and "nan"."""
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else str(float(value))
    if isinstance(value, np.bool_ | np.integer):
        return value.item()
    return str(value) if isinstance(value, pathlib.Path) else value


def _described(settings: Settings) -> dict[str, Any]:
    described = {"task": type(settings.model).__name__.lower()} | vars(settings)
    return described | {"model": vars(settings.model)}


def _json(
    settings: Settings,
    results: Sequence[Result],
    rows: Sequence[Row],
    command: str,
    versions: dict[str, str],
) -> bytes:
    content = {
        "command": command,
        "versions": versions,
        "settings": _described(settings),
        "note": "One entry per seed. Values that are not finite are the texts "
        "'inf', '-inf' and 'nan'. 'log' has one list of steps per seed.",
        "arms": {
            row.label: {"summary": vars(row), "log": result.log}
            for row, result in zip(rows, results, strict=True)
        },
    }
    return (json.dumps(_plain(content), allow_nan=False) + "\n").encode()


def _table(header: Iterable[str], cells: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in cells
    )
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"


def _html(
    settings: Settings,
    task: Task,
    rows: Sequence[Row],
    figures: dict[str, bytes],
    command: str,
    versions: dict[str, str],
) -> bytes:
    described = _described(settings)
    name = described["task"]
    model = {key: value for key, value in described["model"].items() if value}
    setup = ", ".join(f"{key} {value}" for key, value in model.items())
    images = "\n".join(
        f'<figure><img alt="{title}" src="data:image/png;base64,'
        f'{base64.b64encode(figures[title]).decode()}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for title, caption in FIGURES.items()
    )
    used = ", ".join(f"{key} {value}" for key, value in versions.items())
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>clipjax: {name} with and without clipping</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{name.upper()} with and without clipping</h1>
<p>{html.escape(task.source)}. Model: {html.escape(setup)}.
{settings.steps} steps of {html.escape(settings.optimizer)} at learning rate
{settings.lr:g}, seeds per arm: {settings.seeds}.</p>
<pre>{html.escape(command)}</pre>
<h2>What is seen</h2>
<p>{html.escape(" ".join(findings(rows)))}</p>
<h2>Table</h2>
<div class="wide">{_table(*table(rows))}</div>
<p class="note">Mean ± sample standard deviation over seeds. Losses are in
{html.escape(task.unit)}, final and best ones smoothed over
{window(settings.steps)} steps. A seed has diverged if its loss is not finite somewhere
or if the mean of its last 5 % of losses is above its loss at step 0. The median norm is
that of the gradient before clipping; the time per step leaves out compilation.</p>
<h2>Figures</h2>
{images}
<p class="note">{html.escape(used)}</p>
</body>
</html>
"""
    return page.encode()
