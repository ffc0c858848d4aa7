"""Checkpoints of runs: the complete state of each run in one file of arrays.

A file also contains private values, such as losses and norms: store it with the data.
The guarantee does not cover it.
"""

import io
import json
import pathlib
import zipfile
from typing import Any

import jax
import numpy as np

from .. import files

DIRECTORY = "runs"


def save(
    out: pathlib.Path,
    name: str,
    settings: dict[str, Any],
    tree: Any,
    curves: dict[str, list],
) -> None:
    """Replace the file of a run atomically.

    Args:
        out: the directory of the command.
        name: the run's name.
        settings: the settings that must not change when the run continues.
        tree: parameters and states; PRNG keys as their words, plain integer arrays.
        curves: the measurements so far.
    """
    arrays = {f"tree/{at}": leaf for at, leaf in enumerate(jax.tree.leaves(tree))}
    arrays |= {f"curve/{name}": np.asarray(row) for name, row in curves.items()}
    buffer = io.BytesIO()
    np.savez(buffer, settings=json.dumps(files.plain(settings)), **arrays)
    files.write(out / DIRECTORY, {f"{name}.npz": buffer.getvalue()})


def load(
    out: pathlib.Path, name: str, settings: dict[str, Any], like: Any
) -> tuple[Any, dict[str, list]] | None:
    """Return the saved tree and curves of a run; None if the run has not begun.

    Raises:
        ValueError: the file is damaged, or belongs to a run with other settings.
    """
    path = out / DIRECTORY / f"{name}.npz"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = dict(content)
        before = json.loads(str(arrays["settings"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"--resume: {str(path)!r} is no run of this command ({error!r}); accepted: "
            "the --out of an earlier one"
        ) from error
    now = files.plain(settings)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ValueError(
                f"--resume: {key} was {before.get(key)} in {str(path)!r} and is "
                f"{now.get(key)} now; accepted: other --epsilon and --seeds alone"
            )
    leaves, structure = jax.tree.flatten(like)
    kept = [arrays[f"tree/{at}"] for at in range(len(leaves))]
    curves = {
        key.removeprefix("curve/"): array.tolist()
        for key, array in arrays.items()
        if key.startswith("curve/")
    }
    return jax.tree.unflatten(structure, map(jax.numpy.asarray, kept)), curves
