"""What a clip costs, counted from jaxprs and from XLA's programs for CPUs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import clipjax
from benchmarks.clips import without_report
from benchmarks.costs import (
    compile_step,
    cost_alone,
    cost_beyond_adam,
    equations_per_leaf,
    readers_path,
    structs,
)
from clipjax import granularity, guards


class Gate(NamedTuple):
    """A clip, and the most that it may cost.

    Attributes:
        make: returns the clip for a tree of shapes.
        equations: per leaf.
        reads: of the gradient in a step, beyond Adam's, in float32 and in bfloat16.
        temporaries: of a step, beyond Adam's, in gradients.
        alone: temporaries without the step, in float32 and in bfloat16.
    """

    make: Callable[[Any], Any]
    equations: float | None = None
    reads: tuple[float, float] | None = None
    temporaries: float = 1 / 8
    alone: tuple[float, float] = (1 / 8, 1 / 8)


def by_group(grads):
    labels = {name: "ab"[number % 2] for number, name in enumerate(grads)}
    return clipjax.clip_by_group_norm(labels, {"a": 1.0, "b": 2.0})


GATES = {
    "global": Gate(lambda _: clipjax.clip_by_global_norm(1.0), 20, (2, 5)),
    "group": Gate(by_group, 20),
    "autoclip": Gate(lambda _: clipjax.autoclip(), 20),
    "zclip": Gate(lambda _: clipjax.zclip(), 20),
    "leaf": Gate(lambda _: clipjax.clip_by_leaf_norm(1.0), 30, (2, 5)),
    "unit": Gate(lambda _: clipjax.clip_by(1.0, granularity=granularity.unit()), 55),
    "AGC": Gate(lambda _: clipjax.adaptive_grad_clip(0.01), 70),
    "entries": Gate(lambda _: without_report(clipjax.clip_by_value, 1.0), 6, (0, 0)),
    "entries, report": Gate(lambda _: clipjax.clip_by_value(1.0), 60, (5, 8)),
    # XLA:CPU writes down what the guard selects, because two sums read it.
    "drop": Gate(
        lambda _: clipjax.clip_by(1.0, nonfinite=guards.drop),
        temporaries=1,
        alone=(1, 2),
    ),
}
# The others cost what the global clip does.
COMPILED = [name for name in GATES if name not in ("group", "autoclip")]
DTYPES = ["float32", "bfloat16"]
# Where both dtypes have one bar, bfloat16 comes nearer to it: its sums are wider.
EACH = [
    (name, dtype)
    for name in COMPILED
    for dtype in (DTYPES if GATES[name].reads else DTYPES[1:])
    if name != "drop"
] + [("drop", "float32")]  # of bfloat16, XLA:CPU writes less down
ALONE = [(name, "bfloat16") for name in COMPILED] + [("drop", "float32")]
# What is counted is in gradients, and so the same for any number of leaves.
FEW = 2
# XLA also counts scalars and partial sums: a few hundredths of a read of the gradient.
SLACK = 0.05


@pytest.mark.parametrize("name", [name for name in GATES if GATES[name].equations])
def test_equations_per_leaf(name):
    assert equations_per_leaf(GATES[name].make, 20, 30) <= GATES[name].equations


@pytest.mark.parametrize(("name", "dtype"), EACH)
def test_a_step_with_adam(name, dtype):
    gate = GATES[name]
    params = structs(FEW, jnp.dtype(dtype))
    added = cost_beyond_adam(gate.make(params), params)
    assert added.temporaries <= gate.temporaries + SLACK * (gate.temporaries >= 1)
    if gate.reads:
        assert added.bytes_accessed <= gate.reads[DTYPES.index(dtype)] + SLACK


@pytest.mark.parametrize(("name", "dtype"), ALONE)
def test_a_donated_gradient_is_clipped_in_place(name, dtype):
    gate = GATES[name]
    bar = gate.alone[DTYPES.index(dtype)]
    params = structs(FEW, jnp.dtype(dtype))
    cost = cost_alone(gate.make(params), params)
    assert cost.temporaries <= bar + SLACK * (bar >= 1)


def test_metrics_add_no_pass():
    clip = clipjax.clip_by_global_norm(1.0)
    params = structs(FEW)
    silent = compile_step(clip, params).cost_analysis()["bytes accessed"]
    telling = compile_step(clip, params, with_metrics=clipjax.metrics)
    bytes_accessed = telling.cost_analysis()["bytes accessed"]
    assert bytes_accessed == pytest.approx(silent, rel=0.01)


def test_state_of_the_global_clip_holds_scalars_only():
    state = jax.eval_shape(clipjax.clip_by_global_norm(1.0).init, structs())
    assert max(leaf.size for leaf in jax.tree.leaves(state)) == 1


def test_a_reader_follows_one_gradient():
    path = readers_path(clipjax.clip_by_global_norm(1.0))
    assert path.functions <= 60
    assert path.changes <= 75


# A new threshold is no new program


def array_threshold(traces):
    """Pass the threshold as an argument of the jitted step."""
    grads = {"a": np.full(4, 2.0, np.float32)}
    state = clipjax.clip_by_global_norm(1.0).init(grads)

    @jax.jit
    def step(limit, state):
        traces.append(limit)
        return clipjax.clip_by_global_norm(limit).update(grads, state)

    for limit in (1.0, 3.0, 2.0):
        updates, state = step(jnp.float32(limit), state)
        yield limit, updates


def schedule(traces):
    """Look the threshold up by the count of steps in the state."""
    limits = jnp.asarray(np.float32([1.0, 3.0, 2.0]))
    clip = clipjax.clip_by_global_norm(lambda count: limits[count])
    grads = {"a": np.full(4, 2.0, np.float32)}
    state = clip.init(grads)

    @jax.jit
    def step(state):
        traces.append(state)
        return clip.update(grads, state)

    for limit in (1.0, 3.0, 2.0):
        updates, state = step(state)
        yield limit, updates


def injected(traces):
    """Set the threshold in the state of `optax.inject_hyperparams`."""
    clip = optax.inject_hyperparams(clipjax.clip_by_global_norm)(max_norm=1.0)
    grads = {"a": np.full(4, 2.0, np.float32)}
    state = clip.init(grads)

    @jax.jit
    def step(state):
        traces.append(state)
        return clip.update(grads, state)

    for limit in (1.0, 3.0, 2.0):
        state.hyperparams["max_norm"] = jnp.float32(limit)
        updates, state = step(state)
        yield limit, updates


@pytest.mark.parametrize("steps", [array_threshold, schedule, injected])
def test_a_new_threshold_does_not_retrace(steps):
    traces = []
    for limit, updates in steps(traces):
        assert np.linalg.norm(updates["a"]) == pytest.approx(limit, rel=1e-6)
    assert len(traces) == 1
