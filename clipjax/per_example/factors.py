"""Norms and weighted sums of gradients that are products, without making them.

At a site the gradient of one example is, with the parameter arranged as a stack of
matrices, ``G = leftᵀ right``, with a row per use of the parameter (per token, say). All
arrays have the example in front: ``left`` is ``[B, S, T, n]`` and ``right``
``[B, S, T, m]``, for S stacked matrices of shape n × m and T uses.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

from .direct import dense_squares, dense_sum, weighted, widened
from .jaxprs import shape_of
from .views import Site

HIGHEST = jax.lax.Precision.HIGHEST
GEOMETRY = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")


class Layout:
    """How a kind of site reads its factors, and writes a sum of gradients."""

    def __init__(self, site: Site):
        """Takes the site apart."""
        self.site = site
        depths = range(len(site.lengths))
        own = [depth in site.view.levels for depth in depths]
        self.stacked = [1 + depth for depth in depths if own[depth]]
        self.repeated = [1 + depth for depth in depths if not own[depth]]
        self.own_lengths = [site.lengths[depth] for depth in depths if own[depth]]

    def read(self, record: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Gives left and right."""
        raise NotImplementedError

    def write(self, product: Product, weights: jax.Array) -> jax.Array:
        """Sums the gradients with weights, arranged as the view."""
        left = jnp.swapaxes(_where(weights, product.left), 0, 1)
        right = jnp.swapaxes(weighted(product.right, weights), 0, 1)
        total = jnp.einsum(
            "stn,stm->snm",
            widened(left.reshape(left.shape[0], -1, left.shape[-1])),
            right.reshape(right.shape[0], -1, right.shape[-1]),
            precision=HIGHEST,
        )
        return self.unsort(total)

    def unsort(self, total: jax.Array) -> jax.Array:
        """Brings ``[S, n, m]`` to the axes of the view, with its scans in front."""
        raise NotImplementedError

    def sort(self, array: jax.Array, *groups: tuple[int, ...]) -> jax.Array:
        """Brings what was read, example and scans in front, to ``[B, S, T, n]``."""
        scans = len(self.site.lengths)
        batch, free, last = (tuple(1 + scans + i for i in group) for group in groups)
        first = ([0], [*self.stacked, *batch], [*self.repeated, *free], last)
        return _merge(array, first)


class Dot(Layout):
    """A matrix product, of any number of axes."""

    def __init__(self, site: Site):
        """Reads the dimension numbers of a ``dot_general``."""
        super().__init__(site)
        contracting, batch = site.equation.params["dimension_numbers"]
        ranks = [len(shape_of(atom)) for atom in site.equation.invars]
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
        """Sorts both."""
        return self.sort(record, *self.other), self.sort(cotangent, *self.output)

    def unsort(self, total):
        """Undoes the order of the view's axes."""
        order = [axis for group in self.view for axis in group]
        shape = [self.site.view.shape[axis] for axis in order]
        total = total.reshape(*self.own_lengths, *shape)
        scans = len(self.own_lengths)
        back = [scans + order.index(axis) for axis in range(len(order))]
        return total.transpose(*range(scans), *back)

    def arranged(self, array: Any) -> Any:
        """Brings the view itself to ``[S, n, m]``: which entry is which."""
        scans = len(self.own_lengths)
        groups = [tuple(scans + axis for axis in group) for group in self.view]
        return _merge(array, [(*range(scans), *groups[0]), *groups[1:]])


class Lookup(Layout):
    """Rows of a matrix, by index; ``left`` is the index, of shape ``[B, T]``."""

    def read(self, record, cotangent):
        """Turns an index that is out of bounds into one of no row."""
        rows, width = self.site.view.shape
        left = record.reshape(record.shape[0], -1)
        right = cotangent.reshape(record.shape[0], 1, -1, width)
        if "CLIP" in str(self.site.equation.params["mode"]):
            left = jnp.clip(left, 0, rows - 1)
        is_row = (left >= 0) & (left < rows)
        right = jnp.where(is_row[:, None, :, None], right, 0)
        return jnp.where(is_row, left, rows), right

    def write(self, product, weights):
        """Adds up the rows."""
        right = weighted(product.right, weights)
        rows = product.left.reshape(-1)
        table = jnp.zeros(self.site.view.shape, right.dtype)
        return table.at[rows].add(right.reshape(rows.size, -1), mode="drop")

    def arranged(self, array: Any) -> Any:
        """Is arranged already."""
        return array[None]


class Convolution(Layout):
    """A convolution, read as a matrix product of the patches under the kernel."""

    def __init__(self, site: Site):
        """Reads the dimension numbers."""
        super().__init__(site)
        self.settings = site.equation.params
        self.numbers = self.settings["dimension_numbers"]
        self.groups = self.settings["feature_group_count"]

    def read(self, record, cotangent):
        """Takes the patches; groups of channels are stacked matrices."""
        scans, spec = 1 + len(self.site.lengths), self.numbers.out_spec
        sizes = [cotangent.shape[scans + i] for i in spec[2:]]
        right = self._split(cotangent, spec[1])
        right = self.sort(right, (spec[1],), _after(spec, 1), (spec[1] + 1,))
        spec = self.numbers.lhs_spec
        # Places stand before channels, so that rows of channels are copied whole.
        left = self._split(self._patches(record, sizes), spec[1] + 1)
        last = (spec[1], spec[1] + 2)
        return self.sort(left, (spec[1] + 1,), _after(spec, 2), last), right

    def _patches(self, record: jax.Array, sizes: list[int]) -> jax.Array:
        """Gives what lies under each place of the kernel, before the channels."""
        rank = record.ndim
        axes = [
            rank - len(self.numbers.lhs_spec) + i for i in self.numbers.lhs_spec[2:]
        ]
        strides, _, inner, outer = (
            self.settings[name]
            for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
        )
        edges = [(0, 0, 0)] * rank
        for axis, (low, high), dilation in zip(
            axes, self.settings["padding"], inner, strict=True
        ):
            edges[axis] = (low, high, dilation - 1)
        padded = jax.lax.pad(record, jnp.zeros((), record.dtype), edges)
        kernel = [self.site.view.shape[i] for i in self.numbers.rhs_spec[2:]]
        places = []
        for offsets in itertools.product(*map(range, kernel)):
            cut = [slice(None)] * rank
            for axis, offset, step, stride, size in zip(
                axes, offsets, outer, strides, sizes, strict=True
            ):
                start = offset * step
                cut[axis] = slice(start, start + (size - 1) * stride + 1, stride)
            places.append(padded[tuple(cut)])
        channel = rank - len(self.numbers.lhs_spec) + self.numbers.lhs_spec[1]
        return jnp.stack(places, axis=channel)

    def _split(self, array: jax.Array, channel: int) -> jax.Array:
        """Splits the channels into groups."""
        axis = 1 + len(self.site.lengths) + channel
        shape = array.shape
        return array.reshape(*shape[:axis], self.groups, -1, *shape[axis + 1 :])

    def unsort(self, total):
        """Joins the groups of channels, and puts the kernel's axes in place."""
        spec, shape = self.numbers.rhs_spec, self.site.view.shape
        scans = len(self.own_lengths)
        kernel = [shape[axis] for axis in spec[2:]]
        total = total.reshape(
            *self.own_lengths, self.groups, *kernel, shape[spec[1]], -1
        )
        total = jnp.moveaxis(total, (-1, -2), (scans + 1, scans + 2))
        total = total.reshape(*self.own_lengths, *(shape[axis] for axis in spec))
        back = [scans + spec.index(axis) for axis in range(len(spec))]
        return total.transpose(*range(scans), *back)

    def write(self, product, weights):
        """Lets the convolution's own transpose sum over the examples."""
        record, cotangent = product.raw
        site = self.site
        cotangent = weighted(cotangent, weights)
        other = widened(_where(weights, record))
        wide = jnp.zeros((*self.own_lengths, *site.view.shape), other.dtype)

        def convolve(kernel: jax.Array, other: jax.Array) -> jax.Array:
            return jax.lax.conv_general_dilated(
                other,
                kernel,
                **{name: self.settings[name] for name in GEOMETRY},
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


def _after(spec: tuple[int, ...], more: int) -> tuple[int, ...]:
    """Gives the axes of batch and space, with more axes than one for the channels."""
    return tuple(i + more * (i > spec[1]) for i in (spec[0], *spec[2:]))


KINDS = {"dot": Dot, "lookup": Lookup, "convolution": Convolution}


@dataclasses.dataclass(frozen=True)
class Product:
    """A site, and what was read there."""

    left: jax.Array
    right: jax.Array
    layout: Layout
    raw: tuple[Any, jax.Array]
    gradient: jax.Array | None = None

    @property
    def site(self) -> Site:
        """The site."""
        return self.layout.site

    @property
    def is_lookup(self) -> bool:
        """Whether ``left`` holds rows that were looked up."""
        return isinstance(self.layout, Lookup)

    def weighted(self, weights: jax.Array) -> jax.Array:
        """Sums the gradients with weights, arranged as the view."""
        if self.gradient is None:
            return self.layout.write(self, weights)
        return self.layout.unsort(dense_sum(self.gradient, weights))


def product_of(site: Site, record: Any, cotangent: jax.Array) -> Product:
    """Sorts what was read at a site.

    Where that is no larger than its factors, and cheaper than their Gram matrices, the
    gradient of each example is made after all, once for its norm and the sum.
    """
    layout = KINDS[site.kind](site)
    left, right = layout.read(record, cotangent)
    product = Product(left, right, layout, (record, cotangent))
    if isinstance(layout, Lookup):
        return product
    uses, rows, columns = left.shape[2], left.shape[3], right.shape[3]
    is_small = rows * columns <= 2 * uses * (rows + columns)
    if is_small and uses * uses * (rows + columns) > 2 * rows * columns:
        return dataclasses.replace(product, gradient=_gradient(product))
    return product


def arranged(site: Site, array: Any) -> Any:
    """Brings a view to ``[S, n, m]``, or gives None where that is not known."""
    layout = KINDS[site.kind](site)
    return None if isinstance(layout, Convolution) else layout.arranged(array)


def _merge(array: Any, groups: Any) -> Any:
    order = [axis for group in groups for axis in group]
    shape = [math.prod(array.shape[axis] for axis in group) for group in groups]
    return array.transpose(order).reshape(shape)


def squared_norm(product: Product) -> jax.Array:
    """Gives ‖G‖² of each example, the cheaper way."""
    left, right = product.left, product.right
    if product.is_lookup:
        return inner(product, product)
    uses, rows, columns = left.shape[2], left.shape[3], right.shape[3]
    if product.gradient is None and 2 * uses * uses < rows * columns:
        return inner(product, product)
    gradient = product.gradient
    gradient = _gradient(product) if gradient is None else gradient
    return dense_squares(gradient)


def _gradient(product: Product) -> jax.Array:
    return jnp.einsum(
        "bstn,bstm->bsnm",
        widened(product.left),
        widened(product.right),
        precision=HIGHEST,
    )


def inner(one: Product, two: Product, swapped: bool = False) -> jax.Array:
    """Gives ⟨G₁, G₂⟩ of each example by Gram matrices of the uses.

    Args:
        one: a product.
        two: another, of the same arrangement of the same parameter.
        swapped: whether the second's arrangement is the first's transposed.
    """
    if one.is_lookup and two.is_lookup:
        same = one.left[:, :, None] == two.left[:, None, :]
        return jnp.sum(jnp.where(same, _gram(one.right, two.right)[:, 0], 0), (1, 2))
    if two.is_lookup:
        return inner(two, one, swapped)
    left, right = (two.right, two.left) if swapped else (two.left, two.right)
    if one.is_lookup:
        index = jnp.minimum(one.left, left.shape[-1] - 1)[:, :, None]
        columns = jnp.swapaxes(left[:, 0], 1, 2)
        picked = widened(jnp.take_along_axis(columns, index, axis=1))
        return jnp.sum(picked * _gram(one.right, right)[:, 0], axis=(1, 2))
    products = _gram(one.left, left) * _gram(one.right, right)
    return jnp.sum(products, axis=(1, 2, 3))


def _gram(one: jax.Array, two: jax.Array) -> jax.Array:
    return jnp.einsum(
        "bstn,bsun->bstu",
        widened(one),
        widened(two),
        precision=HIGHEST,
    )


def _where(weights: jax.Array, array: jax.Array) -> jax.Array:
    """Selects away examples of weight 0: a product would keep their NaN."""
    return jnp.where(_beside(weights, array) != 0, array, 0)


def _beside(weights: jax.Array, array: jax.Array) -> jax.Array:
    return weights.reshape(-1, *[1] * (array.ndim - 1))
