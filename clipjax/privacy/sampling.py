"""Poisson subsampling, in batches of a fixed shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int32

from ..core.checks import require_integer, require_number
from .checks import words_of

# Folded into the key, so that these numbers are independent of other draws from it.
_PURPOSE = 0x73616D70
# Examples per block of random numbers, which takes 8 MiB.
_CHUNK = 2**20

Indices = Int32[np.ndarray, " batch_size"]
Padding = Bool[np.ndarray, " batch_size"]


@dataclasses.dataclass(frozen=True)
class PoissonSampler:
    r"""Draw each example for a step independently of all others: Poisson subsampling.

    .. math:: P(i \in S_t) = q, \qquad \text{independently for all } i \text{ and } t

    with the sampling rate q. It is the sampling that `clipjax.privacy.epsilon` assumes.
    Shuffled epochs of fixed batches are not: their ε may be much larger.

    The key and the number of the step alone determine the sample of a step: a restored
    run continues with the same batches as without the stop, and steps may be requested
    in any order. A sample's size varies, as :math:`nq \pm \sqrt{nq(1 - q)}`. No example
    is ever dropped, which would break the accounting: the sample is split into as many
    batches of the fixed size as it needs, padded with -1, whose clipped sums
    `clipjax.privacy.virtual_batches` adds up. Pass ``is_padding_example=indices < 0``
    to `clipjax.clipped_grad`.

    | input | result |
    |---|---|
    | an empty sample | one batch, all of it padding: a step with noise alone |
    | a sample as large as batch_size | one batch without padding |
    | one example more | two batches, the second with one example |
    | sampling_rate = 1 | all examples, in every step |
    | several processes | each computes the same sample, and takes its share of rows |

    Shapes depend on batch_size alone, and reveal nothing about the data. The number of
    batches of a step depends on the size of the sample, and so under ADD_OR_REMOVE_ONE
    on the data. The optimizer does not release it, but the duration of a step may: the
    guarantee is for observers of the parameters, not of the clock. Indices are private;
    do not log them. The sampling rate must be a constant as well: chosen as
    ``256 / len(data)``, it depends on the data, unless the number of examples is
    public.

    With several processes, take rows ``indices[process_index::process_count]`` of every
    batch in each, and sum the clipped gradients over processes. For a compiled loop,
    draw the batches of several steps beforehand and stack them: ``lax.scan`` runs over
    the arrays of indices and ``is_last``, since all have the same shape.

    Random numbers are those of Philox 4x64 with ten rounds, with the words of the key
    as its key and the step as part of its counter, so that no two steps share any. An
    example is drawn if its 64 bits are below :math:`2^{64} q`, rounded down. Philox is
    not a cryptographic generator. Keep the key as secret as the data: whoever knows the
    key knows the samples, and amplification by sampling is lost.
    ``jax.random.key(seed)`` uses 32 bits of the seed, few enough to try them all.

    Args:
        examples: n, the number of examples, below 2^31.
        sampling_rate: q, above 0 and at most 1.
        key: a key from `jax.random.key`. It may be that of the noise, which draws other
            numbers from it.
        batch_size: the number of rows of a batch, as many as fit into memory.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.

    Example:
        >>> import jax
        >>> from clipjax import privacy
        >>> sampler = privacy.PoissonSampler(20, 0.25, jax.random.key(0), batch_size=4)
        >>> for indices, is_last in sampler.batches(step=5):
        ...     print(indices, is_last)
        [ 4  9 12 17] False
        [18 19 -1 -1] True
        >>> sampler.expected_size
        5.0

    References:
        Abadi et al., `Deep learning with differential privacy
        <https://arxiv.org/abs/1607.00133>`_, 2016; Salmon et al., `Parallel random
        numbers: as easy as 1, 2, 3 <https://doi.org/10.1145/2063384.2063405>`_, 2011,
        for Philox; Chua et al., `How private are DP-SGD implementations?
        <https://arxiv.org/abs/2403.17673>`_, 2024, for shuffled batches.
    """

    examples: int
    sampling_rate: float
    key: dataclasses.InitVar[jax.Array]
    batch_size: int = dataclasses.field(kw_only=True)
    # Not printed, since it is secret.
    key_words: tuple[int, ...] = dataclasses.field(init=False, repr=False)

    def __post_init__(self, key: jax.Array) -> None:
        require_integer("examples", self.examples, 1)
        if self.examples >= 2**31:
            raise ValueError(f"examples must be below 2^31, got {self.examples}")
        require_integer("batch_size", self.batch_size, 1)
        if isinstance(self.sampling_rate, jax.Array):
            raise TypeError("sampling_rate must be a number, got a JAX array")
        require_number("sampling_rate", self.sampling_rate, infinite=False)
        # Below 2^-64, no number would be drawn.
        if not 2.0**-64 <= self.sampling_rate <= 1:
            raise ValueError(
                "sampling_rate must be a number above 0 and at most 1, got "
                f"{self.sampling_rate!r}"
            )
        words, _ = words_of(key)
        object.__setattr__(self, "key_words", tuple(np.asarray(words).tolist()))

    @property
    def expected_size(self) -> float:
        """The mean size of a sample, nq: the divisor m for ``normalize_by``.

        The divisor is a constant: the size of the sample itself is private.
        """
        return self.examples * self.sampling_rate

    def sample(self, step: int) -> Int32[np.ndarray, " size"]:
        """Return the indices of the examples of a step, in ascending order.

        Args:
            step: the number of the step, from 0.
        """
        require_integer("step", step, 0)
        key = sum(word << 32 * place for place, word in enumerate(self.key_words))
        counter = _PURPOSE << 192 | step << 128  # the lower half counts the numbers
        numbers = np.random.Philox(key=key, counter=counter)
        # Compare 64 random bits with a bound, since NumPy guarantees these bits across
        # versions, and since 32-bit floats would round small rates.
        bound = np.uint64(int(float(self.sampling_rate) * 2**64) - 1)
        parts = [
            start + np.flatnonzero(numbers.random_raw(size) <= bound)
            for start, size in self._chunks()
        ]
        return np.concatenate(parts).astype(np.int32)

    def batches(self, step: int) -> Iterator[tuple[Indices, bool]]:
        """Yield the sample of a step in batches, with whether each is the last.

        Args:
            step: the number of the step, from 0.

        Yields:
            Pairs of int32 indices of shape ``(batch_size,)``, -1 where there is
            padding, and a bool.
        """
        sample = self.sample(step)
        for start in range(0, max(len(sample), 1), self.batch_size):
            part = sample[start : start + self.batch_size]
            padding = np.full(self.batch_size - len(part), -1, np.int32)
            is_last = start + self.batch_size >= len(sample)
            yield np.concatenate([part, padding]), is_last

    def take(self, data: Any, step: int) -> Iterator[tuple[Any, Padding, bool]]:
        """Yield the batches of a step, of data in memory.

        Rows of padding are copies of the first example. They count for nothing if
        ``is_padding_example`` is passed on to `clipjax.clipped_grad`.

        Args:
            data: a tree of arrays with the examples along the first axis.
            step: the number of the step, from 0.

        Yields:
            The batch, a tree like the data; ``is_padding_example``, a bool for each
            row; and whether the batch is the last of the step.
        """
        for leaf in jax.tree.leaves(data):
            if np.shape(leaf)[:1] != (self.examples,):
                raise ValueError(
                    f"data must have {self.examples} examples along the first axis of "
                    f"every array, got shape {np.shape(leaf)}"
                )
        for indices, is_last in self.batches(step):
            rows = np.maximum(indices, 0)
            yield jax.tree.map(lambda leaf: leaf[rows], data), indices < 0, is_last  # noqa: B023

    def _chunks(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.examples, _CHUNK):
            yield start, min(_CHUNK, self.examples - start)
