"""What can be read from an optimizer state, and that reading costs nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from oracle import norm, random_tree
from steps import run as run_steps

import clipjax
from clipjax import granularity, norms, rules

GRAD = jnp.array([3.0, 4.0])
TREE = {"a": GRAD, "b": {"c": 2 * GRAD}}
BY_NORM = clipjax.clip_by_global_norm(1.0)
BY_LEAF = clipjax.clip_by_leaf_norm(1.0)
SCALARS = {
    "grad_norm_raw",
    "grad_norm_clipped",
    "clip_ratio",
    "threshold",
    "clipped_fraction",
    "nonfinite_count",
    "clipped_steps_fraction",
    "average_clip_ratio",
    "over_clipping",
    "invalid_threshold_count",
}
COLUMNS = ("grad_norm_raw", "grad_norm_clipped", "clip_ratio", "threshold")


def last_state(clip, batches):
    return run_steps(clip, batches, batches[0])[-1][1]


def column(metrics, key="grad_norm_raw"):
    """Gives what is told about blocks, by their names."""
    prefix = f"clip/{key}/"
    return {
        name.removeprefix(prefix): float(value)
        for name, value in metrics.items()
        if name.startswith(prefix)
    }


def test_keys_and_values():
    metrics = clipjax.metrics(last_state(BY_NORM, [GRAD]))
    assert set(metrics) == {f"clip/{key}" for key in SCALARS}
    expected = {
        "grad_norm_raw": 5,
        "grad_norm_clipped": 1,
        "clip_ratio": 0.2,
        "threshold": 1,
        "clipped_fraction": 1,
        "nonfinite_count": 0,
        "clipped_steps_fraction": 1,
        "average_clip_ratio": 0.2,
        "over_clipping": 1,
        "invalid_threshold_count": 0,
    }
    for key, value in expected.items():
        assert isinstance(metrics[f"clip/{key}"], jax.Array)
        found = float(metrics[f"clip/{key}"])
        assert found == pytest.approx(value, rel=1e-6), key


def test_before_the_first_step():
    for name, value in clipjax.metrics(BY_LEAF.init(TREE), TREE).items():
        assert float(value) == ("ratio" in name), name


def test_counts_over_several_steps():
    bad = GRAD * jnp.nan
    metrics = clipjax.metrics(last_state(BY_NORM, [GRAD, GRAD / 100, bad, GRAD / 100]))
    assert float(metrics["clip/clipped_steps_fraction"]) == 0.25
    assert float(metrics["clip/nonfinite_count"]) == 1
    assert float(metrics["clip/clip_ratio"]) == 1
    # 0.2 first, then two finite steps at 1 that count one hundredth each.
    average = 1 - 0.8 * 0.99**2
    found = float(metrics["clip/average_clip_ratio"])
    assert found == pytest.approx(average, rel=1e-5)


def test_blocks_of_leaves_are_named_by_params():
    state = last_state(BY_LEAF, [TREE])
    metrics = clipjax.metrics(state, TREE)
    expected = {"a": 5.0, "b/c": 10.0}
    assert column(metrics) == pytest.approx(expected)
    for name, length in expected.items():
        assert float(metrics[f"clip/grad_norm_clipped/{name}"]) == pytest.approx(1)
        ratio = float(metrics[f"clip/clip_ratio/{name}"])
        assert ratio == pytest.approx(1 / length, rel=1e-6)
        assert float(metrics[f"clip/threshold/{name}"]) == 1
    assert len(metrics) == len(SCALARS) + len(COLUMNS) * 2
    assert column(clipjax.metrics(state)) == pytest.approx({"0": 5.0, "1": 10.0})
    named = clipjax.metrics(state, block_names={"clip": ["x", "y"]})
    assert column(named) == pytest.approx({"x": 5.0, "y": 10.0})


def test_groups_are_named_by_their_labels():
    """JAX sorts the keys of the state; labels keep to their blocks nonetheless."""
    labels = {"a": "y", "b": "x"}
    clip = clipjax.clip_by_group_norm(labels, {"y": 1.0, "x": None})
    state = last_state(clip, [TREE])
    for params in (None, TREE):
        metrics = clipjax.metrics(state, params)
        assert column(metrics) == pytest.approx({"y": 5.0, "x": 10.0})
        assert column(metrics, "threshold") == {"y": 1.0, "x": np.inf}


def test_groups_by_a_function_are_not_named_by_leaves():
    """Each leaf is a group, in the order of the labels and not of the leaves."""
    by_function = granularity.group(lambda path, leaf: {"a": "y"}.get(path, "x"))
    clip = clipjax.clip_by(1.0, granularity=by_function)
    state = last_state(clip, [TREE])
    assert column(clipjax.metrics(state, TREE)) == pytest.approx({"0": 10.0, "1": 5.0})
    names = {"clip": clip.block_names(TREE)}
    found = column(clipjax.metrics(state, TREE, block_names=names))
    assert found == pytest.approx({"x": 10.0, "y": 5.0})


def test_layers_of_a_stack_are_named_by_the_clip():
    tree = {"bias": GRAD, "kernel": jnp.stack([GRAD, 2 * GRAD, 3 * GRAD])}
    clip = clipjax.clip_by_leaf_norm(1.0, stacked={"kernel": 1})
    state = last_state(clip, [tree])
    with pytest.raises(ValueError, match=r"params has 2 leaves, and 'clip' has 4 bl"):
        clipjax.metrics(state, tree)
    names = clip.block_names(tree)
    assert names == ["bias", "kernel[0]", "kernel[1]", "kernel[2]"]
    found = column(clipjax.metrics(state, block_names={"clip": names}))
    assert found == pytest.approx(dict(zip(names, [5.0, 5.0, 10.0, 15.0], strict=True)))


def test_names_that_do_not_fit_are_refused():
    state = BY_LEAF.init(TREE)
    with pytest.raises(ValueError, match="params has 1 leaves, and 'clip' has 2 blo"):
        clipjax.metrics(state, {"a": GRAD})
    with pytest.raises(ValueError, match="1 names for 'clip', which has 2 blocks"):
        clipjax.metrics(state, block_names={"clip": ["a"]})
    for clip in (BY_LEAF, BY_NORM):
        with pytest.raises(ValueError, match="block_names has 'other', and opt_state"):
            clipjax.metrics(clip.init(TREE), block_names={"other": ["a"]})
    # Totals need no names.
    found = clipjax.metrics(state, {"a": GRAD}, blocks=False)
    assert set(found) == {f"clip/{key}" for key in SCALARS}
    # A clip that reports no blocks needs none either.
    assert set(clipjax.metrics(BY_NORM.init(TREE), {"a": GRAD})) == set(found)


def test_the_largest_blocks():
    tree = {"a": 2 * GRAD, "b": 4 * GRAD, "c": GRAD, "d": 3 * GRAD}
    state = last_state(BY_LEAF, [tree])
    for count, names in ((0, ""), (1, "b"), (2, "bd"), (9, "abcd")):
        assert set(column(clipjax.metrics(state, tree, blocks=count))) == set(names)
    tree["c"] = tree["c"].at[0].set(jnp.nan)
    state = last_state(BY_LEAF, [tree])
    metrics = clipjax.metrics(state, tree, blocks=1)
    for key, value in zip(COLUMNS, (np.inf, np.inf, 1, 1), strict=True):
        assert float(metrics[f"clip/{key}/c"]) == value
    assert len(column(metrics)) == 1
    with pytest.raises(ValueError, match="blocks=1 picks blocks .* under jit"):
        jax.eval_shape(lambda state: clipjax.metrics(state, blocks=1), state)
    for bad, kind in ((-1, ValueError), ("all", TypeError), (1.0, TypeError)):
        with pytest.raises(kind, match="blocks must be an integer of at least 0"):
            clipjax.metrics(state, blocks=bad)


CLIPS = {
    "whole": BY_NORM,
    "leaf": clipjax.clip_by_leaf_norm(1.0),
    "unit": clipjax.clip_by(0.5, granularity=granularity.unit(), norm=norms.l1),
    "group": clipjax.clip_by_group_norm({"a": "x", "b": "y"}, {"x": 1.0, "y": None}),
    "entries": clipjax.clip_by_value(0.2),
    "rms": clipjax.clip_by(0.3, norm=norms.rms, rule=rules.soft),
    "linf": clipjax.clip_by(0.3, granularity=granularity.leaf(), norm=norms.linf),
    "lp": clipjax.clip_by(0.3, norm=norms.lp(3), rule=rules.tanh),
}


@pytest.mark.parametrize("key", CLIPS)
def test_the_report_is_about_the_gradient_and_the_update(key):
    grads = random_tree(1, {"a": (3, 2), "b": {"c": (2,)}}, size=5.0)
    [(updates, state)] = run_steps(CLIPS[key], [grads], grads)
    part = CLIPS[key].clipper.norm
    power = {norms.l1: 1, norms.linf: np.inf, norms.rms: "rms", norms.lp(3): 3}
    metrics = clipjax.metrics(state)
    for name, tree in (("raw", grads), ("clipped", updates)):
        length = norm(tree, power.get(part, 2))
        found = float(metrics[f"clip/grad_norm_{name}"])
        assert found == pytest.approx(length, rel=1e-5), name


def test_what_is_no_optimizer_state_is_refused():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    restored = {"0": {"clip_steps": GRAD}, "1": {}}
    cases = {
        "got a gradient transformation": optax.chain(BY_NORM, optax.adam(0.1)),
        "got None": None,
        "looks like parameters": TREE,
        "got a ArrayImpl": GRAD,
        "got a list": [GRAD, TREE],
        "restored without its structure": restored,
        "got a State": nnx.state(model),
        "got a float": 1.0,
    }
    for message, wrong in cases.items():
        for read in (
            clipjax.metrics,
            lambda wrong: clipjax.nonfinite_path(wrong, TREE),
        ):
            with pytest.raises(TypeError, match=f"opt_state must be .*{message}"):
                read(wrong)


def test_an_optimizer_state_without_a_clip():
    for optimizer in (optax.adam(0.1), optax.sgd(0.1), optax.identity()):
        state = optimizer.init(TREE)
        assert clipjax.metrics(state, TREE) == {}
        assert clipjax.nonfinite_path(state, TREE) is None


def chained(make=optax.sgd):
    return optax.chain(BY_LEAF, make(0.1))


ENVELOPES = {
    "chain": chained(),
    "named_chain": optax.named_chain(("first", BY_LEAF), ("then", optax.adam(0.1))),
    "masked": optax.masked(chained(), {"a": True, "b": True}),
    "partition": optax.partition(
        {"x": chained(), "y": optax.sgd(0.1)}, {"a": "x", "b": "x"}
    ),
    "multi_steps": optax.MultiSteps(chained(optax.adam), 2),
    "inject": optax.inject_hyperparams(
        lambda rate: optax.chain(BY_LEAF, optax.sgd(rate))
    )(rate=0.1),
    "if_finite": optax.apply_if_finite(chained(), 3),
    "skip": clipjax.skip_nonfinite(chained()),
    "spike": clipjax.skip_on_spike(chained()),
    "reset": clipjax.periodic_reset(chained(), 5),
    "feedback": clipjax.error_feedback(BY_LEAF),
    "compound": clipjax.stable_update_clip(),
}
TWO_BLOCKS = {f"clip/{key}/{name}" for key in COLUMNS for name in ("a", "b/c")}


def test_it_finds_clips_wherever_they_are():
    for name, optimizer in ENVELOPES.items():
        state = optimizer.init(TREE)
        found = clipjax.metrics(state, TREE)
        assert TWO_BLOCKS | {"clip/threshold"} <= set(found), name
        # A number of steps picks blocks; inside of jit none can be picked.
        shapes = jax.eval_shape(lambda state: clipjax.metrics(state, TREE), state)
        assert set(shapes) == set(found), name
    assert {"skip_on_spike/is_spike", "skip_on_spike/accepted"} <= set(
        clipjax.metrics(ENVELOPES["spike"].init(TREE))
    )


def test_train_states():
    state = TrainState.create(apply_fn=None, params=TREE, tx=chained())
    assert set(column(clipjax.metrics(state))) == {"a", "b/c"}
    # Its parameters are not those that the clip sees; nobody asked for their names.
    masked = optax.masked(chained(), {"a": False, "b": True})
    state = TrainState.create(apply_fn=None, params=TREE, tx=masked)
    assert set(column(clipjax.metrics(state))) == {"0"}
    assert set(column(clipjax.metrics(state, {"a": None, "b": TREE["b"]}))) == {"b/c"}
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, chained(), wrt=nnx.Param)
    found = column(clipjax.metrics(optimizer, nnx.state(model, nnx.Param)))
    assert found == {"bias": 0.0, "kernel": 0.0}
    assert set(column(clipjax.metrics(optimizer))) == {"0", "1"}
    plain = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    assert clipjax.metrics(plain) == {}


def test_batched_states():
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, 3 * leaf]), TREE)
    update = jax.vmap(BY_LEAF.update, in_axes=(0, None))
    _, states = jax.jit(update)(batch, BY_LEAF.init(TREE))
    metrics = clipjax.metrics(states, TREE)
    np.testing.assert_allclose(metrics["clip/grad_norm_raw/a"], [5, 10, 15], rtol=1e-6)
    np.testing.assert_allclose(metrics["clip/clip_ratio/b/c"][1:], [1 / 20, 1 / 30])
    total = np.sqrt(125) * np.arange(1, 4)
    np.testing.assert_allclose(metrics["clip/grad_norm_raw"], total, rtol=1e-6)
    largest = clipjax.metrics(states, TREE, blocks=1)
    assert "clip/grad_norm_raw/b/c" in largest and "clip/threshold/a" not in largest
    with pytest.raises(ValueError, match=r"batch of shape \(3,\): pass one"):
        clipjax.nonfinite_path(states, TREE)


def test_metrics_add_no_pass_over_the_gradient():
    grads = {"w": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}

    def bytes_accessed(function):
        compiled = jax.jit(function).lower(grads).compile()
        return compiled.cost_analysis()["bytes accessed"]

    plain = bytes_accessed(lambda grads: BY_NORM.update(grads, None)[0])

    def with_metrics(grads):
        updates, state = BY_NORM.update(grads, None)
        return updates, clipjax.metrics(state)

    assert bytes_accessed(with_metrics) <= 1.01 * plain


def test_a_name_that_is_taken_is_not_given_again():
    optimizer = optax.chain(
        clipjax.clip_by_global_norm(1.0, name="clip_2"),
        clipjax.clip_by_global_norm(2.0),
        clipjax.clip_by_global_norm(3.0),
    )
    grads = jnp.ones(2)
    [(_, state)] = run_steps(optimizer, [grads], grads)
    found = clipjax.metrics(state)
    names = ("clip_2", "clip", "clip_3")
    assert [float(found[f"{name}/threshold"]) for name in names] == [1, 2, 3]


def test_nonfinite_path_of_another_tree_is_refused():
    grads = {"a": GRAD, "b": GRAD * jnp.nan}
    state = last_state(BY_NORM, [grads])
    assert clipjax.nonfinite_path(state, grads) == "b"
    with pytest.raises(ValueError, match="tree has 1 leaves, and leaf number 1 was"):
        clipjax.nonfinite_path(state, {"a": GRAD})


def test_nonfinite_path_inside_of_masked_and_partition():
    """The clip sees some of the leaves only, and so must the reader."""
    grads = {"a": jnp.ones(2), "b": jnp.array([jnp.nan]), "c": jnp.ones(1)}
    mask = {"a": False, "b": True, "c": True}
    labels = {"a": "skipped", "b": "clipped", "c": "clipped"}
    for optimizer in (
        optax.masked(clipjax.skip_nonfinite(optax.sgd(1.0)), mask),
        optax.partition({"clipped": BY_NORM, "skipped": optax.sgd(1.0)}, labels),
    ):
        _, state = run_steps(optimizer, [grads], grads)[0]
        assert clipjax.nonfinite_path(state, grads | {"a": None}) == "b"
