"""Write several files atomically: either all of them are complete, or none exists."""

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def check_destination(out: pathlib.Path, names: Iterable[str]) -> None:
    """Check, before anything is trained, that the files can be written.

    Raises:
        ValueError: if `out` is not a directory, or nothing can be created in it or,
            where it does not exist yet, in the nearest directory above it.
    """
    accepted = "accepted: a new or existing directory that can be written to"
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise ValueError(f"--out {str(out)!r} is not a directory; {accepted}")
    for name in names:
        if (out / name).is_dir():
            raise ValueError(
                f"--out {str(out)!r} has a directory named {name!r}; {accepted}"
            )
    above = out.absolute()
    while not above.exists():
        above = above.parent
    try:
        # Permission bits are not enough (read-only mounts, access lists): try it.
        os.rmdir(tempfile.mkdtemp(prefix=".clipjax-", dir=above))
    except OSError as error:
        raise ValueError(
            f"--out {str(out)!r} cannot be written to "
            f"({above}: {error.strerror}); {accepted}"
        ) from error


def write(
    out: pathlib.Path, files: Mapping[str, bytes], remove: Iterable[str] = ()
) -> None:
    """Write the files to a temporary directory, and then move them to `out`.

    An existing directory keeps its other files. An interrupted call leaves no partial
    files behind.

    Args:
        out: the directory.
        files: the contents, by file name.
        remove: names of files of an earlier run, deleted unless they are written.
    """
    out = out.absolute()
    # Within an existing directory, which may be a mount of its own: moving a file is
    # atomic only inside one file system.
    beside = out if out.exists() else out.parent
    made = make_directory(beside)
    temporary = beside / f".clipjax-{os.getpid()}"
    try:
        temporary.mkdir()
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        if out.exists():
            for name in files:
                os.replace(temporary / name, out / name)
            for name in set(remove) - files.keys():
                (out / name).unlink(missing_ok=True)
        else:
            temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for directory in made:
            directory.rmdir()
        raise
    shutil.rmtree(temporary, ignore_errors=True)


def make_directory(directory: pathlib.Path) -> list[pathlib.Path]:
    """Create a directory and those above it; return the new ones, deepest first."""
    missing = []
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        path.mkdir()
    return missing


def plain(value: Any) -> Any:
    """Replace infinities and NaN, which JSON lacks, by "inf", "-inf" and "nan"."""
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else str(float(value))
    if isinstance(value, np.bool_ | np.integer):
        return value.item()
    return str(value) if isinstance(value, pathlib.Path) else value


def to_json(value: Any) -> bytes:
    """Return one line of JSON, with non-finite numbers replaced by `plain`."""
    return (json.dumps(plain(value), allow_nan=False) + "\n").encode()


def read_limited(path: pathlib.Path, limit: int) -> bytes:
    """Return the bytes of a file, at most `limit` of them.

    The file is read to find its size, since devices and pipes report none.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is larger.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{str(path)!r} is larger than {limit // 2**20} MiB")
    return content
