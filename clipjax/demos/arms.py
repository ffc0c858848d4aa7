"""From `name:arg:key=value` on the command line to a clip or an optimizer."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

from clipjax import recipes

UNCLIPPED = "none"
# Arguments that this command leaves alone.
NOT_NUMBERS = ("axis_name", "name", "report")

OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "nesterov": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
    "adam": optax.adam,
    "adamw": optax.adamw,
    "nadam": optax.nadam,
    "radam": optax.radam,
    "adamax": optax.adamax,
    "adabelief": optax.adabelief,
    "adagrad": optax.adagrad,
    "rmsprop": optax.rmsprop,
    "lion": optax.lion,
    "lamb": optax.lamb,
    "yogi": optax.yogi,
}


def clips_by_name() -> dict[str, Callable[..., Any]]:
    """The public recipe functions of `clipjax.recipes`, whichever there are."""
    return {
        name: recipe
        for name, recipe in vars(recipes).items()
        if inspect.isfunction(recipe)
        and not name.startswith("_")
        and recipe.__module__.startswith(recipes.__name__)
    }


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def parse_call(
    spec: str, catalogue: Mapping[str, Callable[..., Any]], kind: str
) -> functools.partial:
    """Read `name[:arg...]`, each argument a number or `key=number`.

    Raises:
        ValueError: naming the spec, what is wrong and what is accepted.
    """
    name, *parts = spec.split(":")
    if name not in catalogue:
        raise ValueError(
            f"unknown {kind} {name!r}; accepted: {', '.join(sorted(catalogue))}"
        )
    function = catalogue[name]
    args, kwargs = [], {}
    for part in parts:
        key, equals, value = part.rpartition("=")
        try:
            number = _number(value)
        except ValueError:
            raise ValueError(
                f"{kind} {spec!r}: {part!r} is not a number; accepted: "
                "name:number[:number...], or key=number after the first ones"
            ) from None
        if equals:
            kwargs[key] = number
        else:
            args.append(number)
    return functools.partial(function, *args, **kwargs)


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """The arguments that can be numbers, bare of annotations."""
    signature = inspect.signature(function)
    numbers = [
        parameter.replace(annotation=parameter.empty)
        for name, parameter in signature.parameters.items()
        if name not in NOT_NUMBERS
    ]
    return inspect.Signature(numbers)


def _bind(call: functools.partial, spec: str, kind: str) -> inspect.BoundArguments:
    signature = _signature(call.func)
    try:
        bound = signature.bind(*call.args, **call.keywords)
    except TypeError as error:
        name = spec.partition(":")[0]
        raise ValueError(
            f"{kind} {spec!r}: {error}; accepted: {name}{signature}"
        ) from None
    bound.apply_defaults()
    return bound


def _build(call: functools.partial, spec: str, kind: str) -> Any:
    try:
        return call()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{kind} {spec!r}: {error}") from error


def build_clips(
    specs: tuple[str, ...],
) -> dict[str, optax.GradientTransformationExtraArgs]:
    """The clips of a comparison by what the user called them, in that order.

    Raises:
        ValueError: for an unknown clip, a wrong argument or a clip given twice.
    """
    catalogue = {UNCLIPPED: lambda: recipes.clip_by_global_norm(float("inf"))}
    catalogue |= clips_by_name()
    clips, seen = {}, []
    for spec in specs:
        call = parse_call(spec, catalogue, "clip")
        bound = _bind(call, spec, "clip")
        # Equal numbers are equal clips: 1 and 1.0 compare so.
        if (call.func, bound.arguments) in seen:
            raise ValueError(f"clip {spec!r} is there twice; accepted: each clip once")
        seen.append((call.func, bound.arguments))
        clips[spec] = _build(call, spec, "clip")
    return clips


def build_optimizer(spec: str, learning_rate: float) -> optax.GradientTransformation:
    """The optimizer that follows the clip.

    Raises:
        ValueError: for an unknown optimizer or a wrong argument.
    """
    call = parse_call(spec, OPTIMIZERS, "optimizer")
    # Numbers on the command line come after the learning rate.
    call = functools.partial(call.func, learning_rate, *call.args, **call.keywords)
    _bind(call, spec, "optimizer")
    return _build(call, spec, "optimizer")
