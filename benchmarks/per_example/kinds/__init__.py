"""Small models of every kind: parameters, the loss of one example, and a batch.

They differ in how a loss uses its parameters. The tests and the table of exactness
share them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import arrays, convolutions, equinox_modules, linen_modules, loops, nnx_modules

Kind = Callable[[], tuple[Any, Callable[[Any, Any], Any], Any]]

KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for module in (arrays, convolutions, loops, linen_modules, nnx_modules)
    for kind in module.KINDS
}
KINDS |= {kind.__name__: kind for kind in equinox_modules.KINDS}
