"""Known answers of the tasks with wrong examples, float16, epochs and batch norm."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from clipjax.demos import cli, compare, presets, run, summary, train
from clipjax.demos.models.mlp import MLP
from clipjax.demos.tasks import mnist, precision, robust
from clipjax.demos.tasks.build import build_task
from clipjax.demos.tasks.text import text_task


@pytest.fixture(scope="module", autouse=True)
def quick_generator():
    """The generator of random numbers that compiles fastest."""
    with jax.default_prng_impl("unsafe_rbg"):
        yield


def no_model(*unused):
    raise AssertionError("the data alone must not build a model")


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (10, 4), (7, 7)])
def test_an_epoch_visits_every_example_once(count, batch):
    key, epochs = jax.random.key(1), 6
    steps = epochs * count // batch
    assert epochs * count % batch == 0
    draw = functools.partial(mnist.epoch_batch, key, batch=batch, count=count)
    # Not vmap, under which this generator draws other numbers.
    stream = jax.jit(lambda: jax.lax.map(draw, jnp.arange(steps)))()
    orders = np.asarray(stream).reshape(epochs, count)
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(count), (6, 1)))
    assert len({tuple(order) for order in orders}) == epochs  # shuffled anew


def test_a_batch_larger_than_the_images_is_refused():
    with pytest.raises(ValueError, match="--batch 4001: expected at most the 4000"):
        mnist.epoch_batch(jax.random.key(0), 0, batch=4001, count=4000)


def test_epochs_set_the_steps():
    model = presets.MLP(depth=2, width=8, epochs=3)
    settings = dataclasses.replace(presets.PRESETS["mlp"], model=model)
    resolved, task = run.in_epochs(settings)
    assert task.steps_per_epoch == 4000 / 256
    assert resolved.steps == 47  # 3 * 15.625, rounded up
    kept, _ = run.in_epochs(presets.PRESETS["precision"])
    assert kept is presets.PRESETS["precision"]


def test_epochs_and_steps_together_are_a_mistake(here, capsys, monkeypatch):
    monkeypatch.setattr(train.Loop, "__init__", no_model)
    command = "compare --task mlp --epochs 2 --steps 30 --out new"
    assert cli.main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--epochs 2" in error and "--steps" in error
    assert not (here / "new").exists()


def test_perplexity_is_the_exponential_of_the_loss(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("abcdefgh" * 50)
    task = text_task(no_model, path=path, length=10)
    uniform = lambda tokens: jnp.zeros((*tokens.shape, 8))  # noqa: E731
    scores = task.evaluate(uniform, task.held_out)
    assert float(scores["perplexity"]) == pytest.approx(8, rel=1e-5)


def test_batch_norm_takes_the_statistics_of_the_batch_also_when_evaluated():
    @jax.jit
    def normalized(inputs):
        model = MLP(6, 3, depth=2, width=5, normalisation="batch", rngs=nnx.Rngs(0))
        return model.norms[0](model.hidden[0](inputs))

    inputs = 3.0 + 2.0 * jax.random.normal(jax.random.key(2), (64, 6))
    for given in (inputs, 10.0 * inputs):
        found = np.asarray(normalized(given))
        np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(found.var(axis=0), 1, atol=1e-3)


def test_batch_norm_trains_in_the_loop():
    model = presets.MLP(depth=3, width=8, batch=32, normalisation="batch")
    task = build_task(model)
    loop = train.Loop(
        task,
        compare.in_chain(NONE, optax.sgd).chain,
        steps=4,
        interval=4,
    )
    history = loop.run(0, learning_rate=0.1)
    assert np.isfinite(history.log["loss"]).all()
    assert np.isfinite(history.held_out["accuracy"])


(NONE,) = compare.read_clips(("none",))
(HARD,) = compare.read_clips(("clip_by_global_norm:0.5",))


def regression(**changed):
    return build_task(dataclasses.replace(presets.Outliers(), **changed))


def test_a_share_of_the_targets_is_shifted():
    key, truth = jax.random.key(3), None
    clean, shifted = (regression(kind=kind) for kind in ("none", "shift"))
    truth = clean.held_out
    inputs, targets = clean.sample(key, 0, truth)
    same, moved = shifted.sample(key, 5, truth)
    np.testing.assert_array_equal(inputs, same)
    np.testing.assert_allclose(moved[:20] - targets[:20], 20, rtol=1e-5)
    np.testing.assert_array_equal(moved[20:], targets[20:])
    residuals = np.asarray(targets - inputs @ truth)
    assert 0.08 < residuals.std() < 0.12


def test_a_clip_of_examples_bounds_what_one_outlier_does():
    """One example of m changes the gradient by at most 2 C / m, however wrong it is."""
    task = regression(examples=20)
    arm = task.places["per_example"](HARD, optax.sgd)
    weights = jnp.array([0.3, -1.0, 0.5, 0.0, 2.0])
    inputs, targets = task.sample(jax.random.key(0), 0, task.train)

    def loss(weights, batch):
        return robust.half_squares(lambda inputs: inputs @ weights[:, None], batch)

    clipped = jax.jit(lambda targets: arm.gradient(loss)(weights, (inputs, targets))[1])
    free = jax.jit(jax.grad(lambda w, targets: loss(w, (inputs, targets))))
    before, plain = clipped(targets), free(weights, targets)
    for error in (-1e4, 1e4):
        wrong = targets.at[7].set(error)
        moved = float(jnp.linalg.norm(clipped(wrong) - before))
        assert 0 < moved <= 2 * 0.5 / 20 * (1 + 1e-5)
        # Without a clip the same error moves the gradient in proportion.
        expected = float(jnp.linalg.norm(inputs[7]) * abs(error - targets[7]) / 20)
        assert float(jnp.linalg.norm(free(weights, wrong) - plain)) == pytest.approx(
            expected, rel=1e-3
        )


def test_each_clip_of_examples_acts_by_its_rule():
    """Of gradient norm n: n·C/(n + C) by the soft rule, C if hard or normalised."""
    task = regression(examples=20)
    soft, longer = compare.read_clips(
        ("soft_clip_by_global_norm:0.5", "normalise_by_global_norm:50")
    )
    weights = jnp.array([0.3, -1.0, 0.5, 0.0, 2.0])
    batch = task.sample(jax.random.key(0), 0, task.train)
    batch = jax.tree.map(lambda leaf: leaf[:1], batch)

    def loss(weights, batch):
        return robust.half_squares(lambda inputs: inputs @ weights[:, None], batch)

    @jax.jit
    def measured(weights, batch):
        lengths, clipped = [jnp.linalg.norm(jax.grad(loss)(weights, batch))], []
        for clip in (soft, HARD, longer):
            arm = task.places["per_example"](clip, optax.sgd)
            _, grads, log = arm.gradient(loss)(weights, batch)
            lengths.append(jnp.linalg.norm(grads))
            clipped.append(log["clipped_fraction"])
        return lengths, clipped

    (norm, *lengths), clipped = jax.device_get(measured(weights, batch))
    assert 0.5 < norm < 50
    assert lengths == pytest.approx([norm * 0.5 / (norm + 0.5), 0.5, 50], rel=1e-3)
    assert clipped == [1, 1, 1]  # also if it was lengthened


def test_the_regression_finds_the_truth_without_noise_in_the_targets(monkeypatch):
    monkeypatch.setattr(robust, "NOISE", 0.0)
    task = regression(kind="none")
    arm = compare.in_chain(NONE, optax.sgd)
    loop = train.Loop(task, arm.chain, steps=200, interval=200)
    assert loop.run(1, learning_rate=0.3).held_out[robust.DISTANCE] < 1e-5


def test_who_does_not_fit_wrong_examples_has_not_diverged():
    """The loss ends above its start, for the wrong examples are a part of it."""
    task = regression(kind="leverage", examples=50)
    (clip,) = compare.read_clips(("clip_by_global_norm:1",))
    arm = task.places["per_example"](clip, optax.sgd)
    loop = train.Loop(task, arm.chain, gradient=arm.gradient, steps=500, interval=500)
    runs = [loop.run(seed, learning_rate=0.05) for seed in range(3)]
    losses = np.stack([run.log["loss"] for run in runs])
    distances = np.array([run.held_out[robust.DISTANCE] for run in runs])
    higher = losses[:, -1] > losses[:, 0]
    assert higher.any() and (distances < 0.2).all()
    assert not summary.diverged(losses, must_fall=task.goal.must_fall).any()


def test_the_lowest_distance_is_the_best():
    task = regression()
    assert task.goal == (robust.DISTANCE, True, False)
    scores = task.evaluate(
        nnx.Linear(5, 1, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0)),
        task.held_out,
    )
    expected = jnp.linalg.norm(task.held_out)
    assert float(scores[robust.DISTANCE]) == pytest.approx(float(expected))


def test_the_asked_share_of_labels_is_wrong_and_held_out_ones_are_clean():
    task = robust.label_noise_task(no_model, noise=0.3)
    true_train, true_held_out = mnist.default_digits()
    wrong = np.asarray(task.train.labels) != true_train.labels
    assert wrong.sum() == 1200
    np.testing.assert_array_equal(task.held_out.truth, true_train.labels)
    np.testing.assert_array_equal(task.held_out.clean.labels, true_held_out.labels)
    np.testing.assert_array_equal(task.held_out.trained.labels, task.train.labels)
    assert set(np.unique(task.train.labels)) == set(range(10))
    # Each other class is as likely: 133 of 1,200 each, with a deviation of 11.
    offsets = (np.asarray(task.train.labels) - true_train.labels)[wrong] % 10
    counts = np.bincount(offsets, minlength=10)
    assert counts[0] == 0 and 90 < counts[1:].min() <= counts[1:].max() < 180


def test_what_was_learned_tells_right_from_wrong_labels():
    task = robust.label_noise_task(no_model, noise=0.25)
    assert task.goal == ("accuracy", False, False)
    judged = task.held_out

    def answers(labels):
        return lambda images: jax.nn.one_hot(labels, 10)

    # The scores of the clean images need logits of their number of images.
    outcome = task.picture.outcome
    memory = outcome(answers(judged.trained.labels), judged)
    assert [float(value) for value in memory.values()] == [1.0, 1.0]
    wise = outcome(answers(judged.truth), judged)
    assert float(wise["right labels learned"]) == 1.0
    assert float(wise["wrong labels learned"]) == 0.0


SMALL = presets.Precision(depth=2, width=16, batch=32)


@functools.cache
def small_network():
    """A loss of parameters and a batch, both, and the parameters as they begin."""
    task = build_task(SMALL)
    graph, params, rest = nnx.split(
        jax.jit(task.build)(jax.random.key(0)), nnx.Param, ...
    )
    images = mnist.to_pixels(task.train.images[:32])

    def loss(params, batch):
        return precision.narrow_loss(nnx.merge(graph, params, rest), batch)

    return loss, params, (images, task.train.labels[:32])


@functools.cache
def first_step(scale=None, is_clip_first=False):
    """The first update of SGD at 1; in float32 where there is no scale."""
    loss, params, batch = small_network()
    place = compare.in_chain
    if scale:
        place = precision.in_half(scale, is_clip_first=is_clip_first)
    arm = place(HARD, optax.sgd)
    optimizer = arm.chain(1.0)

    @jax.jit
    def update(params, batch):
        _, grads, _ = arm.gradient(loss)(params, batch)
        return optimizer.update(grads, optimizer.init(params), params)[0]

    leaves = jax.tree.leaves(update(params, batch))
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def test_the_right_order_does_not_depend_on_the_scale():
    one, other = first_step(256.0), first_step(4096.0)
    assert np.linalg.norm(one) == pytest.approx(0.5, rel=1e-5)
    # Powers of two scale exactly, but for what is subnormal in float16.
    assert np.linalg.norm(one - other) < 1e-4 * 0.5
    assert np.linalg.norm(one - first_step()) < 0.02 * 0.5


@pytest.mark.parametrize("scale", [256.0, 4096.0])
def test_the_wrong_order_divides_the_step_by_the_scale(scale):
    right, wrong = first_step(scale), first_step(scale, is_clip_first=True)
    assert np.linalg.norm(wrong) == pytest.approx(0.5 / scale, rel=1e-3)
    cosine = right @ wrong / np.linalg.norm(right) / np.linalg.norm(wrong)
    assert cosine > 0.999


def test_the_places_of_half_precision_have_both_orders_and_two_scales(monkeypatch):
    calls = []

    def in_half(scale, *, is_clip_first=False):
        calls.append((scale, is_clip_first))

    monkeypatch.setattr(precision, "in_half", in_half)
    places = precision.precision_task(no_model, scale=8.0).places
    assert calls == [(8.0, False), (8.0, True), (128.0, False), (128.0, True)]
    assert set(places) == {"", *presets.Precision.places}


def test_float16_loses_small_and_large_gradients():
    task = build_task(SMALL)
    lost = np.asarray(
        jax.jit(
            lambda: precision.lost_entries(task.build(jax.random.key(0)), task.held_out)
        )()["lost"]
    )
    powers = np.array(precision.POWERS)
    assert lost.shape == powers.shape and not lost.max() > 1
    assert lost[powers == 8] < 0.02  # a window in which all entries fit
    assert lost[powers == -16] > 0.1 and lost[powers == 32] > 0.1
