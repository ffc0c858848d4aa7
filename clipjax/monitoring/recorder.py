"""A recorder of metrics, which does not make a step wait for the host."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ..core.checks import require_integer
from ..wrappers.sections import Naming
from .checks import (
    checked_number,
    checked_step,
    require_one_state,
    require_outside_jit,
    require_real,
)
from .history import History
from .packing import (
    Blocks,
    Packed,
    StateFinder,
    joined,
    pack_step,
    pack_steps,
    unpacked,
)
from .summary import log_line
from .writers import Writer


class _Pending(NamedTuple):
    """Steps whose numbers are on the device.

    Attributes:
        steps: the numbers of the steps.
        packed: their numbers on the device.
        known: scalars that are already on the host.
    """

    steps: range
    packed: Packed
    known: dict[str, float]

    @property
    def layout(self) -> Any:
        """The key that steps must share for their columns to be joined."""
        packed = self.packed
        return packed.float_names, packed.integer_names, tuple(self.known)


class Recorder:
    """Record metrics of every step, and fetch them in batches.

    `record` dispatches one small program, which copies the numbers of a step to two new
    arrays on the device, so that the state may be donated afterwards. Once
    ``2 * fetch_every`` steps are pending, the older half is fetched in one
    ``jax.device_get``. By then ``fetch_every`` later steps have been dispatched; with
    fewer steps in flight than that, nothing waits for the device. No more than
    ``2 * fetch_every`` steps and the last call of `extend` stay on the device.

    Keys are those of `clipjax.metrics`, such as ``clip/grad_norm_raw``. Counts are
    exact: they are int32 on the device and float64 in the history.

    | ``blocks`` | recorded |
    |---|---|
    | False | totals of each clip |
    | True | also all blocks of clips that report blocks |
    | a number k | also the k blocks of each clip with the largest norms in that step |
    | a pattern | also blocks whose names match, such as ``"layers/*/kernel"`` |

    If the arrays span several processes, every process must call `record`; pass writers
    in one of them only.

    Args:
        params: the parameters, or a tree of their structure, as the clip sees them.
            Only the names of their leaves are stored. With None, blocks are numbered,
            except for a ``TrainState``, which contains parameters.
        blocks: which blocks to record.
        block_names: as for `clipjax.metrics`.
        fetch_every: steps per batch. 1 fetches each step during the next one, and
            waits for it.
        history: earlier rows to continue, such as ``History.from_jsonl(path)``.
        writers: each receives every batch as a `History` of its rows.
        log_every: rows between lines for the log, each about the rows since the last;
            None for no lines.
        log: the function that is called with each line.

    Raises:
        TypeError: blocks is not a bool, integer or string, or a number of steps is not
            an integer.
        ValueError: a number is below its lower bound.

    Example:
        >>> import clipjax, jax, jax.numpy as jnp, optax
        >>> from clipjax.monitoring import Recorder
        >>> optimizer = optax.chain(clipjax.clip_by_global_norm(1.0), optax.sgd(0.1))
        >>> update = jax.jit(optimizer.update)
        >>> state = optimizer.init(jnp.zeros(2))
        >>> with Recorder() as recorder:
        ...     for step in range(3):
        ...         _, state = update(jnp.array([3.0, 4.0]) / 2.0**step, state)
        ...         recorder.record(state, learning_rate=0.1)
        >>> print(recorder.history["clip/grad_norm_raw"])
        [5.   2.5  1.25]
    """

    def __init__(
        self,
        params: Any = None,
        *,
        blocks: Blocks = False,
        block_names: Mapping[str, Sequence[str]] | None = None,
        fetch_every: int = 100,
        history: History | None = None,
        writers: Sequence[Writer] = (),
        log_every: int | None = None,
        log: Callable[[str], None] = print,
    ):
        if not isinstance(blocks, bool | str):
            require_integer("blocks", blocks, 0)
        require_integer("fetch_every", fetch_every, 1)
        if log_every is not None:
            require_integer("log_every", log_every, 1)
        self._states_in = StateFinder()
        self._blocks = blocks
        self._block_names = block_names
        self._naming = None if params is None else Naming.of(None, params, block_names)
        self._fetch_every = fetch_every
        self._fetched = History() if history is None else history
        self._writers = tuple(writers)
        self._log_every, self._log = log_every, log
        self._pending: deque[_Pending] = deque()
        self._pending_steps = 0
        self._next_step = int(self._fetched.steps[-1]) + 1 if len(self._fetched) else 0

    def record(
        self, opt_state: Any, step: int | None = None, **scalars: jax.Array | float
    ) -> None:
        """Record the metrics of the clips in a step, and further numbers.

        Args:
            opt_state: the optimizer state after the step, or an ``nnx.Optimizer``, a
                ``TrainState`` or another object with an ``opt_state``.
            step: the step's number; None for one more than the last. With a number that
                is not above the last one, the call waits for the device, and the rows
                from that number on are dropped.
            **scalars: further numbers, such as ``loss=loss``: device arrays, which are
                not waited for, or Python numbers. Keys with slashes can be passed as
                ``**{"train/loss": loss}``.

        Raises:
            TypeError: opt_state is not an optimizer state; the call is traced; step is
                not an integer; or a scalar is not a real number.
            ValueError: there is nothing to record; a scalar is an array with axes, or
                lies on other devices than the state; the state is batched; or blocks
                has a pattern that matches no block.
        """
        states = self._states_in(opt_state)
        arrays = {k: v for k, v in scalars.items() if isinstance(v, jax.Array)}
        require_outside_jit(states, arrays)
        known = {k: checked_number(k, v) for k, v in scalars.items() if k not in arrays}
        for key, array in arrays.items():
            require_real(key, array, "()", array.shape == ())
        if not states and not scalars:
            raise ValueError("opt_state holds no clip: there is nothing to record")
        require_one_state(states)
        number = self._next_step if step is None else checked_step(step)
        packed = pack_step(states, arrays, self._naming_of(opt_state), self._blocks)
        self._hold(range(number, number + 1), packed, known)

    def extend(
        self, stacked: Mapping[str, ArrayLike], first_step: int | None = None
    ) -> None:
        """Record steps that ran inside `jax.lax.scan`.

        Let the body of the scan return ``clipjax.metrics(state, blocks=False)``, with
        further scalars if needed, and pass the dictionary that the scan returns. That
        call selects the blocks.

        Args:
            stacked: numbers by key, each of shape ``(steps,)``.
            first_step: the number of the first of these steps; None for one more than
                the last that was recorded.

        Raises:
            TypeError: the call is traced, or an array is not of real numbers.
            ValueError: stacked is empty, or arrays are not of one shape ``(steps,)``.
        """
        require_outside_jit(stacked)
        if not stacked:
            raise ValueError("stacked must have at least one array, got {}")
        steps = np.shape(next(iter(stacked.values())))[:1]
        arrays = {key: jnp.asarray(values) for key, values in stacked.items()}
        for key, array in arrays.items():
            is_column = array.shape == steps and steps != ()
            require_real(key, array, "(steps,), as all others", is_column)
        first = self._next_step if first_step is None else checked_step(first_step)
        self._hold(range(first, first + steps[0]), pack_steps(arrays), {})

    def flush(self) -> None:
        """Fetch all steps, and wait for the device."""
        self._fetch(keep=0)

    def close(self) -> None:
        """Fetch all steps, and close the writers."""
        try:
            self.flush()
        finally:
            for writer in self._writers:
                writer.close()

    @property
    def history(self) -> History:
        """All rows so far; waits for the device."""
        self.flush()
        return self._fetched

    @property
    def fetched(self) -> History:
        """The rows fetched so far, without waiting."""
        return self._fetched

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _naming_of(self, opt_state: Any) -> Naming:
        if self._blocks is False:
            return Naming()
        if self._naming is None:
            self._naming = Naming.of(opt_state, None, self._block_names)
        return self._naming

    def _hold(self, steps: range, packed: Packed, known: dict[str, float]) -> None:
        if not steps:
            return
        if steps[0] < self._next_step:  # rows are replaced, in the order of their steps
            self.flush()
        self._pending.append(_Pending(steps, packed, known))
        self._pending_steps += len(steps)
        self._next_step = steps[-1] + 1
        if self._pending_steps >= 2 * self._fetch_every:
            self._fetch(keep=self._fetch_every)

    def _fetch(self, keep: int) -> None:
        """Fetch the steps that have at least ``keep`` later ones, in one transfer."""
        later, count = self._pending_steps, 0
        for pending in self._pending:
            if later - len(pending.steps) < keep:
                break
            later -= len(pending.steps)
            count += 1
        if not count:
            return
        taken = list(itertools.islice(self._pending, count))
        on_host = jax.device_get([pending.packed for pending in taken])
        # Only now: an interrupt while waiting loses no step.
        for _ in taken:
            self._pending.popleft()
        self._pending_steps = later
        pairs = zip(taken, on_host, strict=True)
        self._hand_out([each._replace(packed=packed) for each, packed in pairs])

    def _hand_out(self, taken: Sequence[_Pending]) -> None:
        worst = None if isinstance(self._blocks, bool | str) else self._blocks
        batch = History()
        for _, alike in itertools.groupby(taken, key=lambda each: each.layout):
            group = list(alike)
            columns = unpacked(joined([each.packed for each in group]), worst)
            for key in group[0].known:
                columns[key] = np.array([each.known[key] for each in group])
            batch.append([step for each in group for step in each.steps], columns)
        before = int(np.searchsorted(self._fetched.steps, batch.steps[0]))
        self._fetched.extend(batch)
        for writer in self._writers:
            writer.write(batch)
        if self._log_every is not None:
            self._log_lines(before, self._log_every)

    def _log_lines(self, before: int, every: int) -> None:
        """Log a line at each multiple of ``every`` rows above ``before``."""
        first = (before // every + 1) * every
        for rows in range(first, len(self._fetched) + 1, every):
            self._log(log_line(self._fetched.rows_between(rows - every, rows)))
