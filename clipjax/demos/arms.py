"""Parse `name:arg:key=value` on the command line to a clip or an optimizer."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from clipjax import recipes

from .options import did_you_mean

UNCLIPPED = "none"
# Arguments that cannot be set on the command line.
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
    """Return the recipes of `clipjax.recipes` whose arguments can be numbers."""
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
    """Parse `name[:arg...]`, where each argument is a number or `key=number`.

    Raises:
        ValueError: the message names the spec, the mistake and the accepted values.
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
    """Return the signature with the numeric arguments only, without annotations."""
    signature = inspect.signature(function)
    numbers = [
        parameter.replace(annotation=parameter.empty)
        for name, parameter in signature.parameters.items()
        if name not in NOT_NUMBERS
    ]
    return inspect.Signature(numbers)


def bind(call: functools.partial, spec: str, kind: str) -> inspect.BoundArguments:
    """Return the arguments of a parsed call, including defaults.

    Raises:
        ValueError: the message names the spec and the accepted arguments.
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


def is_unclipped(label: str) -> bool:
    """Return whether a label, `[place@]name[:arg...]`, means no clipping."""
    return label.rpartition("@")[2] == UNCLIPPED


class ClipCall(NamedTuple):
    """A clip as the user wrote it.

    Attributes:
        label: the text.
        place: the place of the clip; "" if the text names none.
        call: the recipe with its arguments.
        arguments: the arguments by name, with defaults.
    """

    label: str
    place: str
    call: functools.partial
    arguments: Mapping[str, Any]

    def build(self, name: str = "clip") -> optax.GradientTransformationExtraArgs:
        """Return the clip, under the name that `clipjax.metrics` reports it by."""
        return self.call(name=name)


OptimizerOf = Callable[[float | jax.Array], optax.GradientTransformation]
# From the loss, `(params, batch) -> scalar`, to a function of the same arguments that
# returns the loss, the gradient, and metrics of a clip inside the function: values of
# the log that replace those of the clip in the optimizer's state.
Gradient = Callable[
    [Callable[..., jax.Array]], Callable[..., tuple[jax.Array, Any, dict]]
]


def of_batch(loss: Callable[..., jax.Array]) -> Callable[..., tuple]:
    """Return the loss, the gradient of the whole batch, and no metrics."""

    def gradient(params: Any, batch: Any) -> tuple[jax.Array, Any, dict]:
        value, grads = jax.value_and_grad(loss)(params, batch)
        return value, grads, {}

    return gradient


class Arm(NamedTuple):
    """One arm of a comparison.

    Attributes:
        chain: maps the learning rate to the chain of clip and optimizer.
        gradient: computes the gradient.
    """

    chain: Callable[..., optax.GradientTransformation]
    gradient: Gradient = of_batch


Place = Callable[[ClipCall, OptimizerOf], Arm]


def in_chain(clip: ClipCall, optimizer: OptimizerOf) -> Arm:
    """Return the arm with the clip right before the optimizer."""
    return Arm(
        lambda learning_rate: optax.chain(clip.build(), optimizer(learning_rate))
    )


def _unclipped(name: str = "clip") -> optax.GradientTransformationExtraArgs:
    return recipes.clip_by_global_norm(float("inf"), name=name)


def read_clips(
    specs: Sequence[str], places: Mapping[str, str] | None = None
) -> list[ClipCall]:
    """Parse the clips of a comparison, `[place@]name[:arg...]`, in the given order.

    Args:
        specs: the texts of the command line.
        places: the task's places, besides the one before the optimizer.

    Raises:
        ValueError: for an unknown clip or place, a wrong argument or a clip given
            twice.
    """
    catalogue = {UNCLIPPED: _unclipped} | clips_by_name()
    found: list[ClipCall] = []
    for spec in specs:
        place, at, rest = spec.rpartition("@")
        if at and place not in (places or {}):
            hint = did_you_mean(place, places or {})
            accepted = ", ".join(places or {}) or "none for this task"
            raise ValueError(
                f"clip {spec!r}: unknown place {place!r}{hint}; accepted: {accepted}"
            )
        call = parse_call(rest, catalogue, "clip")
        arguments = bind(call, rest, "clip").arguments
        _build(call, spec, "clip")
        # Equal numbers are equal clips: 1 and 1.0 compare so.
        for other in found:
            same = (other.place, other.call.func, other.arguments)
            if same == (place, call.func, arguments):
                raise ValueError(
                    f"clip {spec!r} is given twice; accepted: each clip once"
                )
        found.append(ClipCall(spec, place, call, arguments))
    return found


def read_optimizer(spec: str) -> OptimizerOf:
    """Return a function from the learning rate to the optimizer after the clip.

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
    """Return the Python expression of a global clip and an optimizer, to paste.

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
    """Return the form of a clip on the command line, with defaults: `name:a:b=1`."""
    parts = [function.__name__]
    for name, parameter in _signature(function).parameters.items():
        default = parameter.default
        if default is parameter.empty:
            parts.append(name)
        elif isinstance(default, int | float) and not isinstance(default, bool):
            parts.append(f"{name}={default:g}")
    return ":".join(parts)
