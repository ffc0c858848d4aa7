"""Packages that only some functions need."""

from __future__ import annotations

import importlib
from typing import Any


def require_extra(module: str, who: str) -> Any:
    """Import a module of the extra ``monitoring``.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{who} needs {package}: pip install 'clipjax[monitoring]'"
        ) from error
