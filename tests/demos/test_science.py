"""Potential, diffusion and flow: properties with known answers."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import clipjax
from clipjax.demos import arms, compare, presets, train
from clipjax.demos.models.flow import Flow
from clipjax.demos.models.potential import forces
from clipjax.demos.probes import potential_regions
from clipjax.demos.tasks import diffusion, flow, potential
from clipjax.demos.tasks.build import build_task


@pytest.fixture(scope="module", autouse=True)
def quick_generator():
    """The generator of random numbers that compiles fastest."""
    with jax.default_prng_impl("unsafe_rbg"):
        yield


def test_the_lennard_jones_potential():
    minimum = jnp.array([2 ** (1 / 6)])
    np.testing.assert_allclose(potential.energies(minimum), -1, rtol=1e-6)
    np.testing.assert_allclose(forces(potential.energies, minimum), 0, atol=1e-4)
    # At r = 1 the energy is 0, and the force 24 pushes apart.
    np.testing.assert_allclose(potential.energies(jnp.ones(1)), 0, atol=1e-6)
    np.testing.assert_allclose(forces(potential.energies, jnp.ones(1)), 24, rtol=1e-6)


def test_a_perfect_potential_has_no_error_and_no_loss():
    held_out = potential.regions()

    @jax.jit
    def perfect():
        pairs = potential.draw_pairs(jax.random.key(0), 64, 0.5)
        return (
            potential.pair_loss(potential.energies, pairs),
            potential.force_errors(potential.energies, held_out),
        )

    loss, errors = perfect()
    assert float(loss) == 0
    assert {name: float(error) for name, error in errors.items()} == {
        "F-rmse main": 0,
        "F-rmse wall": 0,
    }
    # Without forces, the error is the size of the true forces.
    errors = potential.force_errors(jnp.zeros_like, held_out)
    wall = forces(potential.energies, held_out.wall)
    expected = float(jnp.sqrt(jnp.mean(wall**2)))
    assert float(errors["F-rmse wall"]) == pytest.approx(expected, rel=1e-5)
    assert expected > 100 * float(errors["F-rmse main"])


def test_close_contacts_are_as_many_as_asked_for():
    pairs = np.asarray(potential.draw_pairs(jax.random.key(1), 20_000, 0.02))
    in_wall = (pairs >= potential.WALL[0]) & (pairs <= potential.WALL[1])
    assert in_wall.mean() == pytest.approx(0.02, abs=0.004)
    rest = pairs[~in_wall]
    assert potential.NEAREST <= rest.min() and rest.max() <= potential.MAIN[1]


def test_the_flow_preserves_volume_and_is_invertible():
    points = jax.random.normal(jax.random.key(0), (32, 2))

    @jax.jit
    def both_ways():
        model = Flow(layers=4, width=8, rngs=nnx.Rngs(0))
        for index, coupling in enumerate(model.couplings):
            key = jax.random.key(index)
            coupling.readout.kernel[...] = jax.random.normal(key, (8, 1))
        model.log_stretch[...] = jnp.log(jnp.float32(10))
        latents = jax.vmap(model)(points)
        jacobians = jax.vmap(jax.jacobian(model))(points)
        return latents, jax.vmap(model.inverse)(latents), jacobians

    latents, back, jacobians = both_ways()
    assert float(jnp.abs(latents - points).max()) > 5
    np.testing.assert_allclose(back, points, rtol=1e-4, atol=1e-4)
    jacobians = np.asarray(jacobians, np.float64)
    np.testing.assert_allclose(np.linalg.det(jacobians), 1, rtol=1e-4)
    assert np.linalg.norm(jacobians, 2, axis=(1, 2)).min() > 5


def test_the_density_of_the_flow_integrates_to_one():
    axis = jnp.linspace(-12, 12, 241)

    @jax.jit
    def densities():
        model = Flow(layers=2, width=8, rngs=nnx.Rngs(0))
        model.couplings[0].readout.kernel[...] = jnp.ones((8, 1))
        grid = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
        return jnp.exp(jax.vmap(model.log_density)(grid))

    density = densities()
    cell = float(axis[1] - axis[0]) ** 2
    assert float(density.sum()) * cell == pytest.approx(1, rel=1e-3)


class Perfect:
    """The map behind the data of the flow, the other way round."""

    def __init__(self, stretch, bend):
        self.stretch, self.bend = stretch, bend

    def __call__(self, point):
        along = point[0] / self.stretch
        across = self.stretch * (point[1] - self.bend * (along**2 - 1))
        return jnp.stack([along, across])

    def log_density(self, point):
        return jax.scipy.stats.norm.logpdf(self(point)).sum()


def test_a_perfect_flow_reaches_the_entropy_of_the_normal_distribution():
    task = build_task(presets.Flow(stretch=5.0, bend=2.0))
    scores = jax.jit(lambda data: flow.evaluate(Perfect(5.0, 2.0), data))(task.held_out)
    # 1,024 points: the mean log density has a standard error of 1/sqrt(1024) = 0.03.
    assert float(scores["held-out NLL"]) == pytest.approx(flow.LOWEST, abs=0.1)
    assert math.isclose(flow.LOWEST, 2.8379, abs_tol=1e-4)
    assert float(scores["determinant"]) == pytest.approx(1, rel=1e-4)
    assert float(scores["Jacobian norm"]) > 5


def test_energy_distance_is_zero_for_equal_sets_alone():
    points = jax.random.normal(jax.random.key(0), (40, 2))
    assert float(diffusion.energy_distance(points, points[::-1])) == pytest.approx(
        0, abs=1e-6
    )
    # Of two single points it is twice their distance.
    one, other = jnp.zeros((1, 2)), jnp.array([[3.0, 4.0]])
    assert float(diffusion.energy_distance(one, other)) == pytest.approx(10)


def test_the_sampler_returns_what_a_perfect_denoiser_knows():
    """Where all data are one point, the best prediction is that point."""
    point = jnp.array([0.5, -2.0])

    def denoiser(noisy, time):
        return jnp.broadcast_to(point, noisy.shape)

    start = jax.random.normal(jax.random.key(0), (5, 2))
    found = diffusion.sampled(denoiser, start)
    np.testing.assert_allclose(found, jnp.broadcast_to(point, (5, 2)), atol=1e-5)


def test_weights_of_the_noise_levels():
    kept = np.asarray(diffusion.kept(), np.float64)
    ratio = kept / (1 - kept)
    assert (np.diff(kept) < 0).all() and kept[-1] < 1e-4
    np.testing.assert_allclose(diffusion.weights("snr"), ratio, rtol=1e-3)
    np.testing.assert_array_equal(diffusion.weights("none"), 1)
    # The weights of the bound are differences: they add up to the whole fall.
    bound = np.asarray(diffusion.weights("vlb"), np.float64)
    assert bound[1:].sum() == pytest.approx((ratio[0] - ratio[-1]) / 2, rel=1e-3)


def test_weighted_by_snr_the_loss_is_the_error_of_the_predicted_noise():
    task = build_task(presets.Diffusion(batch=64))

    @jax.jit
    def both():
        batch = task.sample(jax.random.key(0), 0, task.train)
        clean = jax.random.normal(jax.random.key(2), (64, 2))
        signal = diffusion.kept()[batch.level, None]
        rest = diffusion.add_noise(batch) - jnp.sqrt(signal) * clean
        noise = rest / jnp.sqrt(1 - signal)
        loss = diffusion.denoising_loss(lambda noisy, time: clean, batch)
        return loss, jnp.mean(jnp.sum((noise - batch.noise) ** 2, axis=1))

    loss, expected = both()
    assert float(loss) == pytest.approx(float(expected), rel=1e-3)


LIMIT = 0.5


@functools.cache
def diffusion_gradients():
    """One batch, and the gradients of the arms at the initial parameters."""
    task = build_task(presets.Diffusion(width=16, batch=32))
    (graph, rest), params, key = train.begin(task, 0)
    batch = task.sample(key, 0, task.train)

    def loss(params, batch):
        return task.loss(nnx.merge(graph, params, rest), batch)

    found = {}
    for place in ("per_example", "time", "time_weighted"):
        spec = f"{place}@clip_by_global_norm:{LIMIT}"
        (call,) = arms.read_clips((spec,), presets.Diffusion.places)
        arm = task.places[place](call, arms.read_optimizer("sgd"))
        found[place] = jax.jit(arm.gradient(loss))(params, batch)
    norms_of = jax.jit(clipjax.per_example_grad_norms(loss))
    bare = batch._replace(weight=jnp.ones_like(batch.weight))
    norms = [np.asarray(norms_of(params, each)) for each in (batch, bare)]
    return batch, found, *norms


def test_a_threshold_of_time_equals_a_constant_one_after_the_weight():
    batch, found, norms, _ = diffusion_gradients()
    assert (norms > LIMIT).any() and (norms < LIMIT).any()
    (loss, grads, _), (other_loss, others, _) = found["per_example"], found["time"]
    assert float(loss) == pytest.approx(float(other_loss), rel=1e-5)
    # An example is clipped by a bound of its norm, so that it is up to 1e-4 shorter.
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    assert float(batch.weight.max() / batch.weight.min()) > 1000


def test_norms_before_and_after_by_noise_level():
    """Before, they grow with the weight; after, none is above the threshold."""
    batch, _, norms, bare = diffusion_gradients()
    weight = np.asarray(batch.weight)
    np.testing.assert_allclose(norms, weight * bare, rtol=1e-3)
    assert np.corrcoef(np.log(weight), np.log(norms))[0, 1] > 0.9
    after = weight * np.minimum(bare, LIMIT / weight)
    np.testing.assert_allclose(after, np.minimum(norms, LIMIT), rtol=1e-3)


def test_the_threshold_of_time_after_the_weight_shrinks_twice():
    batch, found, norms, _ = diffusion_gradients()
    seen = found["time_weighted"][2]
    weight = np.asarray(batch.weight)
    lengths = np.minimum(norms, LIMIT / weight)
    assert float(seen["grad_norm_clipped"]) == pytest.approx(lengths.mean(), rel=1e-3)
    # An example of weight v contributes C/v, of little noise a thousandth of C.
    assert lengths.min() < 0.01 * LIMIT < LIMIT < lengths.max()


def test_a_threshold_of_time_must_be_finite():
    (call,) = arms.read_clips(("time@none",), presets.Diffusion.places)
    with pytest.raises(ValueError, match="accepted: a finite one"):
        diffusion.with_threshold_of_time(call, arms.read_optimizer("sgd"))


SMALL = {
    "potential": presets.Potential(width=8, batch=8),
    "diffusion": presets.Diffusion(width=8, batch=8),
    "flow": presets.Flow(width=4, layers=2, batch=8),
}
FIRST = {
    "potential": "F-rmse main",
    "diffusion": "held-out loss",
    "flow": "held-out NLL",
}


@pytest.mark.parametrize("name", SMALL)
def test_a_task_trains_scores_and_draws(name):
    model = SMALL[name]
    task = build_task(model)
    assert set(task.places) == set(model.places)
    settings = dataclasses.replace(presets.PRESETS[name], model=model, optimizer="sgd")
    by_label = compare.build_arms(settings, task)
    assert len(by_label) == len(settings.clips)
    loop = train.Loop(task, by_label["none"].chain, steps=2, interval=2)
    history = loop.run(0, learning_rate=1e-4)
    # The first score is drawn along training: it must stay the first.
    assert next(iter(history.scores)) == FIRST[name]
    assert all(np.isfinite(row).all() for row in history.scores.values())
    assert task.picture is not None
    outcome = {key: values[None] for key, values in history.outcome.items()}
    figure = task.picture.draw({"none": outcome, "clip": outcome})
    assert len(figure.axes) == 2


def test_options_of_the_potential():
    with pytest.raises(ValueError, match="--contacts 1.5: expected at most 1"):
        presets.Potential(contacts=1.5)


def test_best_rate_is_the_lowest_at_which_no_seed_diverged():
    errors = np.array([[[3.0, 1.0, 2.0]], [[3.0, np.nan, 2.0]]])
    assert potential_regions.best_rates(errors).tolist() == [2]
    with pytest.raises(ValueError, match="steps must be a whole number from 1.*got 0"):
        potential_regions.measure(steps=0)


def test_findings_of_the_potential_follow_the_numbers():
    rates = np.array([1e-4, 1e-3])
    main, wall = np.full((2, 1, 6, 2), 700.0)
    main[0, 0], main[0, 4] = (2.0, 5.0), (4.0, 0.5)
    wall[0, 0] = 100.0, 799.0

    def said():
        measured = potential_regions.Measured(
            rates, np.ones((1, 4)), np.ones((1, 6)), main, wall
        )
        return " ".join(potential_regions.report(measured).findings)

    assert "q50, one of 0.5, 4.0 times smaller" in said()
    assert "The wall pays for it: its error is 700 against 100" in said()
    assert "No threshold and rate is best for both regions." in said()
    assert "a constant energy (799) at 0.001." in said()
    wall[0, 4, 1] = 50.0
    assert "smaller there, too: 50 against 100" in said()
    assert "pays" not in said() and "best for both" not in said()
