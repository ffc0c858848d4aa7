"""The first lines of a comparison: what happened, in a few short sentences."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from .arms import UNCLIPPED, is_unclipped
from .summary import Row, at_best_rate, spread

MOST_NAMES = 4  # arms that a sentence lists by name


def verdict(rows: Sequence[Row], unit: str) -> list[str]:
    """Return which arms diverged and learned, the best one, and how often clips acted.

    Args:
        rows: every arm at every learning rate.
        unit: unit of the loss.

    Returns:
        Sentences. The first one stands alone.
    """
    best = at_best_rate(rows)
    steady = [row for row in best if not row.diverged.any()]
    has_rates = len({row.learning_rate for row in rows}) > 1
    said = [_outcome(best, " at every learning rate" if has_rates else "")]
    if has_rates:
        said.append(_stable(rows))
    said += _losses(best)
    said += _best(steady, unit, has_rates)
    return said + _clipped(best)


def listed(names: Iterable[str]) -> str:
    """Join names as a sentence does: a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def with_clips(rows: Iterable[Row]) -> str:
    """Name a few arms, "without a clip and with a", or say how many there are."""
    labels = [row.label for row in rows]
    free = ["without a clip"] if UNCLIPPED in labels else []
    named = [label for label in labels if label != UNCLIPPED]
    if len(named) > MOST_NAMES:
        named = [f"{len(named)} {'others' if free else 'arms'}"]
    return " and ".join(free + ([f"with {listed(named)}"] if named else []))


def _outcome(best: Sequence[Row], at: str) -> str:
    """Return a sentence on the arms that diverged and those that learned."""
    diverged = [row for row in best if row.diverged.all()]
    mixed = [row for row in best if row.diverged.any() and not row.diverged.all()]
    steady = [row for row in best if not row.diverged.any()]
    # Where a loss need not fall, a run that stays finite may have learned nothing.
    learned = (
        "the model learned" if best[0].goal.must_fall else "the loss stayed finite"
    )
    every = f"with all {len(best)} arms"
    if len(diverged) == len(best) > 1:
        return f"Training diverged {every}{at}."
    if len(steady) == len(best) > 1:
        return f"{learned.capitalize()} {every}: none diverged."
    parts = []
    if diverged:
        parts.append(f"training diverged {with_clips(diverged)}{at}")
    if mixed:
        seeds = len(mixed[0].diverged)
        each = [f"{row.diverged.sum()} of {seeds} {with_clips([row])}" for row in mixed]
        each = each if len(each) <= MOST_NAMES else [f"some with {len(each)} arms"]
        parts.append(f"diverged seeds: {listed(each)}")
    if steady:
        parts.append(f"{learned} {with_clips(steady)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _stable(rows: Sequence[Row]) -> str:
    """Return a sentence on each arm's highest learning rate without a diverged seed."""
    by_rate: dict[float, list[Row]] = {}
    for row in at_best_rate(rows):
        own = [other for other in rows if other.label == row.label]
        rates = [one.learning_rate for one in own if not one.diverged.any()]
        by_rate.setdefault(max(rates, default=0.0), []).append(row)
    each = "; ".join(
        f"{f'{rate:g}' if rate else 'none'} {with_clips(arms)}"
        for rate, arms in sorted(by_rate.items())
    )
    return f"Highest learning rate without a diverged seed: {each}."


def _losses(best: Sequence[Row]) -> list[str]:
    """Return first and final loss of the diverged arms, or of the only arm."""
    told = best if len(best) == 1 else [row for row in best if row.diverged.any()]
    if not told or len(told) > MOST_NAMES:
        return []
    each = "; ".join(
        f"{mean_text(row.first)} to {mean_text(row.final)} {with_clips([row])}"
        for row in told
    )
    return [f"Loss from step 0 to the end: {each}."]


def mean_text(values: np.ndarray) -> str:
    """Format the mean of some values, or say that it is not finite."""
    mean = values.mean()
    return f"{mean:.3g}" if np.isfinite(mean) else "not finite"


def _best(steady: Sequence[Row], unit: str, has_rates: bool) -> list[str]:
    """Return the best arm without a diverged seed, and the arms within its spread."""
    ranked = [row for row in steady if np.isfinite(row.rank).all()]
    if not ranked:
        return []
    first, *others = sorted(ranked, key=lambda row: row.rank.mean())
    name, is_low, _ = first.goal
    if name == "loss":
        what, number = "final loss", f"{spread(first.final, 3)} {unit}"
    else:
        what, number = name, spread(first.held_out[name], 3)
    what = f"{'lowest' if is_low else 'highest'} {what}" if others else what
    text = f"{what[0].upper()}{what[1:]}: {number} {with_clips([first])}"
    text += f" at learning rate {first.learning_rate:g}" if has_rates else ""

    def gap(row: Row) -> float:
        return float(row.rank.mean() - first.rank.mean())

    equal = [row for row in others if gap(row) == 0]
    rest = [row for row in others if gap(row) > 0]
    noise = {id(row): max(np.ptp(first.rank), np.ptp(row.rank)) for row in rest}
    near = [row for row in rest if gap(row) <= noise[id(row)]]
    far = [row for row in rest if gap(row) > noise[id(row)]]
    if equal:
        text += f"; the same {with_clips(equal)}"
    if near:
        text += f"; no difference to rely on {with_clips(near)}"
    if far:
        side = "higher" if is_low else "lower"
        text += f"; {gap(far[0]):.3g} {side} {with_clips(far[:1])}"
    chance = (
        " (one seed: this may be chance)" if others and len(first.rank) == 1 else ""
    )
    return [f"{text}{chance}."]


def _clipped(best: Sequence[Row]) -> list[str]:
    """Return the fraction of the steps in which each clip changed the gradient."""
    by_share: dict[str, list[Row]] = {}
    for row in best:
        if not is_unclipped(row.label):
            by_share.setdefault(_share(row), []).append(row)
    if not by_share:
        return []
    each = "; ".join(f"{how} {with_clips(arms)}" for how, arms in by_share.items())
    return [f"Steps in which the clip changed the gradient: {each}."]


def _share(row: Row) -> str:
    share, pieces = 100 * row.clipped.mean(), 100 * row.share.mean()
    if share in (0, 100):
        text = "none" if share == 0 else "all"
    else:
        text = percent(share)
    if share and not math.isclose(share, pieces, rel_tol=1e-3):
        # Per example, per leaf or per unit: one step clips some of them.
        text += f" ({percent(pieces)} of the parts that it clips separately)"
    return text


def percent(share: float) -> str:
    """Format a fraction as a percentage; only exact 0 and 1 become 0 % and 100 %."""
    if 0 < share < 1 or 99 < share < 100:
        return "under 1 %" if share < 1 else "over 99 %"
    return f"{share:.0f} %"
