"""Games of two players: each has its own gradient, clip and limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipjax.demos import presets
from clipjax.demos.compare import build_arms
from clipjax.demos.options import NotNegative, read
from clipjax.demos.tasks.build import build_task
from clipjax.demos.tasks.critic import slope_penalty, slopes
from clipjax.demos.tasks.players import PLAYERS
from clipjax.demos.tasks.ring import Ring
from clipjax.demos.train import begin, make_step

RING = presets.Ring(width=8, batch=16)
CRITIC = presets.Critic(width=8, batch=16)
RATE, STEPS = 0.1, 12


@functools.cache
def started(model):
    task = build_task(model)
    return task, begin(task, seed=0)


@functools.cache
def train(model, spec, optimizer="sgd"):
    """Parameters by player before each step, and the log of each step."""
    task, start = started(model)
    settings = presets.Settings("", model, optimizer=optimizer, clips=(spec,))
    (arm,) = build_arms(settings, task).values()

    def run():
        chain = arm.chain(RATE)
        step = make_step(task, chain, start.static, learning_rate=RATE)

        def advance(carry, index):
            after, log = step(carry, task.train, start.batches, index)
            return after, (carry[0], log)

        carry = (start.params, chain.init(start.params))
        return jax.lax.scan(advance, carry, jnp.arange(STEPS))[1]

    with jax.numpy_dtype_promotion("standard"):
        params, log = jax.jit(run)()
    return {player: flat(params[player]) for player in PLAYERS}, log


def flat(params):
    """All leaves as one array, `(steps, parameters)`."""
    leaves = jax.tree.leaves(params)
    return np.concatenate([np.reshape(leaf, (STEPS, -1)) for leaf in leaves], axis=1)


def own_loss(name, player, model, batch):
    """The loss of one player, without anything that is held fixed."""
    real, noise = batch[:2]
    fake = model.generate(noise)
    if name == "critic" and player == "generator":
        return -model.score(fake).mean()
    if name == "critic":
        between = batch[2] * real + (1 - batch[2]) * fake
        slope = jax.vmap(jax.grad(lambda point: model.score(point[None])[0]))(between)
        norms = jnp.sqrt(jnp.square(slope).sum(axis=1) + 1e-30)  # some slopes are 0
        penalty = jnp.square(norms - 1).mean()
        return (model.score(fake) - model.score(real)).mean() + 0.1 * penalty
    if player == "generator":
        return -jnp.log(jax.nn.sigmoid(model.score(fake))).mean()
    is_real, is_fake = (
        jax.nn.sigmoid(model.score(real)),
        jax.nn.sigmoid(model.score(fake)),
    )
    return -(jnp.log(is_real) + jnp.log(1 - is_fake)).mean()


@pytest.mark.parametrize(("name", "model"), [("ring", RING), ("critic", CRITIC)])
def test_the_gradient_of_each_player_is_that_of_its_own_loss(name, model):
    task, start = started(model)
    graph, rest = start.static
    batch = task.sample(start.batches, jnp.int32(0), task.train)

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(params, player):
        def loss(params):
            players = nnx.merge(graph, params, rest)
            if player is None:
                return task.loss(players, batch)
            return own_loss(name, player, players, batch)

        return jax.grad(loss)(params)

    whole = gradient(start.params, None)
    for player in PLAYERS:
        expected = jax.tree.leaves(gradient(start.params, player)[player])
        assert any(np.any(leaf != 0) for leaf in expected)
        got = jax.tree.leaves(whole[player])
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("clipped", "other"), [PLAYERS, PLAYERS[::-1]], ids=lambda name: name
)
def test_a_clip_of_one_player_leaves_the_other_alone(clipped, other):
    free, _ = train(RING, "none")
    with_clip, log = train(RING, f"{clipped}@clip_by_global_norm:0.01")
    np.testing.assert_array_equal(with_clip[other][1], free[other][1])
    step, whole = (np.diff(run[clipped][:2], axis=0) for run in (with_clip, free))
    assert np.linalg.norm(step) == pytest.approx(0.01 * RATE, rel=1e-3)
    assert log["grad_norm_raw"][0] == pytest.approx(
        np.linalg.norm(whole) / RATE, rel=1e-3
    )
    # Each player is the other's environment: from the second step on all differ.
    assert np.any(with_clip[other][-1] != free[other][-1])


def test_both_players_are_clipped_by_their_own_norms():
    params, log = train(RING, "both@clip_by_global_norm:0.01")
    for player in PLAYERS:
        lengths = np.linalg.norm(np.diff(params[player], axis=0), axis=1)
        np.testing.assert_allclose(lengths, 0.01 * RATE, rtol=1e-2)
    np.testing.assert_allclose(log["threshold"], 0.01, rtol=1e-6)
    for model in (RING, CRITIC):  # so it is without a place
        places = started(model)[0].places
        assert places[""] is places["both"]


def test_the_limit_on_weights_holds_and_concerns_the_critic_alone():
    limited = presets.Critic(width=8, batch=16, weight_clip=0.05, penalty=0.0)
    params, _ = train(limited, "none")
    assert np.abs(params["discriminator"][0]).max() > 0.5
    assert np.abs(params["discriminator"][1:]).max() <= 0.05 * (1 + 1e-6)
    assert np.abs(params["discriminator"][1:]).max() >= 0.05 * (1 - 1e-6)
    assert np.abs(params["generator"]).max() > 0.5


def test_the_generator_moves_at_the_last_of_every_five_steps():
    params, _ = train(CRITIC, "none", "adam")
    moved = {player: np.diff(params[player], axis=0).any(axis=1) for player in PLAYERS}
    np.testing.assert_array_equal(np.flatnonzero(moved["generator"]), [4, 9])
    assert moved["discriminator"].all()
    # Adam's first step is one of the learning rate in every coordinate: the bias
    # correction of the generator counts its own steps.
    first = np.abs(params["generator"][5] - params["generator"][4])
    assert first.max() == pytest.approx(RATE, rel=1e-4)


def test_slopes_and_penalty_of_known_scores():
    points = jax.random.normal(jax.random.key(0), (50, 2))
    unit = jnp.array([0.6, -0.8])
    assert float(slope_penalty(lambda at: at @ unit, points)) < 1e-12
    assert float(slope_penalty(lambda at: at @ (3 * unit), points)) == pytest.approx(4)
    squares = slopes(lambda at: jnp.square(at).sum(axis=1), points)
    np.testing.assert_allclose(squares, 2 * np.linalg.norm(points, axis=1), rtol=1e-5)
    # A score without any slope is penalized by 1, and its gradient is no NaN.
    value, gradient = jax.value_and_grad(
        lambda weights: slope_penalty(lambda at: at @ weights, points)
    )(jnp.zeros(2))
    assert value == 1 and np.isfinite(gradient).all()


def test_coverage_of_points_made_by_hand():
    ring = Ring(radius=2.0, deviation=0.1)
    centers = ring.centers
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 2, rtol=1e-6)

    def scored(points):
        scores = ring.coverage(jnp.asarray(points, jnp.float32))
        return float(scores["modes covered"]), float(scores["quality"])

    assert scored(np.repeat(centers, 5, axis=0)) == (8, 1)
    assert scored(np.repeat(centers[:1], 40, axis=0)) == (1, 1)
    assert scored(np.concatenate([centers[:3], np.zeros((3, 2))])) == (3, 0.5)
    assert scored(centers * 1.149) == (8, 1)  # 0.298 away
    assert scored(centers * 1.151) == (0, 0)  # 0.302 away
    assert scored(np.full((10, 2), np.nan)) == (0, 0)
    # Two points of a hundred cover a mode, one does not.
    points = np.concatenate([centers[[0] * 97], centers[[1] * 2], centers[[2]]])
    assert scored(points) == (2, 1)
    drawn = scored(ring.draw(jax.random.key(0), 4000))
    assert drawn[0] == 8
    assert drawn[1] == pytest.approx(1 - np.exp(-4.5), abs=0.006)


@pytest.mark.parametrize("name", ["ring", "critic"])
def test_the_presets_name_places_that_there_are(name):
    settings = presets.PRESETS[name]
    task, _ = started({"ring": RING, "critic": CRITIC}[name])
    assert list(build_arms(settings, task)) == list(settings.clips)
    assert set(task.places) == {"", *settings.model.places}
    scores = task.evaluate(task.build(jax.random.key(0)), task.held_out)
    assert task.goal.name in scores


def test_zero_turns_a_switch_off():
    kind = NotNegative()
    assert read(kind, "0") == 0 and read(kind, "2.5") == 2.5
    for text in ("-1", "nan", "inf", "none"):
        with pytest.raises(ValueError, match="0 or a finite number above 0"):
            read(kind, text)
    assert presets.Critic(penalty=0).penalty == 0
    with pytest.raises(ValueError, match="--weight-clip -1"):
        presets.Critic(weight_clip=-1)
