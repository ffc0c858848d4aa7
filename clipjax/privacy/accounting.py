"""ε, δ and noise multipliers of private runs, by the accountants of dp_accounting."""

from __future__ import annotations

import math
import operator
from decimal import ROUND_CEILING, Decimal
from typing import Any, NamedTuple

from ..per_example.relations import relation_name
from .accountants import (
    LEAST_NOISE,
    Run,
    require_delta,
    require_finite,
    require_positive,
)

_IN_WORDS = {
    "ADD_OR_REMOVE_ONE": "adding or removing one example",
    "REPLACE_ONE": "replacing one example",
    "REPLACE_SPECIAL": "replacing one example by one that adds nothing",
}


class Guarantee(NamedTuple):
    """The privacy guarantee of a run; `str` returns the sentence for a report.

    `guarantee` computes it. In the text, ε is rounded up.

    Attributes:
        epsilon: ε.
        delta: δ.
        noise_multiplier: the noise's standard deviation in units of the sensitivity.
        sampling_rate: the probability of each example to be in a batch.
        steps: the number of updates.
        accountant: "pld" or "rdp".
        neighboring_relation: what counts as a change of one example.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    accountant: str
    neighboring_relation: str

    def __str__(self) -> str:
        epsilon = "inf"
        if math.isfinite(self.epsilon):
            epsilon = Decimal(self.epsilon).quantize(Decimal("0.01"), ROUND_CEILING)
        batches = f"Poisson batches at rate {self.sampling_rate:.6g}"
        return (
            f"(ε = {epsilon}, δ = {self.delta})-differential privacy for "
            f"{_IN_WORDS[self.neighboring_relation]}, by {self.accountant.upper()} "
            f"accounting of {self.steps} {'step' if self.steps == 1 else 'steps'} of "
            f"{batches if self.sampling_rate < 1 else 'all examples'} with noise "
            f"multiplier {self.noise_multiplier:.6g}"
        )


def guarantee(
    noise_multiplier: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    *,
    accountant: str = "pld",
    neighboring_relation: Any = "ADD_OR_REMOVE_ONE",
) -> Guarantee:
    """Return the privacy guarantee of a run, with a text for a report.

    Args:
        noise_multiplier: see `clipjax.privacy.epsilon`, as for all arguments.
        delta: δ.
        sampling_rate: the probability of each example to be in a batch.
        steps: the number of updates.
        accountant: "pld" or "rdp".
        neighboring_relation: what counts as a change of one example.

    Returns:
        A `Guarantee`.

    Raises:
        ImportError: dp_accounting is not installed.
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or the combination has no accountant.

    Example:
        >>> from clipjax import privacy
        >>> print(privacy.guarantee(2.0, 1e-5, 0.05, 400, accountant="rdp"))
        (ε = 2.47, δ = 1e-05)-differential privacy for adding or removing one example, \
by RDP accounting of 400 steps of Poisson batches at rate 0.05 with noise multiplier 2
    """
    epsilon_ = epsilon(
        noise_multiplier,
        delta,
        sampling_rate,
        steps,
        accountant=accountant,
        neighboring_relation=neighboring_relation,
    )
    return Guarantee(
        epsilon_,
        float(delta),
        float(noise_multiplier),
        float(sampling_rate),
        operator.index(steps),
        accountant,
        relation_name(neighboring_relation),
    )


def epsilon(
    noise_multiplier: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    *,
    accountant: str = "pld",
    neighboring_relation: Any = "ADD_OR_REMOVE_ONE",
) -> float:
    r"""Return ε of a run of DP-SGD, so that it is (ε, δ)-differentially private.

    The run releases ``steps`` sums of clipped gradients, each with Gaussian noise of
    standard deviation σΔ, over batches that contain each example independently with
    probability q (`clipjax.privacy.PoissonSampler`). Shuffled batches of a fixed size
    are another mechanism, for which this ε does not hold.

    The noise multiplier σ is in units of the sensitivity Δ under the same relation:
    ``gaussian_noise(grad.sensitivity(relation), σ, key)`` has this ε for that relation.
    For REPLACE_ONE each example adds at most Δ/2 to the sum, as after a clip.
    dp_accounting 0.6.0 takes the noise in units of Δ/2 by PLD and of Δ by RDP; this
    function passes the number that describes the same mechanism to either.

    | accountant | q = 1 | q < 1 | one call |
    |---|---|---|---|
    | ``"pld"`` | all relations | all relations | 0.3 s to 2 s |
    | ``"rdp"`` | all relations | all but REPLACE_ONE: ValueError | 0.1 s |

    ``"pld"`` computes the privacy loss distribution and is tight to about 1e-3 up to
    100,000 steps; ``"rdp"`` composes Rényi divergences, and gives an ε that is larger,
    by a tenth as a rule and by more for few steps. For the ε spent so far, call this
    function with the number of steps taken, at most every few seconds.

    Several releases with Gaussian noise from the same batch, such as a sum and a count,
    are together one Gaussian mechanism: pass σ with
    :math:`\sigma^{-2} = \sum_i \sigma_i^{-2}`, each in units of its own sensitivity.

    | case | ε |
    |---|---|
    | steps = 0 | 0 |
    | noise_multiplier = 0, or below 1e-6 | inf |
    | "pld" where ε by "rdp" is above 1000 | ValueError: it would take gigabytes |

    Args:
        noise_multiplier: σ.
        delta: δ, the probability that the bound by ε may fail. It should be well below
            1 / (number of examples): to publish each example with probability δ is
            (0, δ)-differentially private. By PLD at least 1e-12.
        sampling_rate: q, the expected batch size / the number of examples.
        steps: the number of updates: an integer, or an array of a single integer, such
            as ``state.noise_steps``.
        accountant: "pld" or "rdp".
        neighboring_relation: what counts as a change of one example:
            ``ADD_OR_REMOVE_ONE``, ``REPLACE_SPECIAL`` (by an example that adds
            nothing), or ``REPLACE_ONE``; a name, or a member of
            ``dp_accounting.NeighboringRelation``.

    Returns:
        ε, an upper bound.

    Raises:
        ImportError: dp_accounting is not installed.
        TypeError: an argument is of the wrong kind, or an array: accountants run in
            Python, outside of ``jit``.
        ValueError: an argument is out of range, or the combination has no accountant.

    Example:
        >>> from clipjax import privacy
        >>> print(f"{privacy.epsilon(1.1, 1e-5, 0.05, 400):.3f}")
        5.597

    References:
        Abadi et al., `Deep learning with differential privacy
        <https://arxiv.org/abs/1607.00133>`_, 2016; Mironov, Talwar and Zhang, `Rényi
        differential privacy of the sampled Gaussian mechanism
        <https://arxiv.org/abs/1908.10530>`_, 2019; Doroshenko et al., `Connect the dots
        <https://arxiv.org/abs/2207.04380>`_, 2022.
    """
    run = Run.of(sampling_rate, steps, accountant, neighboring_relation)
    require_finite("noise_multiplier", noise_multiplier)
    require_delta(delta, accountant)
    if not run.steps:
        return 0.0
    if noise_multiplier < LEAST_NOISE:
        return math.inf
    run.require_feasible(noise_multiplier, delta)
    return run.epsilon(noise_multiplier, delta)


def delta(
    epsilon: float,
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    *,
    accountant: str = "pld",
    neighboring_relation: Any = "ADD_OR_REMOVE_ONE",
) -> float:
    """Return δ of a run of DP-SGD, so that it is (ε, δ)-differentially private.

    Args:
        epsilon: ε, above 0.
        noise_multiplier: see `clipjax.privacy.epsilon`, as for the other arguments.
        sampling_rate: the probability of each example to be in a batch.
        steps: the number of updates.
        accountant: "pld" or "rdp".
        neighboring_relation: what counts as a change of one example.

    Returns:
        δ, an upper bound: 0 without steps, 1 without noise, by PLD at least 1e-12
        otherwise. Above 1 / (number of examples) it promises little.

    Raises:
        ImportError: dp_accounting is not installed.
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or the combination has no accountant.

    Example:
        >>> from clipjax import privacy
        >>> print(f"{privacy.delta(3.0, 1.1, 0.05, 400):.1e}")
        7.0e-03
    """
    run = Run.of(sampling_rate, steps, accountant, neighboring_relation)
    require_positive("epsilon", epsilon)
    require_finite("noise_multiplier", noise_multiplier)
    if not run.steps:
        return 0.0
    if noise_multiplier < LEAST_NOISE:
        return 1.0
    run.require_feasible(noise_multiplier, 1e-5)
    return run.delta(noise_multiplier, epsilon)


def noise_multiplier(
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    *,
    accountant: str = "pld",
    neighboring_relation: Any = "ADD_OR_REMOVE_ONE",
) -> float:
    """Return the smallest noise multiplier of an (ε, δ)-private run of DP-SGD.

    `clipjax.privacy.epsilon` of the result is at most ε. The result exceeds the
    smallest such number by at most 1e-4. The search takes about ten calls of
    `clipjax.privacy.epsilon`: by RDP 0.5 s, by PLD 2 s where the result is 2, and 13 s
    where it is 0.6.

    Args:
        epsilon: ε, above 0; by PLD at most 100.
        delta: δ; see `clipjax.privacy.epsilon`, as for the other arguments. It should
            be well below 1 / (number of examples).
        sampling_rate: the probability of each example to be in a batch.
        steps: the number of updates, at least 1.
        accountant: "pld" or "rdp".
        neighboring_relation: what counts as a change of one example.

    Returns:
        σ, the noise's standard deviation in units of the sensitivity under the
        relation.

    Raises:
        ImportError: dp_accounting is not installed.
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or the combination has no accountant.

    Example:
        >>> from clipjax import privacy
        >>> sigma = privacy.noise_multiplier(2.0, 1e-5, 0.05, 400, accountant="rdp")
        >>> print(f"{sigma:.2f}")
        2.35
    """
    run = Run.of(sampling_rate, steps, accountant, neighboring_relation)
    require_positive("epsilon", epsilon)
    require_delta(delta, accountant)
    if not run.steps:
        raise ValueError("steps must be at least 1, got 0: no step needs no noise")
    drawn = 1.0 if run.rate == 1 else -math.expm1(run.steps * math.log1p(-run.rate))
    if delta >= drawn:
        raise ValueError(
            f"delta={delta!r} is at least the probability that an example is in any "
            f"batch of {run.steps} at sampling_rate={sampling_rate!r}, which needs no "
            "noise and protects nobody who is drawn: choose a smaller delta"
        )
    if accountant == "pld" and epsilon > 100:
        raise ValueError(
            f'epsilon must be at most 100 by accountant="pld", got {epsilon!r}: with '
            'so little noise its tables are large; accountant="rdp" takes any'
        )
    result = run.noise_multiplier(epsilon, delta)
    run.require_feasible(result, delta)
    return result
