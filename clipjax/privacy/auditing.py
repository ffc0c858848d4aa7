"""Empirical lower bounds of ε from canaries, to compare with the accountant's ε."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..core.checks import require_bool, require_choice, require_fraction, require_number

DESIGNS = ("one_run", "many_runs")


class AuditResult(NamedTuple):
    """The result of an audit; `str` returns the statement for a report.

    Attributes:
        epsilon_lower: the mechanism is not (ε, delta)-private for any smaller ε, with
            the stated confidence, for adding or removing one example.
        epsilon_upper: the ε that is claimed, from an accountant; None if none is.
        delta: the δ of both.
        confidence: the probability that the lower bound holds.
        design: ``one_run`` or ``many_runs``.
        gaussian: whether the bound assumes the trade-off of a Gaussian mechanism.
        trials: how many canaries, or runs, were scored.
        guesses: the number of guesses that the bound counts.
        correct: the number of these guesses that were right.
    """

    epsilon_lower: float
    epsilon_upper: float | None
    delta: float
    confidence: float
    design: str
    gaussian: bool
    trials: int
    guesses: int
    correct: int

    @property
    def refutes(self) -> bool:
        """Whether the lower bound is above the claim, so that the claim is wrong."""
        return self.epsilon_upper is not None and (
            self.epsilon_lower > self.epsilon_upper
        )

    def __str__(self) -> str:
        """Return both bounds, and whether the lower one refutes the claim."""
        what = "canaries in one run" if self.design == "one_run" else "runs"
        found = (
            f"epsilon >= {self.epsilon_lower:.4g} at delta = {self.delta:g} for adding "
            "or removing one example (ADD_OR_REMOVE_ONE), with confidence "
            f"{self.confidence:g}: {self.correct} of {self.guesses} guesses right, "
            f"{self.trials} {what}. "
        )
        if self.gaussian:
            found += "It assumes the trade-off of a Gaussian mechanism. "
        if self.epsilon_upper is None:
            return found + "There is no claim to compare with."
        claim = f"The claim epsilon <= {self.epsilon_upper:.4g} is "
        if self.refutes:
            return (
                found + claim + "refuted: the mechanism, the claim or the audit is "
                "wrong."
            )
        return found + claim + "not refuted, which does not prove it."


def audit(
    scores: Any,
    inserted: Any,
    delta: float,
    *,
    design: str = "one_run",
    confidence: float = 0.95,
    gaussian: bool = False,
    epsilon_upper: float | None = None,
) -> AuditResult:
    r"""Bound ε from below by guessing which canaries were in the data.

    The result of an (ε, δ)-private mechanism reveals little about whether an example
    was in the data. An attacker who knows every canary's direction guesses from the
    scores. The audit refutes every ε under which the observed number of right guesses
    is too unlikely.

    An audit can show that a claim is wrong, but never that it is right: the bound is as
    good as the attack, and canaries do not detect every fault. It is no guarantee, and
    ``epsilon_lower`` is no estimate of ε.

    | design | scores | bound |
    |---|---|---|
    | ``one_run`` | many canaries in one run | Steinke, Nasr, Jagielski (2023) |
    | ``many_runs`` | one canary in each of many independent runs | Clopper-Pearson |

    In both, each canary is in the data or not, by an independent fair coin, and is not
    replaced: the relation is ADD_OR_REMOVE_ONE. The bound also holds for a claim under
    REPLACE_SPECIAL, and under REPLACE_ONE if an example without a gradient replaces the
    canary, though it then uses only half of the sensitivity, 2C/m.

    In one run, the canaries with the largest scores are guessed to be in, and the same
    number with the smallest scores, or none, to be out. The bound is the best one over
    several numbers of guesses: half of the canaries on each side, then three quarters
    of the previous number, down to 4. These numbers share the probability of failure
    equally. Even for the best attack, the bound stays well below ε.

    With many runs, a fifth of them determine a threshold, and the others the bound. The
    bound is closest for a δ at which the claimed ε is small: an accountant's claim
    covers all δ, so audit δ = 0.1 as well. For a Gaussian mechanism without sampling,
    ``gaussian=True`` is close for any δ: the error rates of the guesses then bound the
    ratio of sensitivity and noise.

    Args:
        scores: of shape ``[trials]``: the larger, the more likely the canary is in;
            see `canary_scores`.
        inserted: bool of the same shape, whether the canary was in.
        delta: δ, the same as that of the claim. In one run, it must be far below one
            divided by the number of canaries for the bound to say much.
        design: ``one_run`` or ``many_runs``. ``one_run`` is also valid for scores of
            many runs; ``many_runs`` is not valid for scores of one run.
        confidence: the probability that the bound holds.
        gaussian: with many runs, assume that the trade-off is that of a Gaussian
            mechanism, as it is without sampling. Wrong with Poisson sampling.
        epsilon_upper: the claim, such as the result of `clipjax.privacy.epsilon`.

    Returns:
        An `AuditResult`.

    Raises:
        ImportError: scipy, or for ``gaussian`` dp-accounting, is not installed.
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, a score is NaN, or ``many_runs`` has
            fewer than two runs with, or without, the canary.

    Example:
        >>> import numpy as np
        >>> from clipjax import privacy
        >>> inserted = np.arange(1000) % 2 == 0
        >>> result = privacy.audit(inserted * 1.0, inserted, 1e-6, epsilon_upper=1.0)
        >>> print(f"{result.epsilon_lower:.2f}", result.refutes)
        5.01 True

    References:
        Jagielski, Ullman, Oprea, `Auditing differentially private machine learning
        <https://arxiv.org/abs/2006.07709>`_, 2020; Nasr et al., `Adversary
        instantiation <https://arxiv.org/abs/2101.04535>`_, 2021, and `Tight auditing of
        differentially private machine learning <https://arxiv.org/abs/2302.07956>`_,
        2023, for ``gaussian``; Steinke, Nasr, Jagielski, `Privacy auditing with one (1)
        training run <https://arxiv.org/abs/2305.08846>`_, 2023.
    """
    scores, inserted = _checked(scores, inserted)
    require_fraction("delta", delta)
    require_fraction("confidence", confidence)
    require_choice("design", design, DESIGNS)
    require_bool("gaussian", gaussian)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be below 1 and above 0, got {confidence!r}")
    if epsilon_upper is not None:
        require_number("epsilon_upper", epsilon_upper)
    if gaussian and (design == "one_run" or not 0 < delta < 1):
        raise ValueError(
            "gaussian=True needs design='many_runs' and a delta between 0 and 1, got "
            f"design={design!r} and delta={delta!r}"
        )
    if design == "one_run":
        found = _one_run(scores, inserted, delta, 1 - confidence)
    else:
        found = _many_runs(scores, inserted, delta, 1 - confidence, gaussian)
    lower, guesses, correct = found
    return AuditResult(
        lower,
        None if epsilon_upper is None else float(epsilon_upper),
        float(delta),
        float(confidence),
        design,
        gaussian,
        len(scores),
        guesses,
        correct,
    )


def _checked(scores: Any, inserted: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and memberships in random order."""
    scores, inserted = np.asarray(scores, np.float64), np.asarray(inserted)
    if inserted.dtype != bool:
        raise TypeError(f"inserted must be of dtype bool, got {inserted.dtype}")
    if scores.ndim != 1 or scores.shape != inserted.shape or not scores.size:
        raise ValueError(
            "scores and inserted must have one entry for each trial, got shapes "
            f"{scores.shape} and {inserted.shape}"
        )
    if np.isnan(scores).any():
        raise ValueError(f"scores must be numbers, got {np.isnan(scores).sum()} NaN")
    # Equal scores are ranked by position, and a caller may have sorted by membership.
    order = np.random.default_rng(0).permutation(len(scores))
    return scores[order], inserted[order]


def _one_run(
    scores: np.ndarray, inserted: np.ndarray, delta: float, significance: float
) -> tuple[float, int, int]:
    """Return the largest bound over the numbers of guesses, and its counts."""
    ranked = inserted[np.argsort(-scores, kind="stable")]
    sides = [*_guesses(len(ranked))]
    best = 0.0, 0, 0
    for highest, lowest in sides:
        guesses = highest + lowest
        correct = int(ranked[:highest].sum() + (~ranked[len(ranked) - lowest :]).sum())
        chance = functools.partial(
            _chance, correct, guesses, trials=len(ranked), delta=delta
        )
        found = _first_above(chance, significance / len(sides), best[0])
        if found > best[0]:
            best = found, guesses, correct
    return best


def _guesses(trials: int) -> Iterator[tuple[int, int]]:
    """Yield pairs: how many of the largest and of the smallest scores to guess."""
    number = trials // 2
    while number >= 4 or number == trials // 2 > 0:
        yield number, number
        yield number, 0
        number = number * 3 // 4


def _chance(
    correct: int, guesses: int, epsilon: float, *, trials: int, delta: float
) -> float:
    """Bound the probability of at least v right guesses under (ε, δ)-privacy.

    With W binomial of guesses and e^ε / (1 + e^ε), and f(v) = P(W ≥ v), it is
    f(v) + 2 m δ max_i (f(v - i) - f(v)) / i for m trials (Steinke, Nasr, Jagielski,
    2023, the main theorem). No scores enter: the guesses may use all of them.
    """
    scipy = _scipy()
    fewer = np.arange(correct + 1)
    tail = scipy.stats.binom.sf(
        correct - fewer - 1, guesses, scipy.special.expit(epsilon)
    )
    gain = np.max((tail[1:] - tail[0]) / fewer[1:], initial=0.0)
    return float(tail[0] + 2 * trials * delta * gain)


def _first_above(
    chance: Callable[[float], float], significance: float, start: float
) -> float:
    """Return the least ε ≥ start under which the guesses are not too unlikely."""
    if chance(start) >= significance:
        return start
    low, high = start, start + 1
    while chance(high) < significance:
        low, high = high, 2 * high
    excess = lambda epsilon: chance(epsilon) - significance  # noqa: E731
    return float(_scipy().optimize.brentq(excess, low, high, xtol=1e-6))


def _many_runs(
    scores: np.ndarray,
    inserted: np.ndarray,
    delta: float,
    significance: float,
    gaussian: bool,
) -> tuple[float, int, int]:
    """Choose a threshold on some of the runs, and return the bound of the others."""
    members, others = scores[inserted], scores[~inserted]
    if min(len(members), len(others)) < 2:
        raise ValueError(
            "many_runs needs two runs with the canary and two without, got "
            f"{len(members)} and {len(others)}"
        )
    strength = _noise_ratio if gaussian else functools.partial(_epsilon, delta)

    def bounds(
        part: slice, thresholds: np.ndarray, significance: float
    ) -> tuple[np.ndarray, int, np.ndarray]:
        high, low = np.sort(members[part]), np.sort(others[part])
        missed = np.searchsorted(high, thresholds)  # scores below the threshold
        false = len(low) - np.searchsorted(low, thresholds)
        found = strength(
            _upper(missed, len(high), significance / 2),
            _upper(false, len(low), significance / 2),
        )
        return found, len(high) + len(low), len(high) + len(low) - missed - false

    first = slice(min(len(members), len(others)) // 5 + 1)
    rest = slice(first.stop, None)
    thresholds = np.unique([*members[first], *others[first]])
    # At a smaller significance, chance makes fewer thresholds look good.
    choice, _, _ = bounds(first, thresholds, significance / 100)
    best = thresholds[[np.argmax(choice)]]
    lower, guesses, correct = bounds(rest, best, significance)
    lower = max(float(lower[0]), 0.0)
    if gaussian and lower > 0:
        lower = _accounting().get_epsilon_gaussian(1 / lower, delta)
    return lower, guesses, int(correct[0])


def _upper(count: np.ndarray, trials: int, significance: float) -> np.ndarray:
    """Return Clopper and Pearson's upper limit of a probability."""
    quantile = _scipy().stats.beta.ppf(
        1 - significance, count + 1, np.maximum(trials - count, 1)
    )
    return np.where(count < trials, quantile, 1.0)


def _epsilon(delta: float, misses: np.ndarray, alarms: np.ndarray) -> np.ndarray:
    """Return the least ε that allows both error rates, in either direction."""
    with np.errstate(divide="ignore"):
        return np.maximum(
            np.log(np.maximum(1 - delta - misses, 0) / alarms),
            np.log(np.maximum(1 - delta - alarms, 0) / misses),
        )


def _noise_ratio(misses: np.ndarray, alarms: np.ndarray) -> np.ndarray:
    """Return the sensitivity in units of the noise that the two error rates need."""
    normal = _scipy().stats.norm
    return normal.isf(alarms) - normal.ppf(misses)


def _scipy() -> Any:
    try:
        import scipy.optimize
        import scipy.special
        import scipy.stats
    except ImportError as error:
        raise ImportError(
            'audit needs scipy: pip install "clipjax[privacy]"'
        ) from error
    return scipy


def _accounting() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise ImportError(
            'audit(gaussian=True) needs dp-accounting: pip install "clipjax[privacy]"'
        ) from error
    return dp_accounting
