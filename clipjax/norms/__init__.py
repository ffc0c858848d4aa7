"""Norms: how a block of entries is measured.

A norm is a fold and then a scalar map: `Norm.accumulate` sums up one leaf,
`Norm.merge` joins leaves (and devices, by `Norm.collective`), `Norm.finish` turns
the sum into the norm. So a norm over many leaves, or over many devices, is the
same operation as a norm over one array.
"""

from .base import Axes as Axes
from .base import Norm as Norm
from .fixed_point import ReproducibleL2 as ReproducibleL2
from .largest import Linf as Linf
from .powers import RMS as RMS
from .powers import Lp as Lp
from .powers import lp as lp
from .singular_value import Spectral as Spectral
from .singular_value import spectral as spectral

l1 = Lp(1)
l2 = Lp(2)
linf = Linf()
rms = RMS()
reproducible_l2 = ReproducibleL2()
"""The 2-norm, to the same bit on any mesh: sums of integers have no order.

The largest magnitude is found first, then squares are added up in 48 bits behind the
point at its scale. For N entries the norm is right to N · 2⁻⁵⁰ and half an ulp, at
worst: to 1e-6 for 10⁹ entries. It costs a second read and a second all-reduce, of the
maximum. Its derivative is that of `l2`.
"""
