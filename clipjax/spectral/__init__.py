"""Clips of singular values.

A leaf of shape ``(…, columns)`` is read as the matrix ``(rest, columns)``, after the
axes that stack layers. A vector is a single row, with one singular value: its l2 norm.
"""

from .clip import clip_singular_values as clip_singular_values
from .methods import SVD as SVD
from .methods import Method as Method
from .methods import NewtonSchulz as NewtonSchulz
from .methods import PowerIteration as PowerIteration
