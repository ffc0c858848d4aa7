"""Over which mesh axes a leaf is split, and the one reduction across devices."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .trees import NamedLeaves

AxisNames = Hashable | tuple[Hashable, ...] | None
Split = Mapping[str, tuple[Hashable, ...]]

_WORKERS: contextvars.ContextVar[frozenset[Hashable]] = contextvars.ContextVar(
    "workers", default=frozenset()
)


def as_tuple(axis_name: AxisNames) -> tuple[Hashable, ...]:
    """Reads an ``axis_name`` argument: None, one name, or a tuple of names."""
    if axis_name is None:
        return ()
    return axis_name if isinstance(axis_name, tuple) else (axis_name,)


@contextlib.contextmanager
def each_worker(axis_name: AxisNames) -> Iterator[None]:
    """Lets what runs inside measure the gradient of each worker by itself."""
    token = _WORKERS.set(_WORKERS.get() | set(as_tuple(axis_name)))
    try:
        yield
    finally:
        _WORKERS.reset(token)


def varying_axes(leaf: jax.Array) -> frozenset[Hashable]:
    """Gives the manual mesh axes over which the leaf's type says it differs."""
    kind = jax.typeof(leaf)
    manual = getattr(kind, "manual_axis_type", None)
    if manual is not None:
        return frozenset(manual.varying)
    return frozenset(getattr(kind, "vma", ()))


def types_tell(axis: Hashable) -> bool:
    """Tells whether types know of an axis, as in ``shard_map`` by default.

    They do not under ``pmap`` and ``vmap``, nor with ``check_vma=False``.

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


def split_over(
    leaves: NamedLeaves, axis_name: AxisNames, params: Any = None
) -> dict[str, tuple[Hashable, ...]]:
    """Finds over which axes each leaf of a gradient is split.

    Without ``axis_name``, those over which its parameter varies. With it, those of the
    names over which the leaf's type says that it varies; all of them where types do
    not tell.

    Raises:
        ValueError: there is no way to tell, or a leaf differs over further axes, as
            the gradient of a single worker does, or over fewer than its parameter.
    """
    workers = _WORKERS.get()
    manual = jax.sharding.get_abstract_mesh().manual_axes
    manual = tuple(name for name in manual if name not in workers)
    names = as_tuple(axis_name)
    silent = {name for name in (*manual, *names) if not types_tell(name)}
    if axis_name is None:
        if silent:
            raise ValueError(_types_are_silent(sorted(silent, key=str)))
        names = manual
    owners = {} if params is None else NamedLeaves.of(params).arrays
    split = {}
    for leaf_name, leaf in leaves.arrays.items():
        varying = varying_axes(leaf)
        owner = leaf
        if axis_name is None:
            if leaf_name in owners:
                owner = owners[leaf_name]
            elif varying - workers:
                raise ValueError(_is_local(leaf_name, varying - workers))
        own = varying_axes(owner) | silent
        split[leaf_name] = tuple(name for name in names if name in own)
        unreduced = varying - workers - set(split[leaf_name])
        if unreduced and axis_name != ():
            raise ValueError(_is_unreduced(leaf_name, unreduced, axis_name))
        alike = varying_axes(owner) - workers - varying
        if alike:
            raise ValueError(_is_no_shard(leaf_name, alike))
    return split


def _listed(axes: Iterable[Hashable]) -> tuple[Hashable, ...]:
    return tuple(sorted(axes, key=str))


def _types_are_silent(axes: Iterable[Hashable]) -> str:
    return (
        f"types do not say whether leaves are split over the axes {_listed(axes)}, so "
        "that a norm could be that of one shard: pass axis_name=(...) with the axes "
        "that parameters are split over, or axis_name=() if every device holds the "
        "whole gradient, reduced over devices"
    )


def _is_local(leaf: str, axes: Iterable[Hashable]) -> str:
    axes = _listed(axes)
    return (
        f"{leaf or 'the update'} differs over the mesh axes {axes}, so that its norm "
        f"would be that of one shard: pass axis_name={axes}, or params to update if "
        "they are split alike, or axis_name=() for a clip on each device by itself"
    )


def _is_unreduced(leaf: str, axes: Iterable[Hashable], axis_name: AxisNames) -> str:
    axes = _listed(axes)
    why = "and its parameter does not" if axis_name is None else f"not in {axis_name=}"
    return (
        f"{leaf or 'the update'} differs over the mesh axes {axes}, {why}: it looks "
        "like one worker's gradient, not yet reduced. Pass jax.lax.pmean(grads, "
        f"{axes}) to clip the mean, or clip each worker's by clipjax.per_worker(clip, "
        f"{axes})"
    )


def _is_no_shard(leaf: str, axes: Iterable[Hashable]) -> str:
    axes = _listed(axes)
    return (
        f"{leaf or 'the update'} is the same over the mesh axes {axes}, and its "
        "parameter differs: it looks reduced. Pass update the parameters as they were "
        f"before jax.lax.pcast; or, if it is a shard, jax.lax.pcast it over {axes}"
    )


def shared(value: Any, name: str) -> jax.Array:
    """Gives a scalar that is the same on all devices.

    Raises:
        ValueError: its type says that it differs, as the loss of one worker does.
    """
    value = jnp.asarray(value)
    axes = _listed(varying_axes(value) - _WORKERS.get())
    if axes:
        raise ValueError(
            f"{name} differs over the mesh axes {axes}, and so would what devices "
            f"decide by it: pass jax.lax.pmean({name}, {axes})"
        )
    return value


def gathered(leaf: jax.Array, kept: int) -> jax.Array:
    """Gathers all but the first axes on an explicit mesh; elsewhere XLA does."""
    spec = jax.typeof(leaf).sharding.spec
    return resharded(leaf, (*spec[:kept], *(None for _ in spec[kept:])))


def resharded(leaf: jax.Array, spec: Any) -> jax.Array:
    """Splits a leaf as told over an explicit mesh."""
    spec = jax.sharding.PartitionSpec(*spec)
    is_so = jax.typeof(leaf).sharding.spec == spec
    return leaf if is_so else jax.sharding.reshard(leaf, spec)


def shard_counts(split: Split) -> dict[str, int]:
    """Counts over how many devices each leaf is split."""
    return {
        name: math.prod(map(jax.lax.axis_size, axes)) for name, axes in split.items()
    }


def _replicated(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    first = min(sharding.device_set, key=lambda device: device.id)
    return jax.sharding.SingleDeviceSharding(first)


def beside(value: jax.Array, leaf: Any) -> jax.Array:
    """Brings a small value to where a leaf lies, if that is known and elsewhere."""
    if any(
        isinstance(x, Tracer) or not isinstance(x, jax.Array) for x in (value, leaf)
    ):
        return value
    if value.sharding.device_set == leaf.sharding.device_set or not leaf.committed:
        return value
    return jax.device_put(value, _replicated(leaf.sharding))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def pmax(values: jax.Array, axis_names: Any) -> jax.Array:
    """Takes the largest over devices, with the derivative of ``jnp.max``.

    ``jax.lax.pmax`` has none.
    """
    return jax.lax.pmax(values, axis_names)


@pmax.defjvp
def _derivative_of_pmax(axis_names: Any, primals: Any, tangents: Any) -> Any:
    (values,), (along,) = primals, tangents
    largest = pmax(values, axis_names)
    is_largest = (values == largest).astype(values.dtype)
    ties = jax.lax.psum(is_largest, axis_names)
    return largest, jax.lax.psum(is_largest * along, axis_names) / ties


def reduce_over_devices(
    partials: Mapping[Any, jax.Array],
    axes: Mapping[Any, tuple[Hashable, ...]],
    collective: Callable[[Any, Any], Any],
) -> dict[Any, jax.Array]:
    """Joins per-leaf partial results with one collective per set of axes.

    Args:
        partials: one array a leaf, of one dtype. Outside ``jit`` they may lie on
            different devices, as pipeline stages do, and come back on one.
        axes: the mesh axes each leaf is split over.
        collective: ``jax.lax.psum`` or `pmax`.
    """
    if not partials:
        return {}
    first = next(iter(partials.values()))
    reduced = {leaf: beside(partial, first) for leaf, partial in partials.items()}
    # A dict keeps the order: every process must issue the same collectives in turn.
    for names in dict.fromkeys(axes[leaf] for leaf in partials if axes[leaf]):
        members = [leaf for leaf in partials if axes[leaf] == names]
        flat = jnp.concatenate([partials[leaf].reshape(-1) for leaf in members])
        flat = collective(flat, names)
        start = 0
        for leaf in members:
            size = partials[leaf].size
            part = flat[start : start + size]
            reduced[leaf] = part.reshape(partials[leaf].shape)
            start += size
    return reduced


def recorded(
    function: Callable[..., Any],
) -> tuple[Callable[..., Any], Callable[[], Callable[..., Any]]]:
    """Keeps what a collective gives, to run the code that calls it again without it.

    Returns:
        The collective, for the first run; and what makes, for every further run, a
        function that gives the same results in the same order.
    """
    results = []

    def once(*arguments: Any) -> Any:
        results.append(function(*arguments))
        return results[-1]

    def repeated() -> Callable[..., Any]:
        remaining = iter(results)
        return lambda *_: next(remaining)

    return once, repeated
