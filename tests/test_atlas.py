"""The atlas of methods: its cells resume, and its faults are those stated."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.atlas import page
from benchmarks.atlas.__main__ import RESULTS, THREADS
from benchmarks.atlas.arms import TIGHTENED, TIGHTER, arms
from benchmarks.atlas.cells import RULES, fill, fingerprint, read
from benchmarks.atlas.conditions import (
    BURST,
    ENTRIES,
    NAMES,
    SIZE,
    planted,
    spike_steps,
    structures,
)
from benchmarks.atlas.engine import Grid, inputs, survived
from benchmarks.atlas.estimates import Estimate, holm
from benchmarks.atlas.summary import SIMPLEST, TIGHT, Atlas
from benchmarks.atlas.task import Task, replaced
from benchmarks.atlas.tasks import tasks

VERSIONS = {"jax": "0.10.2", "optax": "0.2.8"}  # that the cells were computed with
STEPS = 40


def batch(data, key, bad, noise):
    targets = replaced(key, noise, data.sum(1), jnp.full(8, 5.0))
    return jnp.where(bad, 10 * data, data), targets


def loss(params, batch):
    return jnp.mean(
        (batch[0] @ params["kernel"][:, 0] + params["bias"] - batch[1]) ** 2
    )


LINE = Task(
    name="line",
    about="a line",
    family="sgd",
    centers={"sgd": -1.0, "adam": -1.0},
    steps=STEPS,
    shapes={"kernel": (3, 1), "bias": (1,)},
    data=lambda: jnp.linspace(-1, 1, 24).reshape(8, 3),
    batch=batch,
    loss=loss,
    evaluate=lambda params, data: loss(params, (data, data.sum(1))),
)


@functools.cache
def drawn():
    return inputs(LINE, 2)


MEASURED = ("global norm", "leaf norm", "typical leaf norm", "entry")
PILOT = {
    "exponent": -1.0,
    "target": 0.1,
    "thresholds": dict.fromkeys(
        (*MEASURED, "leaf root mean square", "spectral norm"), 1.0
    )
    | {"norm of each group": {}, "entry of each leaf": {}},
}


def test_a_cell_is_computed_once_again_after_a_change_and_reported_if_it_fails(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("benchmarks.atlas.cells.inputs", lambda *_: drawn())
    monkeypatch.setattr("benchmarks.atlas.cells.pilot", lambda *_: PILOT)

    def computed(task, *names):
        return dict(fill(task, names, Grid(2, 1, 1), tmp_path))

    assert computed(LINE, "clip_by_global_norm") == {"clip_by_global_norm": True}
    written = (tmp_path / "line" / "clip_by_global_norm.json").read_bytes()
    content = json.loads(written)
    assert content["arm"]["arguments"] == {"max_norm": 1.0}
    for name in NAMES:
        assert np.shape(content[name]["final"]) == (2, 2), name

    def broken(*arguments):
        raise ValueError("broken")

    monkeypatch.setattr("benchmarks.atlas.cells.compute", broken)
    both = computed(LINE, "unclipped", "clip_by_global_norm")
    assert isinstance(both["unclipped"], ValueError)
    assert both["clip_by_global_norm"] is False  # not computed again
    assert not (tmp_path / "line" / "unclipped.json").exists()
    changed = dataclasses.replace(LINE, about="another line")
    again = computed(changed, "clip_by_global_norm")
    assert isinstance(again["clip_by_global_norm"], ValueError)  # it was tried
    assert (tmp_path / "line" / "clip_by_global_norm.json").read_bytes() == written


def test_conditions_change_only_what_they_say():
    found = drawn()
    clean = found["clean"]
    for name in NAMES:
        for one, two in zip(
            jax.tree.leaves((found[name].params, found[name].added)),
            jax.tree.leaves((clean.params, clean.added)),
            strict=True,
        ):
            assert np.array_equal(one, two), name
    spikes = np.flatnonzero(found["spikes"].spike)
    assert spikes.tolist() == spike_steps(STEPS)
    assert all(not found[name].spike.any() for name in NAMES if name != "spikes")

    def different(name, part):
        new, old = found[name].batches[part], clean.batches[part]
        return np.any(np.asarray(new != old).reshape(2, STEPS, -1), axis=-1)

    burst = range(STEPS // 2, STEPS // 2 + BURST)
    assert np.flatnonzero(different("bad batches", 0).all(0)).tolist() == list(burst)
    assert different("bad batches", 0).sum() == 2 * BURST
    assert not different("bad batches", 1).any()
    assert not different("label noise", 0).any()
    assert different("label noise", 1).mean() > 0.5
    assert not any(different("spikes", part).any() for part in (0, 1))


def test_spikes_have_the_structure_and_size_that_is_stated():
    grads = {"a": np.arange(1.0, 13.0).reshape(3, 4), "b": np.ones(5)}
    length = sum(np.sum(leaf**2) for leaf in grads.values()) ** 0.5
    added = jax.jit(structures)(grads, jax.random.key(0))
    stacked = jax.jit(jax.vmap(planted, (None, 0, None)))(grads, jnp.arange(5), added)
    new = [{name: leaf[kind] for name, leaf in stacked.items()} for kind in range(5)]
    assert all(np.array_equal(new[0][name], grads[name]) for name in grads)
    for name in grads:
        assert np.allclose(new[1][name], SIZE * grads[name])
    assert np.array_equal(new[3]["b"], grads["b"])
    assert np.allclose(new[3]["a"], SIZE * grads["a"])
    assert np.array_equal(new[4]["b"], grads["b"])
    assert 1 <= np.sum(new[4]["a"] != grads["a"]) <= ENTRIES
    assert np.allclose(np.max(new[4]["a"]), SIZE * length, rtol=0.1)
    whole = np.concatenate([np.ravel(new[2][name] - grads[name]) for name in grads])
    assert SIZE / 2 < np.linalg.norm(whole) / length < 2 * SIZE


def test_a_run_survives_a_spike_only_if_its_loss_comes_back():
    losses = np.ones((3, STEPS // 5 + 1))
    losses[:, 0] = 2.0
    losses[1, spike_steps(STEPS)[1] // 5 + 1 :] = 1.5
    losses[2, :] = np.nan
    assert survived(losses, STEPS).tolist() == [4, 1, 0]


def test_intervals_and_correction():
    # Without a spread, the p-value is that of the sign test of ten equal signs.
    assert Estimate.of([np.ones(5)] * 2) == (1.0, 0.0, 2 * 0.5**10)
    one = Estimate.of([np.array([1.0, 2.0, 3.0])])
    assert one.mean == 2 and one.half == pytest.approx(4.303 * 3**-0.5, rel=1e-3)
    estimates = {"a": 0.001, "b": 0.02, "c": 0.03, "d": 0.5}
    assert holm({name: Estimate(1.0, 1.0, p) for name, p in estimates.items()}) == {"a"}


def test_the_results_are_those_of_the_settings(monkeypatch):
    monkeypatch.setitem(RULES, "versions", VERSIONS)
    atlas = Atlas.read(RESULTS)
    assert not atlas.missing
    for name, task in tasks().items():
        assert len(task.shapes) < THREADS, "SVDs of all leaves at once may hang"
        pilot = read(RESULTS / name / "pilot.json")
        for arm in arms(task, pilot["thresholds"]).values():
            wanted = fingerprint(task, Grid(), arm.settings(), pilot["target"])
            content = atlas.cells[name][arm.name].content
            assert content["fingerprint"] == wanted, (name, arm.name)


def test_a_task_that_is_not_complete_is_left_out_and_named(tmp_path):
    atlas = Atlas.read(tmp_path)
    assert not atlas.tasks
    assert atlas.missing.keys() == tasks().keys()
    assert TIGHT in atlas.missing["rnn"]


@pytest.mark.parametrize("family", ["sgd", "adam"])
def test_a_tightened_clip_differs_in_its_threshold_alone(family):
    task = dataclasses.replace(LINE, family=family)
    found = arms(task, PILOT["thresholds"])
    for name, recipe in TIGHTENED.items():
        one, tight = found[recipe], found[name]
        assert tight.arguments == {"max_norm": 1 / TIGHTER}
        assert tight.shift == (1.0 if family == "sgd" else 0.0)
        same = dataclasses.replace(
            tight, name=recipe, arguments=one.arguments, shift=one.shift
        )
        assert same == one
        tight.optimizer(jnp.asarray(0.1)).init({"kernel": jnp.ones((3, 1))})


def test_one_correction_covers_every_comparison():
    atlas = Atlas.read(RESULTS)
    p = {(*q, n): e.p for q, found in atlas.tests.items() for n, e in found.items()}
    assert atlas.supported and max(p[key] for key in atlas.supported) <= 0.05 / (
        len(p) - len(atlas.supported) + 1
    )
    told = [set(sum(atlas.verdicts(*question), [])) for question in atlas.tests]
    assert sum(map(len, told)) == len(atlas.supported)
    assert SIMPLEST not in atlas.tests[TIGHT, "clean"]  # compared the other way round


def test_the_pages_are_those_of_the_results(capsys):
    assert page.main(["--check"]) == 0, capsys.readouterr().out
