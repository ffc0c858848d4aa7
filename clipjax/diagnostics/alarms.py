"""An alarm for thresholds that act as a learning rate."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..core.checks import require_bool, require_choice
from ..core.clip import Clip
from ..rules import Floored, Hard, Rule
from ..wrappers.sections import OVER_CLIPPING

# Optax's optimizers whose updates change by less than 1 % if all gradients are
# multiplied by 0.01, from the tenth step on, as the tests measure.
SCALE_INVARIANT = (
    *("adabelief", "adafactor", "adam", "adamax", "adamaxw", "adamw", "adan"),
    *("ademamix", "adopt", "amsgrad", "fromage", "lamb", "lars", "lion", "muon"),
    *("nadam", "nadamw", "novograd", "optimistic_adam_v2", "prodigy", "radam"),
    *("rmsprop", "rprop", "sign_sgd", "signum", "sm3"),
)
# Those whose updates do change. Adagrad, Adadelta and Yogi start from a constant.
SCALE_SENSITIVE = ("adadelta", "adagrad", "noisy_sgd", "sgd", "yogi")


class OverClipping(NamedTuple):
    """Whether a threshold acts as a learning rate; see `over_clipping`.

    Attributes:
        is_over_clipping: the alarm.
        average_ratio: mean of the finite ratios; 1 if there are none.
        clipped_fraction: fraction of the finite ratios that are below 1.
        reason: why the alarm is on or off, in a sentence.
    """

    is_over_clipping: bool
    average_ratio: float
    clipped_fraction: float
    reason: str


def over_clipping(
    clip: Clip | Rule,
    clip_ratios: ArrayLike,
    *,
    optimizer: str = "sgd",
    scale_invariant: bool | None = None,
) -> OverClipping:
    r"""Return whether a threshold acts as a learning rate.

    Under the hard rule a clip that binds on most steps gives all of them the same
    length ηC: the threshold C then sets the step size. The alarm is on if the long-run
    mean of the ratio ‖clipped‖ / ‖raw‖ is below one half. The metric
    ``clip/over_clipping`` makes the same comparison, but an optimizer state holds
    neither the rule nor the next transformation. This function asks for both, since a
    low ratio has no such meaning in two cases:

    | clip | alarm | why |
    |---|---|---|
    | rule ``hard`` or ``floored``, before SGD | mean ratio < 0.5 | |
    | any other rule | off | soft rules shorten every gradient (by half at the
      threshold), ``normalise`` and ``band`` set lengths on purpose, ``skip`` drops |
    | before a scale-invariant optimizer | off | Adam and its kin divide by the size of
      the gradient: a factor that is common to all steps cancels |
    | NaN or inf in the ratios | left out | |

    Args:
        clip: the clip, or its rule.
        clip_ratios: the ratios of the steps, such as the column ``clip/clip_ratio`` of
            a history, any shape; or the running average,
            ``metrics["clip/average_clip_ratio"]``.
        optimizer: the name of the optimizer that follows, as in Optax, such as
            ``"adamw"``.
        scale_invariant: whether the optimizer that follows ignores a constant factor of
            its gradients. None to look it up by name.

    Returns:
        An `OverClipping` of Python values; the function waits for the device.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: the optimizer is not known by name.

    Example:
        >>> import clipjax
        >>> from clipjax.diagnostics import over_clipping
        >>> clip = clipjax.clip_by_global_norm(1.0)
        >>> print(over_clipping(clip, [0.2, 0.3, 0.7]).is_over_clipping)
        True
        >>> print(over_clipping(clip, [0.2, 0.3, 0.7], optimizer="adamw").reason)
        adamw cancels a factor that is common to all gradients
    """
    rule = clip.clipper.rule if isinstance(clip, Clip) else clip
    if not isinstance(rule, Rule):
        raise TypeError(f"clip must be a Clip or a Rule, got {clip!r}")
    if scale_invariant is None:
        require_choice("optimizer", optimizer, SCALE_INVARIANT + SCALE_SENSITIVE)
        scale_invariant, follower = optimizer in SCALE_INVARIANT, optimizer
    else:
        require_bool("scale_invariant", scale_invariant)
        follower = "a scale-invariant optimizer"
    ratios = np.asarray(clip_ratios, np.float64)
    ratios = ratios[np.isfinite(ratios)]
    average = float(np.mean(ratios)) if ratios.size else 1.0
    clipped = float(np.mean(ratios < 1)) if ratios.size else 0.0
    is_low = average < OVER_CLIPPING
    applies = isinstance(rule, Hard | Floored) and not scale_invariant
    if not isinstance(rule, Hard | Floored):
        reason = f"low ratios are part of the rule {rule!r}"
    elif scale_invariant:
        reason = f"{follower} cancels a factor that is common to all gradients"
    elif is_low:
        reason = (
            f"the clip leaves {average:.0%} of the norm on average: the threshold sets "
            "the length of the steps, as a learning rate does. Raise it, or tune both"
        )
    else:
        reason = f"the clip leaves {average:.0%} of the norm on average"
    return OverClipping(applies and is_low, average, clipped, reason)
