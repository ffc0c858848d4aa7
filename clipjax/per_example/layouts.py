"""The two factors of a gradient, for each kind of site.

At a site, with the parameter arranged as a stack of matrices, the gradient of one
example is ``G = leftᵀ right``. The factors have one row per use of the parameter, such
as one per token, and the example as first axis: ``left`` is ``[B, S, T, n]`` and
``right`` is ``[B, S, T, m]``, for S stacked matrices of shape n × m and T uses.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..jax_internals import jaxprs, shape_of
from .direct import HIGHEST, finite, weighted, widened
from .views import Site, is_clipped

GEOMETRY = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")


class Factors(NamedTuple):
    """The factors of the gradients at a site.

    Attributes:
        left: ``[B, S, T, n]``, in pieces along the last axis; for look-ups the rows'
            positions, ``[B, T]``.
        right: ``[B, S, T, m]``.
        record: the operand other than the parameter, in its original arrangement.
        cotangent: the cotangent, in its original arrangement.
    """

    left: tuple[jax.Array, ...]
    right: jax.Array
    record: Any
    cotangent: jax.Array

    def joined(self, other: Factors) -> Factors:
        """Append the uses of another site with the same arrangement."""
        (left,), (more,) = self.left, other.left
        axis = max(left.ndim - 2, 1)
        left = _concatenate(left, more, axis)
        return self._replace(
            left=(left,), right=_concatenate(self.right, other.right, 2)
        )


def _concatenate(one: jax.Array, two: jax.Array, axis: int) -> jax.Array:
    if one.dtype != two.dtype and jnp.issubdtype(one.dtype, jnp.floating):
        one, two = widened(one), widened(two)
    dtype = max(one.dtype, two.dtype, key=lambda dtype: dtype.itemsize)
    return jnp.concatenate([one.astype(dtype), two.astype(dtype)], axis)


class Layout:
    """How to compute a site's factors, and from them a weighted sum of gradients.

    Attributes:
        site: the site.
        stacked: axes of the record that scans over the parameter add to the stack.
        repeated: axes that other scans add to the uses.
        own_lengths: the lengths of the scans over the parameter.
        scans: how many of those there are.
    """

    def __init__(self, site: Site):
        self.site = site
        depths = range(len(site.lengths))
        own = [depth in site.view.levels for depth in depths]
        self.stacked = [1 + depth for depth in depths if own[depth]]
        self.repeated = [1 + depth for depth in depths if not own[depth]]
        self.own_lengths = [site.lengths[depth] for depth in depths if own[depth]]
        self.scans = len(self.own_lengths)

    def read(self, record: Any, cotangent: jax.Array) -> Factors:
        """Return the factors, given a site's other operand and its cotangent."""
        raise NotImplementedError

    def write(self, factors: Factors, weights: jax.Array) -> jax.Array:
        """Return the weighted sum of the examples' gradients, arranged as the view."""
        (left,) = factors.left
        left, right = (
            jnp.swapaxes(part, 0, 1).reshape(part.shape[1], -1, part.shape[-1])
            for part in (weighted(left, weights), finite(factors.right))
        )
        total = jnp.einsum("stn,stm->snm", left, right, precision=HIGHEST)
        return self.unsort(total)

    def unsort(self, total: jax.Array) -> jax.Array:
        """Return ``[S, n, m]`` in the axes of the view, those of its scans first."""
        raise NotImplementedError

    def arranged(self, array: Any) -> Any:
        """Return an array arranged as the view as ``[S, n, m]``."""
        raise NotImplementedError

    def sort(self, array: jax.Array, *groups: tuple[int, ...]) -> jax.Array:
        """Return an operand or a cotangent as ``[B, S, T, n]``.

        Args:
            array: the array, with the axes of examples and of scans first.
            *groups: the axes after those: of the stack, of the uses, and the rest.
        """
        scans = len(self.site.lengths)
        batch, free, last = (tuple(1 + scans + i for i in group) for group in groups)
        first = ([0], [*self.stacked, *batch], [*self.repeated, *free], last)
        return _merge(array, first)


class Dot(Layout):
    """A matrix product, of any number of axes."""

    def __init__(self, site: Site):
        super().__init__(site)
        contracting, batch = site.equation.setting("dimension_numbers")
        ranks = [len(shape_of(atom)) for atom in site.equation.inputs]
        free = [
            tuple(i for i in range(ranks[k]) if i not in (*contracting[k], *batch[k]))
            for k in (0, 1)
        ]
        mine, other, count = site.operand, site.other, len(batch[0])
        middle = count + len(free[0])
        first, second = range(count, middle), range(middle, middle + len(free[1]))
        from_other, from_view = (first, second) if other == 0 else (second, first)
        self.other = (tuple(batch[other]), free[other], tuple(contracting[other]))
        self.output = (tuple(range(count)), tuple(from_other), tuple(from_view))
        self.view = (tuple(batch[mine]), tuple(contracting[mine]), free[mine])

    def read(self, record, cotangent):
        if self.site.view.place is not None:
            record, cotangent = self._part(record, cotangent, *self.site.view.place)
        left = self.sort(record, *self.other)
        right = self.sort(cotangent, *self.output)
        return Factors((left,), right, record, cotangent)

    def _part(self, record: Any, cotangent: jax.Array, axis: int, start: int):
        """Return the slices that belong to this one of several joined parameters."""
        stop = start + self.site.view.shape[axis]
        batch, contracted, free = self.view

        def cut(array: jax.Array, axes: tuple[int, ...], position: int) -> jax.Array:
            along = 1 + len(self.site.lengths) + axes[position]
            return jax.lax.slice_in_dim(array, start, stop, axis=along)

        if axis in contracted:
            return cut(record, self.other[2], contracted.index(axis)), cotangent
        if axis in free:
            return record, cut(cotangent, self.output[2], free.index(axis))
        position = batch.index(axis)
        record = cut(record, self.other[0], position)
        return record, cut(cotangent, self.output[0], position)

    def unsort(self, total):
        order = [axis for group in self.view for axis in group]
        shape = [self.site.view.shape[axis] for axis in order]
        total = total.reshape(*self.own_lengths, *shape)
        back = [self.scans + order.index(axis) for axis in range(len(order))]
        return total.transpose(*range(self.scans), *back)

    def arranged(self, array):
        groups = [tuple(self.scans + axis for axis in group) for group in self.view]
        return _merge(array, [(*range(self.scans), *groups[0]), *groups[1:]])


class Lookup(Layout):
    """A look-up of rows by position.

    A position out of bounds selects no row; here it is ``rows``, the first that is not
    there.
    """

    def read(self, record, cotangent):
        rows, *rest = self.site.view.shape
        width = math.prod(rest)
        left = record
        if self.site.equation.name == jaxprs.GATHER:
            left = record[..., 0]
        # A narrow integer may not hold the number of rows.
        left = left.reshape(left.shape[0], -1)
        left = left.astype(jnp.int32) if left.dtype.itemsize < 4 else left
        right = cotangent.reshape(left.shape[0], 1, -1, width)
        if is_clipped(self.site.equation):
            left = jnp.clip(left, 0, rows - 1)
        is_row = (left >= 0) & (left < rows)
        right = jnp.where(is_row[:, None, :, None], right, 0)
        return Factors((jnp.where(is_row, left, rows),), right, record, cotangent)

    def write(self, factors, weights):
        right = weighted(factors.right, weights)
        rows = factors.left[0].reshape(-1)
        table = jnp.zeros(self.site.view.shape, right.dtype)
        right = right.reshape(rows.size, *table.shape[1:])
        return table.at[rows].add(right, mode="drop")

    def arranged(self, array):
        return array.reshape(1, array.shape[0], -1)


class Convolution(Layout):
    """A convolution, read as a matrix product of the patches under the kernel."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.numbers = site.equation.setting("dimension_numbers")
        self.groups = site.equation.setting("feature_group_count")
        self.geometry = {name: site.equation.setting(name) for name in GEOMETRY}
        spec = self.numbers.rhs_spec
        self.kernel = [site.view.shape[i] for i in spec[2:]]
        self.view = (spec[0], *spec[2:], spec[1])

    def read(self, record, cotangent):
        # Groups of channels are stacked matrices.
        scans, spec = 1 + len(self.site.lengths), self.numbers.out_spec
        sizes = [cotangent.shape[scans + i] for i in spec[2:]]
        right = self._split(cotangent, spec[1])
        right = self.sort(right, (spec[1],), _after(spec, 1), (spec[1] + 1,))
        spec = self.numbers.lhs_spec
        # Places come before channels, so that XLA copies whole rows of channels.
        last = (spec[1], spec[1] + 2)
        left = tuple(
            self.sort(
                self._split(patches, spec[1] + 1),
                *((spec[1] + 1,), _after(spec, 2), last),
            )
            for patches in self._patches(record, sizes, right.shape[-1])
        )
        return Factors(left, right, record, cotangent)

    def _patches(self, record: jax.Array, sizes: list[int], width: int):
        """Yield the input under each place of the kernel, an axis before the channels.

        Several places make a piece, about as wide as the cotangent: reading the
        cotangent again for each piece then costs no more than computing the piece, and
        only a few pieces are in memory at a time.
        """
        rank = record.ndim
        first = rank - len(self.numbers.lhs_spec)
        axes = [first + i for i in self.numbers.lhs_spec[2:]]
        channel = first + self.numbers.lhs_spec[1]
        strides, edges, inner, outer = self.geometry.values()
        padding = [(0, 0, 0)] * rank
        for axis, (low, high), dilation in zip(axes, edges, inner, strict=True):
            padding[axis] = (low, high, dilation - 1)
        padded = jax.lax.pad(record, jnp.zeros((), record.dtype), padding)
        places = []
        for offsets in itertools.product(*map(range, self.kernel)):
            cut = [slice(None)] * rank
            for axis, offset, step, stride, size in zip(
                axes, offsets, outer, strides, sizes, strict=True
            ):
                start = offset * step
                cut[axis] = slice(start, start + (size - 1) * stride + 1, stride)
            places.append(padded[tuple(cut)])
        count = -(-width * self.groups // record.shape[channel])
        for start in range(0, len(places), count):
            yield jnp.stack(places[start : start + count], axis=channel)

    def _split(self, array: jax.Array, channel: int) -> jax.Array:
        """Split the axis of channels into groups and the channels of a group."""
        axis = 1 + len(self.site.lengths) + channel
        shape = array.shape
        return array.reshape(*shape[:axis], self.groups, -1, *shape[axis + 1 :])

    def unsort(self, total):
        inputs = self.site.view.shape[self.numbers.rhs_spec[1]]
        total = total.reshape(*self.own_lengths, self.groups, *self.kernel, inputs, -1)
        total = jnp.moveaxis(total, -1, self.scans + 1)
        total = total.reshape(
            *self.own_lengths, *(self.site.view.shape[axis] for axis in self.view)
        )
        back = [self.scans + self.view.index(axis) for axis in range(len(self.view))]
        return total.transpose(*range(self.scans), *back)

    def arranged(self, array):
        order = [*range(self.scans), *(self.scans + axis for axis in self.view)]
        array = array.transpose(order)
        kernel = array.shape[self.scans + 1 :]
        array = array.reshape(*self.own_lengths, self.groups, -1, *kernel)
        array = jnp.moveaxis(array, self.scans + 1, -1)
        shape = array.shape
        stack = math.prod(shape[: self.scans + 1])
        return array.reshape(stack, -1, shape[-1])

    def write(self, factors, weights):
        # The convolution's own transpose sums over the examples.
        site = self.site
        cotangent = finite(factors.cotangent)
        other = weighted(factors.record, weights)
        wide = jnp.zeros((*self.own_lengths, *site.view.shape), other.dtype)

        def convolve(kernel: jax.Array, other: jax.Array) -> jax.Array:
            return jax.lax.conv_general_dilated(
                other,
                kernel,
                **self.geometry,
                dimension_numbers=self.numbers,
                feature_group_count=self.groups,
                precision=HIGHEST,
            )

        for depth in reversed(range(len(site.lengths))):
            kernel_axis = 0 if depth in site.view.levels else None
            convolve = jax.vmap(convolve, in_axes=(kernel_axis, 0))
        convolve = jax.vmap(convolve, in_axes=(None, 0))
        return jax.linear_transpose(lambda kernel: convolve(kernel, other), wide)(
            cotangent
        )[0]


KINDS = {"dot": Dot, "lookup": Lookup, "convolution": Convolution}


def layout_of(site: Site) -> Layout:
    """Return the layout of a site."""
    return KINDS[site.kind](site)


def _after(spec: tuple[int, ...], more: int) -> tuple[int, ...]:
    """Return the axes of batch and space, if channels take ``more`` further axes."""
    return tuple(i + more * (i > spec[1]) for i in (spec[0], *spec[2:]))


def _merge(array: Any, groups: Any) -> Any:
    order = [axis for group in groups for axis in group]
    shape = [math.prod(array.shape[axis] for axis in group) for group in groups]
    return array.transpose(order).reshape(shape)
