"""Which threshold? A table of strategies for norms that a run has recorded."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..core.checks import require_number
from ..thresholds.smoothness import from_smoothness
from .growth import as_record

QUANTILES = (0.5, 0.9, 0.95, 0.99)
# A spike is a norm so many robust standard deviations of log n above its median: one
# step in 30,000 if log n is normal.
SPIKE = 4.0
# Norms that hardly vary still get a margin: 4 · 0.05 is 22 % above the median.
LEAST_SPREAD = 0.05
# Beyond this fraction of the steps, high norms are no longer rare spikes.
RARE = 0.05
# With fewer norms than this, the median is off by a few percent. With fewer than 100, a
# quantile of 0.99 is nearly the maximum.
LEAST_COUNT = 20
ROBUST = f"log-median + {SPIKE:g} MAD"


class ThresholdRow(NamedTuple):
    """A threshold from recorded norms.

    Attributes:
        strategy: how it was computed.
        threshold: the threshold, in the norm's units.
        clipped_fraction: the fraction of the recorded steps with a larger norm.
    """

    strategy: str
    threshold: float
    clipped_fraction: float


@dataclasses.dataclass(frozen=True)
class ThresholdTable:
    """The result of `suggest_thresholds`; ``print`` shows it as a table.

    Attributes:
        rows: the strategies.
        recommended: one of the rows.
        reason: why that one, in a sentence.
        cautions: reasons to doubt a constant threshold from these norms, in sentences;
            empty if there are none.
        count: how many norms were used.
        nonfinite_count: how many were NaN or infinite, and were left out.
        zero_count: how many were zero, and were left out.
    """

    rows: list[ThresholdRow]
    recommended: ThresholdRow
    reason: str
    cautions: list[str]
    count: int
    nonfinite_count: int
    zero_count: int

    def __str__(self) -> str:
        width = max(len(row.strategy) for row in self.rows)
        lines = [f"  {'strategy':{width}}  {'threshold':>10}  {'clipped':>8}"]
        for row in self.rows:
            mark = "*" if row == self.recommended else " "
            lines.append(
                f"{mark} {row.strategy:{width}}  {row.threshold:>10.4g}"
                f"  {row.clipped_fraction:>8.2%}"
            )
        left_out = f"{self.nonfinite_count} not finite, {self.zero_count} zero"
        notes = [f"{self.count} steps; left out: {left_out}.", f"* {self.reason}"]
        filled = [textwrap.fill(note, 72) for note in notes + self.cautions]
        return "\n".join([*lines, "", *filled])


def suggest_thresholds(
    norms: ArrayLike,
    *,
    deviations: float = 3.0,
    l0: float | None = None,
    l1: float | None = None,
) -> ThresholdTable:
    r"""Suggest thresholds for a hard clip by the norm that was recorded.

    Record the norms before the clip (``grad_norm_raw``), best of a run without a clip,
    and leave out the first steps if their norms are of another size. All thresholds are
    in the units of the norm, and hold for the model, loss and batch size that produced
    it.

    | strategy | threshold |
    |---|---|
    | ``quantile q`` | the quantile of the norms, for q = 0.5, 0.9, 0.95, 0.99 |
    | ``g99 / 2`` | half the quantile 0.99: clips most steps or few, by the spread |
    | ``maximum``, ``1.5 maximum`` | the largest norm: practically never clips |
    | ``mean + k std`` | a single spike increases both by much |
    | ``log-mean + k std`` | exp(mean + k·std) of log n |
    | ``log-median + 4 MAD`` | exp(median + 4·1.4826·MAD) of log n, which spikes hardly
      move; the spread counts as at least 0.05 |
    | ``smoothness L0 / L1`` | γ = L0/L1, if both are given; made for the soft rule with
      the learning rate 1/L0 |

    The rule of the recommendation: a *spike* is a norm above ``log-median + 4 MAD``.
    That row is recommended if it clips at most 5 % of the steps: it shortens the spikes
    and no other step; if there are none, it would have clipped nothing, and limits
    later spikes. Where it clips more, high norms are usual in this run, and
    ``quantile 0.95`` is recommended. This is a safe start, not an optimum: a threshold
    that binds on most steps can train faster, but then sets the step size (see
    `over_clipping`). ``cautions`` warns if the norms drift over the record, if many are
    equal to the largest, as after a clip, or if they are few.

    Not private: thresholds from the norms of private data depend on single examples,
    without noise; see `clipjax.privacy.quantile_threshold`.

    | input | result |
    |---|---|
    | NaN, inf, zero | counted and left out; fractions are of the other steps |
    | fewer than 20 other norms | ValueError |
    | constant norms | recommended: 22 % above them |
    | negative norms | ValueError |

    Args:
        norms: the norms of the steps, shape ``(steps,)``.
        deviations: the k of the rows with mean and standard deviation.
        l0: L0 of the smoothness L0 + L1·n, as a fit of it estimates; above 0.
        l1: L1; above 0.

    Returns:
        A `ThresholdTable` of Python values; the function waits for the device.

    Raises:
        TypeError: an argument is not a number.
        ValueError: norms are too few, negative or of a wrong shape; only one of l0 and
            l1 is given; or a number is out of range.

    Example:
        >>> import clipjax, numpy as np
        >>> norms = np.exp(0.2 * np.random.default_rng(0).standard_normal(1000))
        >>> norms[[100, 500]] = 50.0
        >>> table = clipjax.diagnostics.suggest_thresholds(norms)
        >>> for row in table.rows[3:8]:
        ...     clipped = f"{row.clipped_fraction:.1%}"
        ...     print(f"{row.strategy:13} {row.threshold:5.2f} {clipped:>5}")
        quantile 0.99  1.59  1.0%
        g99 / 2        0.79 87.4%
        maximum       50.00  0.0%
        1.5 maximum   75.00  0.0%
        mean + 3 std   7.70  0.2%
        >>> print(table.recommended.strategy, f"{table.recommended.threshold:.2f}")
        log-median + 4 MAD 2.12
    """
    require_number("deviations", deviations, infinite=False)
    if (l0 is None) != (l1 is None):
        raise ValueError(f"l0 and l1 must be given together, got {l0=} and {l1=}")
    every = as_record(norms, on_device=False)
    if np.any(every < 0):
        raise ValueError(f"norms must be at least 0, got {np.min(every):g}")
    used = every[np.isfinite(every) & (every > 0)]
    zeros = int(np.sum(every == 0))
    nonfinite = int(np.sum(~np.isfinite(every)))
    if used.size < LEAST_COUNT:
        raise ValueError(
            f"norms must have at least {LEAST_COUNT} positive, finite entries, got "
            f"{used.size} of {every.size} ({nonfinite} not finite, {zeros} zero)"
        )
    thresholds = _thresholds(used, deviations)
    if l0 is not None and l1 is not None:
        thresholds["smoothness L0 / L1"] = float(from_smoothness(l0, l1).value)
    rows = {
        strategy: ThresholdRow(strategy, float(limit), float(np.mean(used > limit)))
        for strategy, limit in thresholds.items()
    }
    recommended, reason = _recommendation(rows, used.size)
    return ThresholdTable(
        rows=list(rows.values()),
        recommended=recommended,
        reason=reason,
        cautions=_cautions(used),
        count=used.size,
        nonfinite_count=nonfinite,
        zero_count=zeros,
    )


def _thresholds(norms: np.ndarray, deviations: float) -> dict[str, Any]:
    logs = np.log(norms)
    middle = np.median(logs)
    spread = max(1.4826 * np.median(np.abs(logs - middle)), LEAST_SPREAD)
    quantiles = dict(zip(QUANTILES, np.quantile(norms, QUANTILES), strict=True))
    above = f"+ {deviations:g} std"
    return {
        **{f"quantile {q:g}": limit for q, limit in quantiles.items()},
        "g99 / 2": quantiles[0.99] / 2,
        "maximum": np.max(norms),
        "1.5 maximum": 1.5 * np.max(norms),
        f"mean {above}": np.mean(norms) + deviations * np.std(norms),
        f"log-mean {above}": np.exp(np.mean(logs) + deviations * np.std(logs)),
        ROBUST: np.exp(middle + SPIKE * spread),
    }


def _recommendation(
    rows: dict[str, ThresholdRow], steps: int
) -> tuple[ThresholdRow, str]:
    robust = rows[ROBUST]
    spikes = round(robust.clipped_fraction * steps)
    if robust.clipped_fraction > RARE:
        return rows["quantile 0.95"], (
            f"{robust.clipped_fraction:.1%} of the steps lie far above the median, too "
            "many to be spikes: this threshold clips the highest twentieth."
        )
    if spikes:
        return robust, (
            f"{spikes} of {steps} steps are spikes, far above the spread of the "
            "others: this threshold shortens them and leaves the others alone."
        )
    return robust, (
        "No step is a spike: this threshold clips none of the recorded steps, and "
        "stands by for later ones."
    )


def _cautions(norms: np.ndarray) -> list[str]:
    """Return the reasons to doubt a constant threshold from these norms."""
    cautions = []
    quarter = norms.size // 4
    change = np.median(norms[-quarter:]) / np.median(norms[:quarter])
    if not 0.5 < change < 2:
        cautions.append(
            f"From the first quarter of the steps to the last, the median changes by a "
            f"factor of {change:.2g}: pass the steps of one level, or use a threshold "
            "that follows, such as quantile_clip."
        )
    largest = np.mean(norms >= (1 - 1e-5) * np.max(norms))
    if 0.05 < largest < 1:
        cautions.append(
            f"{largest:.0%} of the norms equal the largest, as they do after a clip: "
            "pass the norms before the clip."
        )
    if norms.size < 100:
        cautions.append("Below 100 steps, the quantile 0.99 is nearly the maximum.")
    return cautions
