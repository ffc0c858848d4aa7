"""The mesh axes that each leaf is split over, and reductions over those axes.

Under ``jit``, XLA itself reduces over devices. Inside ``shard_map`` and ``pmap`` a leaf
is one shard, and a clip has to know over which axes to reduce. It learns this from the
leaf's type, from its parameter's type, or from the argument ``axis_name``.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..jax_internals import Tracer, manual_axes, resharded, spec_of, varying_axes
from .trees import Leaves

AxisNames = Hashable | tuple[Hashable, ...] | None
MeshAxes = tuple[Hashable, ...]

_WORKERS: contextvars.ContextVar[frozenset[Hashable]] = contextvars.ContextVar(
    "workers", default=frozenset()
)


def as_tuple(axis_name: AxisNames) -> tuple[Hashable, ...]:
    """Return an ``axis_name`` argument (None, a name, several names) as a tuple."""
    if axis_name is None:
        return ()
    return axis_name if isinstance(axis_name, tuple) else (axis_name,)


@contextlib.contextmanager
def each_worker(axis_name: AxisNames) -> Iterator[None]:
    """Allow gradients to differ over these axes: each worker measures its own."""
    token = _WORKERS.set(_WORKERS.get() | set(as_tuple(axis_name)))
    try:
        yield
    finally:
        _WORKERS.reset(token)


def types_tell(axis: Hashable) -> bool:
    """Return whether types show variation over an axis, as in ``shard_map`` by default.

    Types do not show it under ``pmap`` and ``vmap``, nor with ``check_vma=False``.

    Raises:
        ValueError: there is no such axis.
    """
    try:
        index = jax.lax.axis_index(axis)
    except NameError as error:
        raise ValueError(
            f"axis_name names {axis!r}, and there is no such axis here: pass those of "
            "shard_map, pmap or vmap, and under jit alone leave axis_name out"
        ) from error
    return axis in varying_axes(jnp.asarray(index))


def worker_axes() -> frozenset[Hashable]:
    """Return the axes over which gradients may differ; see `each_worker`."""
    return _WORKERS.get()


def mesh_axes(
    leaves: Leaves, axis_name: AxisNames, params: Any = None, what: str = "norm"
) -> list[MeshAxes]:
    """Return the manual mesh axes over which each leaf of a gradient is split.

    Without ``axis_name``, these are the axes over which the leaf's parameter varies.
    With it, they are those named axes over which the leaf varies according to its type,
    or all named axes where types do not show it.

    Args:
        leaves: the gradient.
        axis_name: the argument of the clip.
        params: the parameters, if there are any.
        what: what is computed from the leaves, for errors.

    Raises:
        ValueError: the axes cannot be determined; or a leaf varies over further axes,
            as the gradient of a single worker does, or over fewer than its parameter;
            or, outside ``jit``, leaves lie on different devices.
    """
    workers = _WORKERS.get()
    manual = tuple(name for name in manual_axes() if name not in workers)
    names = as_tuple(axis_name)
    if not manual and not names:
        _require_same_devices(leaves)
        return [()] * len(leaves.arrays)
    silent = {name for name in (*manual, *names) if not types_tell(name)}
    if axis_name is None:
        if silent:
            raise ValueError(_types_are_silent(sorted(silent, key=str), what))
        names = manual
    owners = {}
    if params is not None and axis_name is None:
        own = Leaves.of(params)
        owners = dict(zip(own.paths, own.arrays, strict=True))
    split = []
    for position, leaf in enumerate(leaves.arrays):
        varying = varying_axes(leaf)
        owner = leaf
        if axis_name is None:
            path = leaves.paths[position] if owners else None
            if path in owners:
                owner = owners[path]
            elif varying - workers:
                name = leaves.names[position]
                raise ValueError(_is_local(name, varying - workers, what))
        own = varying_axes(owner) | silent
        split.append(tuple(name for name in names if name in own))
        unreduced = varying - workers - set(split[-1])
        if unreduced and axis_name != ():
            raise ValueError(
                _is_unreduced(leaves.names[position], unreduced, axis_name, what)
            )
        alike = varying_axes(owner) - workers - varying
        if alike:
            raise ValueError(_is_no_shard(leaves.names[position], alike))
    return split


def _require_same_devices(leaves: Leaves) -> None:
    # Outside jit, JAX refuses to combine arrays committed to different devices.
    places = {
        frozenset(leaf.sharding.device_set): position
        for position, leaf in enumerate(leaves.arrays)
        if isinstance(leaf, jax.Array)
        and not isinstance(leaf, Tracer)
        and leaf.committed
    }
    if len(places) > 1:
        (one, first), (two, second) = list(places.items())[:2]
        raise ValueError(
            f"leaves lie on different devices, {leaves.names[first]!r} on "
            f"{sorted(map(str, one))} and {leaves.names[second]!r} on "
            f"{sorted(map(str, two))}: call it under jit"
        )


def _listed(axes: Iterable[Hashable]) -> tuple[Hashable, ...]:
    return tuple(sorted(axes, key=str))


def _types_are_silent(axes: Iterable[Hashable], what: str) -> str:
    return (
        f"types do not say whether leaves are split over the axes {_listed(axes)}, so "
        f"that a {what} could be that of one shard: pass axis_name=(...) with the axes "
        "that parameters are split over, or axis_name=() if every device holds the "
        "whole gradient, reduced over devices"
    )


def _is_local(leaf: str, axes: Iterable[Hashable], what: str) -> str:
    axes = _listed(axes)
    by_itself = ", or axis_name=() for a clip on each device by itself"
    return (
        f"{leaf or 'the update'} differs over the mesh axes {axes}, so that its {what} "
        f"would be that of one shard: pass axis_name={axes}, or params to update if "
        f"they are split alike{by_itself if what == 'norm' else ''}"
    )


def _is_unreduced(
    leaf: str, axes: Iterable[Hashable], axis_name: AxisNames, what: str
) -> str:
    axes = _listed(axes)
    why = "and its parameter does not" if axis_name is None else f"not in {axis_name=}"
    mend = f"jax.lax.psum(grads, {axes}), the sum over workers"
    if what == "norm":
        mend = (
            f"jax.lax.pmean(grads, {axes}) to clip the mean, or clip each worker's by "
            f"clipjax.per_worker(clip, {axes})"
        )
    return (
        f"{leaf or 'the update'} differs over the mesh axes {axes}, {why}: it looks "
        f"like one worker's gradient, not yet reduced. Pass {mend}"
    )


def _is_no_shard(leaf: str, axes: Iterable[Hashable]) -> str:
    axes = _listed(axes)
    return (
        f"{leaf or 'the update'} is the same over the mesh axes {axes}, and its "
        "parameter differs: it looks reduced. Pass update the parameters as they were "
        f"before jax.lax.pcast; or, if it is a shard, jax.lax.pcast it over {axes}"
    )


def shared(value: Any, name: str) -> jax.Array:
    """Return a scalar that must be the same on all devices.

    Raises:
        ValueError: it differs, according to its type, as the loss of one worker does.
    """
    value = jnp.asarray(value)
    axes = _listed(varying_axes(value) - _WORKERS.get())
    if axes:
        raise ValueError(
            f"{name} differs over the mesh axes {axes}, so that devices would take "
            f"different decisions: pass jax.lax.pmean({name}, {axes})"
        )
    return value


def gathered(leaf: jax.Array, kept: int) -> jax.Array:
    """Gather all axes after the first ``kept``, on an Explicit mesh.

    On other meshes the leaf is returned unchanged, and XLA gathers where it has to.
    """
    spec = spec_of(leaf)
    return resharded(leaf, (*spec[:kept], *(None for _ in spec[kept:])))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def pmax(values: jax.Array, axis_names: Any) -> jax.Array:
    """Return the maximum over devices, with the derivative of ``jnp.max``.

    ``jax.lax.pmax`` has no derivative.
    """
    return jax.lax.pmax(values, axis_names)


@pmax.defjvp
def _derivative_of_pmax(axis_names: Any, primals: Any, tangents: Any) -> Any:
    (values,), (along,) = primals, tangents
    largest = pmax(values, axis_names)
    is_largest = (values == largest).astype(values.dtype)
    ties = jax.lax.psum(is_largest, axis_names)
    return largest, jax.lax.psum(is_largest * along, axis_names) / ties


def over_devices(
    partials: Sequence[jax.Array],
    axes: Sequence[MeshAxes],
    collective: Callable[[Any, Any], Any],
) -> list[jax.Array]:
    """Reduce one partial result per leaf, with one collective per set of axes.

    Args:
        partials: one array per leaf, all of one dtype.
        axes: the mesh axes that each leaf is split over.
        collective: ``jax.lax.psum`` or `pmax`.
    """
    reduced = list(partials)
    # Not a set: every process must issue the same collectives in the same order.
    for names in dict.fromkeys(filter(None, axes)):
        members = [i for i, own in enumerate(axes) if own == names]
        flat = jnp.concatenate([partials[i].reshape(-1) for i in members])
        flat = collective(flat, names)
        start = 0
        for i in members:
            size = partials[i].size
            reduced[i] = flat[start : start + size].reshape(partials[i].shape)
            start += size
    return reduced
