"""Means over seeds with intervals, and Holm's correction for many tests."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import scipy.stats

LEVEL = 0.05
Key = TypeVar("Key", bound=Hashable)


def signs(samples: Sequence[np.ndarray]) -> float:
    """Return the p-value of the sign test, over all samples; ties do not count."""
    values = np.concatenate(samples)
    up, down = int(np.sum(values > 0)), int(np.sum(values < 0))
    if not up + down:
        return 1.0
    return float(scipy.stats.binomtest(up, up + down).pvalue)


class Estimate(NamedTuple):
    """A mean over seeds, half of its 95 % interval, and the p-value of zero."""

    mean: float
    half: float
    p: float

    @classmethod
    def of(cls, samples: Sequence[np.ndarray]) -> Estimate:
        """Estimate the mean of the means of some tasks, each over its own seeds.

        The tasks are fixed: only seeds are random. Degrees of freedom are those of
        Welch and Satterthwaite; with one sample it is the t-interval.
        """
        mean = float(np.mean([np.mean(sample) for sample in samples]))
        parts = [
            np.var(sample, ddof=1) / len(sample) / len(samples) ** 2
            for sample in samples
        ]
        total = float(sum(parts))
        if not total:
            return cls(mean, 0.0, signs(samples))
        freedom = total**2 / sum(
            part**2 / (len(sample) - 1)
            for part, sample in zip(parts, samples, strict=True)
        )
        error = math.sqrt(total)
        student = scipy.stats.t(freedom)
        p = 2 * float(student.sf(abs(mean) / error))
        return cls(mean, float(student.ppf(0.975)) * error, p)


def holm(estimates: Mapping[Key, Estimate]) -> set[Key]:
    """Return the keys that differ from zero at `LEVEL`, after Holm's correction."""
    found: set[Key] = set()
    order = sorted(estimates, key=lambda key: estimates[key].p)
    for place, key in enumerate(order):
        if estimates[key].p * (len(order) - place) > LEVEL:
            break
        found.add(key)
    return found


def ranked(estimates: Mapping[str, Estimate]) -> list[str]:
    """Return names from the largest mean to the smallest."""
    return sorted(estimates, key=lambda name: -estimates[name].mean)
