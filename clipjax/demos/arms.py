"""From `name:arg:key=value` on the command line to a clip or an optimizer."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from clipjax import recipes

from .options import did_you_mean

UNCLIPPED = "none"
# Arguments that this command leaves alone.
NOT_NUMBERS = ("axis_name", "name", "report", "watch")

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
    """The public recipe functions of `clipjax.recipes` that numbers can describe."""
    return {
        name: recipe
        for name, recipe in vars(recipes).items()
        if inspect.isfunction(recipe)
        and not name.startswith("_")
        and recipe.__module__.startswith(recipes.__name__)
        and "labels" not in inspect.signature(recipe).parameters
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
        hint = did_you_mean(name, catalogue)
        accepted = ", ".join(sorted(catalogue))
        raise ValueError(f"unknown {kind} {name!r}{hint}; accepted: {accepted}")
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


def bind(call: functools.partial, spec: str, kind: str) -> inspect.BoundArguments:
    """The arguments of a call that was read, with its defaults.

    Raises:
        ValueError: naming the spec and what is accepted.
    """
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
    except (ValueError, TypeError, OverflowError) as error:
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
        bound = bind(call, spec, "clip")
        # Equal numbers are equal clips: 1 and 1.0 compare so.
        if (call.func, bound.arguments) in seen:
            raise ValueError(f"clip {spec!r} is there twice; accepted: each clip once")
        seen.append((call.func, bound.arguments))
        clips[spec] = _build(call, spec, "clip")
    return clips


def read_optimizer(
    spec: str,
) -> Callable[[float | jax.Array], optax.GradientTransformation]:
    """What builds the optimizer that follows the clip from its learning rate.

    Raises:
        ValueError: for an unknown optimizer or a wrong argument.
    """
    call = parse_call(spec, OPTIMIZERS, "optimizer")

    def build(learning_rate: float | jax.Array) -> optax.GradientTransformation:
        # Numbers on the command line come after the learning rate.
        return call.func(learning_rate, *call.args, **call.keywords)

    first = functools.partial(call.func, 1.0, *call.args, **call.keywords)
    bind(first, spec, "optimizer")
    _build(first, spec, "optimizer")
    return build


def recipe(spec: str, learning_rate: float, threshold: float) -> str:
    """The Python expression of a global clip and an optimizer, to paste.

    Args:
        spec: the optimizer, as on the command line.
        learning_rate: its learning rate.
        threshold: the threshold of the clip; infinite for none.
    """
    call = parse_call(spec, OPTIMIZERS, "optimizer")
    bound = bind(
        functools.partial(call.func, learning_rate, *call.args, **call.keywords),
        spec,
        "optimizer",
    )
    given = {**getattr(call.func, "keywords", {}), **call.keywords}
    names = list(bound.arguments)[1 : 1 + len(call.args)]
    given |= dict(zip(names, call.args, strict=True))
    function = getattr(call.func, "func", call.func)
    arguments = [f"{learning_rate:g}"] + [
        f"{key}={value}" for key, value in given.items()
    ]
    optimizer = f"optax.{function.__name__}({', '.join(arguments)})"
    if threshold == float("inf"):
        return optimizer
    return f"optax.chain(clipjax.clip_by_global_norm({threshold:g}), {optimizer})"


def usage(function: Callable[..., Any]) -> str:
    """How a clip is written on the command line, with its defaults: `name:a:b=1`."""
    parts = [function.__name__]
    for name, parameter in _signature(function).parameters.items():
        default = parameter.default
        if default is parameter.empty:
            parts.append(name)
        elif isinstance(default, int | float) and not isinstance(default, bool):
            parts.append(f"{name}={default:g}")
    return ":".join(parts)
