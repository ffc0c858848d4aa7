"""From `name:arg:key=value` on the command line to a clip or an optimizer."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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


def is_unclipped(label: str) -> bool:
    """Whether a label, `[place@]name[:arg...]`, means that nothing is clipped."""
    return label.rpartition("@")[2] == UNCLIPPED


class ClipCall(NamedTuple):
    """A clip as the user wrote it.

    Attributes:
        label: the text.
        place: where it stands; "" where the text does not say.
        call: the recipe with its arguments.
        arguments: the arguments by name, with defaults.
    """

    label: str
    place: str
    call: functools.partial
    arguments: Mapping[str, Any]

    def build(self, name: str = "clip") -> optax.GradientTransformationExtraArgs:
        """The clip, whose numbers have this name in `clipjax.metrics`."""
        return self.call(name=name)


OptimizerOf = Callable[[float | jax.Array], optax.GradientTransformation]
# From the loss, `(params, batch) -> scalar`, to a function of the same arguments that
# returns the loss, the gradient, and what it knows about clipping of its own: values
# of the log that take the place of those of the clip in the optimizer's state.
Gradient = Callable[
    [Callable[..., jax.Array]], Callable[..., tuple[jax.Array, Any, dict]]
]


def of_batch(loss: Callable[..., jax.Array]) -> Callable[..., tuple]:
    """The gradient of the loss of the whole batch."""

    def gradient(params: Any, batch: Any) -> tuple[jax.Array, Any, dict]:
        value, grads = jax.value_and_grad(loss)(params, batch)
        return value, grads, {}

    return gradient


class Arm(NamedTuple):
    """One arm of a comparison.

    Attributes:
        chain: from the learning rate to the clip and the optimizer.
        gradient: how the gradient is taken.
    """

    chain: Callable[..., optax.GradientTransformation]
    gradient: Gradient = of_batch


Place = Callable[[ClipCall, OptimizerOf], Arm]


def in_chain(clip: ClipCall, optimizer: OptimizerOf) -> Arm:
    """The clip right before the optimizer."""
    return Arm(
        lambda learning_rate: optax.chain(clip.build(), optimizer(learning_rate))
    )


def _unclipped(name: str = "clip") -> optax.GradientTransformationExtraArgs:
    return recipes.clip_by_global_norm(float("inf"), name=name)


def read_clips(
    specs: Sequence[str], places: Mapping[str, str] | None = None
) -> list[ClipCall]:
    """The clips of a comparison, `[place@]name[:arg...]`, in that order.

    Args:
        specs: what the user wrote.
        places: the places that there are, besides the one before the optimizer.

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
                    f"clip {spec!r} is there twice; accepted: each clip once"
                )
        found.append(ClipCall(spec, place, call, arguments))
    return found


def read_optimizer(spec: str) -> OptimizerOf:
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
