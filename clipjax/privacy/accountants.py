"""The accountants of dp_accounting for one mechanism, repeated."""

from __future__ import annotations

import contextlib
import logging
import math
import numbers
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..core.checks import require_choice
from ..per_example.relations import relation_name

ACCOUNTANTS = ("pld", "rdp")

# The least δ by PLD: below it, the rounding of convolutions by FFT is of δ's order.
_LEAST_DELTA = 1e-12
# The largest ε by RDP for which PLD is tried: beyond it, tables take gigabytes.
_LARGEST_EPSILON = 1000.0
_TOLERANCE = 1e-4
# A smaller noise multiplier counts as 0, a larger one as this number: both keep ε an
# upper bound, and the squares in dp_accounting within the range of floating point.
LEAST_NOISE = 1e-6
_MOST_NOISE = 1e6


class Run(NamedTuple):
    """Steps of one mechanism, and the accountant for them."""

    rate: float
    steps: int
    accountant: str
    relation: str

    @classmethod
    def of(cls, rate: Any, steps: Any, accountant: Any, relation: Any) -> Run:
        """Check the arguments that all functions have in common."""
        require_choice("accountant", accountant, ACCOUNTANTS)
        relation = relation_name(relation)
        require_positive("sampling_rate", rate)
        if rate > 1:
            raise ValueError(
                f"sampling_rate must be at most 1, got {rate!r}: it is the expected "
                "batch size divided by the number of examples"
            )
        if accountant == "rdp" and relation == "REPLACE_ONE" and rate < 1:
            raise ValueError(
                'accountant="rdp" has no bound for neighboring_relation="REPLACE_ONE" '
                f"at a sampling rate below 1, got {rate!r}: use "
                'accountant="pld", or ADD_OR_REMOVE_ONE, or REPLACE_SPECIAL'
            )
        return cls(float(rate), _steps(steps), accountant, relation)

    def event(self, noise_multiplier: float) -> Any:
        """Return the steps as an event of dp_accounting."""
        dp = _dp_accounting()
        event = dp.GaussianDpEvent(noise_multiplier)
        if self.rate < 1:
            if self.relation == "REPLACE_ONE":
                # A contribution of at most Δ/2 is replaced by another; dp_accounting
                # counts in contributions.
                event = dp.GaussianDpEvent(2 * noise_multiplier)
            event = dp.PoissonSampledDpEvent(self.rate, event)
        return dp.SelfComposedDpEvent(event, self.steps)

    def fresh(self) -> Any:
        """Make an accountant."""
        dp = _dp_accounting()
        # Without sampling, all relations shift the mean by Δ, as ADD_OR_REMOVE_ONE
        # does, whose convention the accountants share. With Poisson samples, the worst
        # pair for REPLACE_ONE has the opposite contributions ±Δ/2: a set of results
        # with probability p when the example is not drawn has at most
        # Φ(Φ⁻¹(p) + 1/2σ) under one of them, at least Φ(Φ⁻¹(p) - 1/2σ) under the
        # other, and half-spaces attain both.
        name = self.relation if self.rate < 1 else "ADD_OR_REMOVE_ONE"
        kinds = {"pld": dp.pld.PLDAccountant, "rdp": dp.rdp.RdpAccountant}
        return kinds[self.accountant](neighboring_relation=dp.NeighboringRelation[name])

    def composed(self, noise_multiplier: float) -> Any:
        """Compose the steps."""
        dp = _dp_accounting()
        event = self.event(min(float(noise_multiplier), _MOST_NOISE))
        try:
            return self.fresh().compose(event)
        except dp.UnsupportedEventError as error:
            raise ValueError(
                f"the installed dp_accounting has no {self.accountant.upper()} "
                f"accounting of Poisson batches for {self.relation}; 0.5 and later do"
            ) from error

    def epsilon(self, noise_multiplier: float, delta: float) -> float:
        with _quiet():
            return float(self.composed(noise_multiplier).get_epsilon(float(delta)))

    def delta(self, noise_multiplier: float, epsilon: float) -> float:
        with _quiet():
            delta = float(self.composed(noise_multiplier).get_delta(float(epsilon)))
        least = _LEAST_DELTA if self.accountant == "pld" else 0.0
        return min(max(delta, least), 1.0)

    def by_rdp(self) -> Run:
        """Return a run with the cheap accountant, to estimate the other's result."""
        return self._replace(accountant="rdp", relation="ADD_OR_REMOVE_ONE")

    def require_feasible(self, noise_multiplier: float, delta: float) -> None:
        """Refuse noise multipliers beyond the accountant's precision or the memory."""
        if self.accountant == "rdp":
            with _quiet():
                divergences = self.composed(noise_multiplier).rdp
            if (divergences < 0).any():
                # dp_accounting would mistake these orders for perfect privacy.
                raise ValueError(
                    f"sampling_rate={self.rate!r} with "
                    f"noise_multiplier={noise_multiplier!r} is beyond the precision of "
                    'accountant="rdp": its divergences are rounded to below 0; use '
                    '"pld"'
                )
            return
        bound = self.by_rdp().epsilon(noise_multiplier, delta)
        if bound > _LARGEST_EPSILON:
            raise ValueError(
                f"noise_multiplier={noise_multiplier!r} gives no privacy (ε = "
                f'{bound:.0f} by RDP), and accountant="pld" would need gigabytes for '
                'it: use more noise or fewer steps; accountant="rdp" takes any'
            )

    def noise_multiplier(self, epsilon: float, delta: float) -> float:
        """Search for the smallest noise multiplier for ε."""
        dp = _dp_accounting()
        upper = 1.0
        if self.accountant == "pld":
            upper = self.by_rdp().noise_multiplier(epsilon, delta)
        while self.epsilon(upper, delta) > epsilon:
            upper *= 2
            if upper > _MOST_NOISE:
                raise ValueError(
                    f'accountant="{self.accountant}" finds no noise multiplier for '
                    f"epsilon={epsilon!r} at delta={delta!r} and {self.steps} steps"
                )
        # Small steps, since the cost of PLD grows fast as the noise falls.
        ratio = 0.8 if self.accountant == "pld" else 0.5
        lower = upper * ratio
        while self.epsilon(lower, delta) <= epsilon:
            upper, lower = lower, lower * ratio
        with _quiet():
            return dp.calibrate_dp_mechanism(
                self.fresh,
                self.event,
                float(epsilon),
                float(delta),
                dp.ExplicitBracketInterval(lower, upper),
                tol=_TOLERANCE,
            )


def _dp_accounting() -> Any:
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise ImportError(
            "privacy accounting needs dp-accounting, which is not installed: "
            'pip install "clipjax[privacy]"'
        ) from error
    return dp_accounting


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop log lines on skipped Rényi orders: the bound holds without them."""

    def keep(record: logging.LogRecord) -> bool:
        return "Excluding this order" not in str(record.msg)

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def require_finite(name: str, value: Any) -> None:
    """Check for a finite Python or NumPy number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{name} must be a Python or NumPy number, got {value!r}: accountants run "
            "in Python, outside of jit; float(...) takes a number out of an array"
        )
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {value!r}")


def require_positive(name: str, value: Any) -> None:
    """Check for a finite Python or NumPy number above 0."""
    require_finite(name, value)
    if not value:
        raise ValueError(f"{name} must be above 0, got {value!r}")


def require_delta(delta: Any, accountant: str) -> None:
    """Check for a number between 0 and 1, within the accountant's precision."""
    require_positive("delta", delta)
    if delta >= 1:
        raise ValueError(f"delta must be below 1, got {delta!r}")
    if accountant == "pld" and delta < _LEAST_DELTA:
        raise ValueError(
            f'delta must be at least {_LEAST_DELTA} by accountant="pld", which is '
            f'rounded by as much, got {delta!r}; accountant="rdp" takes any'
        )


def _steps(steps: Any) -> int:
    try:
        if isinstance(steps, bool):
            raise TypeError
        count = operator.index(steps)
    except TypeError as error:  # also that of a traced array
        raise TypeError(
            f"steps must be a whole number of at least 0, got {steps!r}: accountants "
            "run in Python, outside of jit"
        ) from error
    if count < 0:
        raise ValueError(f"steps must be a whole number of at least 0, got {steps!r}")
    return count
