"""Granularities: which entries of a gradient tree share one norm.

A granularity folds the partial sums of the leaves into norms of blocks, and spreads
one value per block back over the leaves. Two forms of "one value per block" occur:

- `whole`, `leaf` and `group` have few blocks and keep them in one array, of shape
  ``()`` or ``(blocks,)`` in the order of the sorted block names;
- `unit` and `element` have many, and keep them in a dictionary from leaf name to
  an array that broadcasts against the leaf.
"""

from .base import Block as Block
from .base import Blocks as Blocks
from .base import Granularity as Granularity
from .few import Group as Group
from .few import Leaf as Leaf
from .few import Whole as Whole
from .few import group as group
from .few import leaf as leaf
from .few import whole as whole
from .many import Element as Element
from .many import Unit as Unit
from .many import element as element
from .many import unit as unit
from .singular import Singular as Singular
from .singular import singular as singular
