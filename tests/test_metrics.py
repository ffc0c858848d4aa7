"""What can be read from an optimizer state, and that reading costs nothing."""

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import norm, random_tree

import clipjax
from clipjax import norms

GRAD = jnp.array([3.0, 4.0])
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


def run(clip, batches):
    state = clip.init(batches[0])
    update = jax.jit(clip.update)
    for grads in batches:
        _, state = update(grads, state)
    return clipjax.metrics(state)


def test_keys_and_values():
    metrics = run(clipjax.clip_by_global_norm(1.0), [GRAD])
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


def test_counts_over_several_steps():
    bad = GRAD * jnp.nan
    metrics = run(clipjax.clip_by_global_norm(1.0), [GRAD, GRAD / 100, bad, GRAD / 100])
    assert float(metrics["clip/clipped_steps_fraction"]) == 0.25
    assert float(metrics["clip/nonfinite_count"]) == 1
    assert float(metrics["clip/clip_ratio"]) == 1
    # 0.2 first, then two finite steps at 1 that count one hundredth each.
    average = 1 - 0.8 * 0.99**2
    found = float(metrics["clip/average_clip_ratio"])
    assert found == pytest.approx(average, rel=1e-5)


@pytest.mark.parametrize(
    ("clip", "blocks"),
    [
        (clipjax.clip_by_leaf_norm(1.0), {"a": 5.0, "b/c": 10.0}),
        (
            clipjax.clip_by_group_norm({"a": "x", "b": "y"}, {"x": 1.0, "y": None}),
            {"x": 5.0, "y": 10.0},
        ),
        (clipjax.clip_by_value(1.0), {"a": 5.0, "b/c": 10.0}),
    ],
    ids=["leaf", "group", "element"],
)
def test_blocks(clip, blocks):
    metrics = run(clip, [{"a": GRAD, "b": {"c": 2 * GRAD}}])
    for name, length in blocks.items():
        found = float(metrics[f"clip/grad_norm_raw/{name}"])
        assert found == pytest.approx(length, rel=1e-6)
        ratio = metrics[f"clip/grad_norm_clipped/{name}"] / length
        np.testing.assert_allclose(metrics[f"clip/clip_ratio/{name}"], ratio, 1e-6)
        assert f"clip/threshold/{name}" in metrics
    assert len(metrics) == len(SCALARS) + 4 * len(blocks)


# Clippy measures changes relative to the parameters.
OF_GRADIENTS = [key for key in catalogue.CLIPS if key != "recipe-clippy"]


@pytest.mark.parametrize("key", OF_GRADIENTS)
def test_the_report_is_about_the_gradient_and_the_update(key):
    clip, params = catalogue.clip(key), catalogue.parameters()
    grads = catalogue.gradients()
    updates, state = catalogue.jitted(key)(grads, clip.init(params), params)
    if key == catalogue.CHAIN:
        updates = jax.tree.map(lambda leaf: 2.0 * leaf, updates)
    part = catalogue.clip_parts(key).norm
    power = {norms.l1: 1, norms.linf: np.inf, norms.rms: "rms", norms.lp(3): 3}
    metrics = clipjax.metrics(state)
    if repr(part) == "spectral":
        leaves = [np.atleast_2d(leaf) for leaf in jax.tree.leaves(grads)]
        length = max(np.linalg.svd(leaf, compute_uv=False)[0] for leaf in leaves)
        assert float(metrics["clip/grad_norm_raw"]) == pytest.approx(length, rel=1e-3)
        return
    for name, tree in (("raw", grads), ("clipped", updates)):
        length = norm(tree, power.get(part, 2))
        found = float(metrics[f"clip/grad_norm_{name}"])
        assert found == pytest.approx(length, rel=1e-5), name


def test_no_clip_no_metrics():
    state = optax.adam(0.1).init(GRAD)
    assert clipjax.metrics(state) == {}
    assert clipjax.metrics(None) == {}
    assert clipjax.nonfinite_path(state, GRAD) is None


def test_batched_states():
    clip = clipjax.clip_by_leaf_norm(1.0)
    batch = {"a": jnp.stack([GRAD, 2 * GRAD, 3 * GRAD])}
    state = clip.init({"a": GRAD})
    _, states = jax.vmap(lambda grads: clip.update(grads, state))(batch)
    metrics = clipjax.metrics(states)
    for key in ("clip/grad_norm_raw", "clip/grad_norm_raw/a"):
        np.testing.assert_allclose(metrics[key], [5, 10, 15], rtol=1e-6)


def test_metrics_add_no_pass_over_the_gradient():
    clip = clipjax.clip_by_global_norm(1.0)
    grads = {"w": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}

    def bytes_accessed(function):
        compiled = jax.jit(function).lower(grads).compile()
        return compiled.cost_analysis()["bytes accessed"]

    plain = bytes_accessed(lambda grads: clip.update(grads, None)[0])

    def with_metrics(grads):
        updates, state = clip.update(grads, None)
        return updates, clipjax.metrics(state)

    assert bytes_accessed(with_metrics) <= 1.01 * plain


def test_leaf_norms():
    tree = {"a": GRAD * 1e25, "b": {"c": jnp.array([1, 1], jnp.bfloat16)}, "n": None}
    found = clipjax.leaf_norms(tree)
    assert set(found) == {"a", "b/c"}
    assert float(found["a"]) == pytest.approx(5e25, rel=1e-6)
    assert float(found["b/c"]) == pytest.approx(2**0.5, rel=1e-6)
    assert float(clipjax.leaf_norms(tree, norms.l1)["b/c"]) == 2


def test_direction_cosine():
    tree = random_tree(0, {"a": (3,), "b": (2, 2)})
    scaled = jax.tree.map(lambda leaf: 0.1 * leaf, tree)
    opposite = jax.tree.map(lambda leaf: -leaf, tree)
    assert float(clipjax.direction_cosine(tree, scaled)) == pytest.approx(1, rel=1e-6)
    found = float(clipjax.direction_cosine(tree, opposite))
    assert found == pytest.approx(-1, rel=1e-6)
    one, other = jnp.array([1.0, 0]), jnp.array([1.0, 1.0]) * 1e25
    found = float(clipjax.direction_cosine(one, other))
    assert found == pytest.approx(0.5**0.5, rel=1e-6)
    assert np.isnan(clipjax.direction_cosine(one, jnp.zeros(2)))


@pytest.mark.parametrize("size", [1e-37, 3.4e38])
def test_direction_cosine_at_extreme_magnitudes(size):
    tree = {"a": jnp.full((3,), size, jnp.float32), "b": jnp.zeros(0)}
    other = {"a": jnp.array([1.0, 0.0, 0.0]), "b": jnp.zeros(0)}
    assert float(clipjax.direction_cosine(tree, tree)) == pytest.approx(1, rel=1e-6)
    found = float(clipjax.direction_cosine(tree, other))
    assert found == pytest.approx(3**-0.5, rel=1e-6)
    cosine = clipjax.quantization_report(tree, jnp.int8)["a"].cosine
    assert float(cosine) == pytest.approx(1, rel=1e-6)


def test_clip_by_value_turns_a_gaussian_by_a_known_angle():
    grads = jnp.asarray(np.random.default_rng(0).standard_normal(100_000), jnp.float32)
    updates, _ = clipjax.clip_by_value(1e-3).update(grads, None)
    found = float(clipjax.direction_cosine(grads, updates))
    # √(2/π), with the standard error of a mean of 100,000 half-normal entries.
    assert found == pytest.approx((2 / np.pi) ** 0.5, abs=4 * 0.6 / 100_000**0.5)


def test_nonfinite_path_of_another_tree_is_refused():
    clip = clipjax.clip_by_global_norm(1.0)
    grads = {"a": GRAD, "b": GRAD * jnp.nan}
    _, state = clip.update(grads, clip.init(grads))
    with pytest.raises(ValueError, match="tree has 1 of the 2 leaves"):
        clipjax.nonfinite_path(state, {"a": GRAD})


def test_project_onto_ball():
    shapes = {"a": (3,), "b": (2,)}
    one, other = (random_tree(seed, shapes, size=4.0) for seed in (0, 1))

    def distance(x, y):
        return norm(jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), x, y))

    for radius in (0.0, 0.5, 3.0, 10.0):
        near, far = (clipjax.project_onto_ball(tree, radius) for tree in (one, other))
        assert distance(near, far) <= distance(one, other) * (1 + 1e-6)
        assert norm(near) == pytest.approx(min(radius, 4.0), rel=1e-6)
    with pytest.raises(ValueError, match="-1"):
        clipjax.project_onto_ball(one, -1.0)


def test_nonfinite_path_inside_of_masked_and_multi_transform():
    """The clip sees some of the leaves only."""
    grads = {"a": jnp.ones(2), "b": jnp.array([jnp.nan])}
    clip = clipjax.clip_by_global_norm(1.0)
    mask = {"a": False, "b": True}
    labels = {"a": "skipped", "b": "clipped"}
    for optimizer in (
        optax.masked(clip, mask),
        optax.masked(clipjax.skip_nonfinite(optax.sgd(1.0)), mask),
        optax.multi_transform(
            {"clipped": clip, "skipped": clipjax.skip_nonfinite(optax.sgd(1.0))}, labels
        ),
    ):
        _, state = optimizer.update(grads, optimizer.init(grads), grads)
        assert clipjax.nonfinite_path(state, grads) == "b"


def test_a_name_that_is_taken_is_not_given_again():
    optimizer = optax.chain(
        clipjax.clip_by_global_norm(1.0, name="clip_2"),
        clipjax.clip_by_global_norm(2.0),
        clipjax.clip_by_global_norm(3.0),
    )
    grads = jnp.ones(2)
    _, state = optimizer.update(grads, optimizer.init(grads), grads)
    found = clipjax.metrics(state)
    names = ("clip_2", "clip", "clip_3")
    assert [float(found[f"{name}/threshold"]) for name in names] == [1, 2, 3]
