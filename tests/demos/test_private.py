"""Private training: its promise, what it is made of, and going on after a kill."""

import base64
import functools
import json
import re
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from clipjax import __main__, privacy
from clipjax.demos import cli
from clipjax.demos.private import command, report, train
from clipjax.demos.private.mechanism import Mechanism
from clipjax.demos.private.report import FIGURES, FILES
from clipjax.demos.private.settings import Private, rules_by_name
from clipjax.demos.tasks.base import cross_entropy
from clipjax.demos.tasks.mnist import Digits, to_pixels

IMAGES, BATCH, STEPS = 60, 20, 7
TINY = ["private", "--model", "mlp", "--width", "4", "--batch", f"{BATCH}"]
TINY += ["--physical", "8", "--accountant", "rdp", "--steps", f"{STEPS}"]
TWO = ["--epsilon", "1,8", "--seeds", "2"]
MADE: dict[str, Mechanism] = {}


class Killed(BaseException):
    """Nothing may catch it and write a file, as nothing can after SIGKILL."""


def digits(seed, count):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 784), np.uint8)
    return Digits(images, random.integers(0, 10, count, np.int32))


def made(settings, *data):
    """One compiled mechanism for all runs, that for the learning rate of `TINY`.

    Runs with fewer steps, or that are refused, need no other.
    """
    if settings.batch > IMAGES or settings.optimizer not in MADE:
        MADE[settings.optimizer] = Mechanism(settings, *data)
    return MADE[settings.optimizer]


@pytest.fixture(scope="module", autouse=True)
def small():
    """Few images, and a generator of random numbers that compiles fast."""
    with jax.default_prng_impl("rbg"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            command, "default_digits", lambda: (digits(0, IMAGES), digits(1, 9))
        )
        patch.setattr(command, "Mechanism", made)
        once = functools.cache(privacy.noise_multiplier)
        patch.setattr(privacy, "noise_multiplier", once)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing interrupts."""
    out = tmp_path_factory.mktemp("private") / "out"
    assert cli.main([*TINY, *TWO, "--out", str(out)]) == 0
    return out


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Figures are looked at where nothing interrupts, whose report is made before."""
    monkeypatch.setattr(report, "_figures", no_figures)


def no_figures(results):
    return dict.fromkeys(FIGURES, bytes(24))  # as long as a header


def results_of(out):
    return json.loads((out / "results.json").read_text())


def arrays_of(out):
    """The arrays of all runs, by file."""
    return {path.name: dict(np.load(path)) for path in (out / "runs").glob("*.npz")}


def assert_same_runs(out, other):
    one, two = arrays_of(out), arrays_of(other)
    assert one.keys() == two.keys()
    for name, arrays in one.items():
        assert arrays.keys() == two[name].keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, two[name][key], f"{name} {key}")


def tree(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_the_promise_is_that_of_the_accountant(finished):
    runs = results_of(finished)["runs"]
    assert list(runs) == ["plain", "clip alone", "epsilon 1", "epsilon 8"]
    for target in (1, 8):
        run = runs[f"epsilon {target}"]
        spent = privacy.epsilon(
            run["noise_multiplier"], 1e-5, BATCH / IMAGES, STEPS, accountant="rdp"
        )
        assert run["guarantee"]["epsilon"] == spent
        assert 0.99 * target < spent <= target
        assert run["guarantee"]["delta"] == 1e-5
        assert "adding or removing one example" in run["statement"]
        along = run["along_training"]
        assert along["step"] == [[3, 6, 7]] * 2
        assert along["epsilon"][0] == along["epsilon"][1]
        assert along["epsilon"][0][-1] == spent
        assert along["epsilon"][0] == sorted(along["epsilon"][0])
    for name in ("plain", "clip alone"):
        assert runs[name]["guarantee"] is None and runs[name]["noise_multiplier"] == 0


def test_what_tells_about_single_images_is_marked(finished):
    for run in results_of(finished)["runs"].values():
        assert set(run["not_private"]) == set(train.NOT_PRIVATE)
        assert np.shape(run["not_private"]["loss"]) == (2, STEPS)
        assert not set(run["along_training"]) & set(train.NOT_PRIVATE)


def test_runs_of_one_seed_share_what_they_begin_with_and_their_batches(finished):
    runs = results_of(finished)["runs"].values()
    losses = np.array([run["not_private"]["loss"] for run in runs])
    assert np.ptp(losses[:, :, 0], axis=0) == pytest.approx([0, 0], abs=1e-6)
    assert (np.ptp(losses[:, :, 1:], axis=0) > 1e-6).all()


def test_report_begins_with_the_promise_and_stands_alone(finished):
    assert set(FILES) < set(tree(finished))
    page = (finished / "report.html").read_text()
    assert not re.search(r'src="(?!data:)', page)
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    for name, image in zip(FIGURES, images, strict=True):
        assert base64.b64decode(image) == (finished / f"{name}.png").read_bytes()
    assert re.search(
        r'verdict">\n<p>Accuracy 0\.\d{3} at ε = [^<]+ \(δ = [^<]+\), against', page
    )
    promised = page.index("-differential privacy for adding or removing one example")
    assert promised < page.index("<table>") < page.index("What is not promised")
    assert "above threshold (not private)" in page and "they are not private" in page
    assert "is not below 1/" not in page


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """The results of one step, and what it adds to the parameters by file."""
    out = tmp_path_factory.mktemp("one") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_figures", no_figures)
        assert cli.main([*TINY[:-1], "1", "--epsilon", "1,8", "--out", str(out)]) == 0
    # Before the states come the parameters of two layers, a bias and a matrix of each.
    params = {
        name: np.concatenate([arrays[f"tree/{at}"].ravel() for at in range(4)])
        for name, arrays in arrays_of(out).items()
    }
    initial = ravel_pytree(initial_params()[1])[0]
    return results_of(out), {name: row - initial for name, row in params.items()}


def initial_params():
    """The model, with parameters of seed 0, taken apart."""
    weights, _, _ = train.Trainer.keys(train.Arm(train.PLAIN), 0)
    return nnx.split(MADE["dp-sgd"]._model(weights), nnx.Param, ...)


def test_a_step_is_the_sum_of_its_sample_over_the_divisor(one_step):
    graph, params, rest = initial_params()
    _, key, _ = train.Trainer.keys(train.Arm(train.PLAIN), 0)
    sampler = privacy.PoissonSampler(IMAGES, BATCH / IMAGES, key=key, batch_size=8)
    sample = sampler.sample(0)
    data = digits(0, IMAGES)
    assert len(sample) % 8  # there is padding, which must not count

    def loss(params, image, label):
        model = nnx.merge(graph, params, rest)
        return cross_entropy(model, (image[None], label[None]))

    grads = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(
        params, to_pixels(data.images[sample]), jnp.asarray(data.labels[sample])
    )
    grads = np.asarray(jax.vmap(lambda tree: ravel_pytree(tree)[0])(grads))
    clipped = grads / np.maximum(1, np.linalg.norm(grads, axis=1, keepdims=True))
    for name, rate, rows in (("plain", 0.3, grads), ("clip-alone", 1.0, clipped)):
        moved = one_step[1][f"{name}-seed-0.npz"]
        expected = -rate * rows.sum(axis=0) / BATCH
        np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-6)


def test_the_noise_is_that_of_the_promise_and_differs_between_models(one_step):
    content, moved = one_step
    noises = []
    for label in ("epsilon 1", "epsilon 8"):
        noise = moved[f"{label.replace(' ', '-')}-seed-0.npz"]
        noise = noise - moved["clip-alone-seed-0.npz"]
        multiplier = content["runs"][label]["noise_multiplier"]
        # Threshold and learning rate are 1, and the divisor is the batch.
        noises.append(noise / (multiplier / BATCH))
        # Five standard deviations of an estimate from so many normal numbers.
        assert abs(noises[-1].std() - 1) < 5 / np.sqrt(2 * noise.size)
    assert abs(np.mean(noises[0] * noises[1])) < 5 / np.sqrt(noises[0].size)


@pytest.mark.parametrize(("at", "first"), [(3, 1), (5, 4)])
def test_a_killed_run_goes_on_with_the_same_noise(
    at, first, finished, here, monkeypatch
):
    """It goes on behind the last file, of step 3, or begins again without one."""
    measure, taken = train.Trainer._measure, []
    batches, sampled = privacy.PoissonSampler.batches, []

    def noted(self, run, *seen):
        measure(self, run, *seen)
        taken.append((run.name, run.step))

    def killed(self, run, *seen):
        if (run.name, run.step) == ("epsilon-1-seed-1", at):
            raise Killed
        measure(self, run, *seen)

    def sampling(self, step):
        sampled.append(step)
        return batches(self, step)

    command = [*TINY, *TWO, "--out", "new"]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train.Trainer, "_measure", killed)
        cli.main(command)
    monkeypatch.setattr(train.Trainer, "_measure", noted)
    monkeypatch.setattr(privacy.PoissonSampler, "batches", sampling)
    assert cli.main([*command, "--resume"]) == 0
    assert taken[0] == ("epsilon-1-seed-1", first)
    assert sampled == [*range(first - 1, STEPS), *range(STEPS), *range(STEPS)]
    others = {"epsilon-8-seed-0", "epsilon-8-seed-1"}
    assert {name for name, _ in taken} == {"epsilon-1-seed-1"} | others
    assert_same_runs(here / "new", finished)
    for label, run in results_of(finished)["runs"].items():
        resumed = results_of(here / "new")["runs"][label]
        for key in ("guarantee", "accuracy", "along_training", "not_private"):
            assert run[key] == resumed[key]


def test_ctrl_c_keeps_what_is_trained(finished, here, capsys, monkeypatch):
    finish = train.Trainer.finish

    def interrupted(self, run, watch):
        def pressed(run):
            if (run.name, run.step) == ("epsilon-8-seed-0", 4):
                signal.raise_signal(signal.SIGINT)
            watch(run)

        finish(self, run, pressed)

    command = [*TINY, *TWO, "--out", "new"]
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "finish", interrupted)
        assert cli.main(command) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"{' '.join(['clipjax', *command])} --resume")
    assert not (here / "new" / "report.html").exists()
    assert len(arrays_of(here / "new")["epsilon-8-seed-0.npz"]["curve/loss"]) == 4
    assert cli.main([*command, "--resume"]) == 0
    assert_same_runs(here / "new", finished)
    progress = capsys.readouterr().err
    assert "not private: loss" in progress and "ε so far" in progress


def test_other_settings_and_other_files_are_refused(here, capsys):
    command = [*TINY, "--epsilon", "8", "--out", "new"]
    assert cli.main([*command, "--resume"]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert not (here / "new").exists()
    assert cli.main(command) == 0
    before = arrays_of(here / "new")
    capsys.readouterr()
    for other, named in (
        (["--lr", "0.25"], "lr was 1.0"),
        (["--delta", "1e-6"], "delta was 1e-05"),
    ):
        assert cli.main([*command, "--resume", *other]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("clipjax: error: --resume: ") and named in error
    # Another model may be added, and those that are there are kept.
    assert cli.main([*command, "--epsilon", "1,8", "--resume"]) == 0
    after = arrays_of(here / "new")
    assert after.keys() - before.keys() == {"epsilon-1-seed-0.npz"}
    capsys.readouterr()
    (here / "new" / "runs" / "plain-seed-0.npz").write_bytes(b"PK damaged")
    assert cli.main([*command, "--resume"]) == 2
    assert "is no run of this command" in capsys.readouterr().err.splitlines()[-1]


REFUSED = {
    "epsilon 0": ("--epsilon 0", ["--epsilon", "above 0"]),
    "epsilon negative": ("--epsilon=-1", ["--epsilon", "above 0"]),
    "epsilon nan": ("--epsilon 1,nan", ["--epsilon", "'1,nan'"]),
    "delta 0": ("--delta 0", ["--delta", "above 0 and below 1"]),
    "delta 1": ("--delta 1", ["--delta", "above 0 and below 1"]),
    "delta negative": ("--delta=-1e-5", ["--delta", "'-1e-5'"]),
    "batch": ("--batch 61", ["--batch 61", "at most the 60 images"]),
    "batch 0": ("--batch 0", ["--batch", "whole number"]),
    "steps 0": ("--steps 0", ["--steps", "whole number"]),
    "lr 0": ("--lr 0", ["--lr", "above 0"]),
    "lr negative": ("--lr=-1", ["--lr", "above 0"]),
    "clip 0": ("--clip 0", ["--clip", "above 0"]),
    "rule": ("--rule foo", ["unknown rule 'foo'", "hard", "skip"]),
    "near rule": ("--rule hrad", ["did you mean 'hard'?"]),
    "unbounded rule": ("--rule floored:0.5", ["'floored:0.5'", "does not bound"]),
    "rule with too much": ("--rule hard:3", ["'hard:3'"]),
    "relation": ("--relation REPLACE", ["--relation", "REPLACE_ONE"]),
    "accountant": ("--accountant gdp", ["--accountant", "pld, rdp"]),
    "no accountant": ("--relation REPLACE_ONE", ["REPLACE_ONE", "pld"]),
    "optimizer": ("--optimizer sgd", ["--optimizer", "dp-sgd"]),
    "epochs and steps": ("--epochs 2", ["--epochs 2", "--steps"]),
    "missing MNIST": ("--mnist nowhere", ["nowhere", "train-images"]),
    "out": ("--out taken", ["report.html"]),
    "out is a file": ("--out file", ["--out 'file'", "not a directory"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_one_line_before_anything_is_trained(
    case, here, capsys, monkeypatch
):
    def no_training(*unused):
        raise AssertionError("training began")

    monkeypatch.setattr(train.Trainer, "train", no_training)
    before = tree(here)
    options, named = REFUSED[case]
    out = [] if "--out" in options else ["--out", "new"]
    assert cli.main([*TINY, *out, *options.split()]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    error = shown.err.splitlines()[-1]
    assert error.startswith("clipjax: error: ")
    for name in named:
        assert name in error
    assert tree(here) == before


def test_the_extra_that_computes_epsilon_is_named(here, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, command.__name__)
    monkeypatch.delattr(sys.modules["clipjax.demos.private"], "command")
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    assert __main__.run([*TINY, "--out", "new"]) == 2
    error = capsys.readouterr().err
    assert "dp_accounting is missing: pip install 'clipjax[demos]'" in error
    assert error.count("\n") == 1


def test_settings_follow_the_optimizer_and_the_data():
    assert (Private().lr, Private().plain_lr) == (1.0, 0.3)
    assert Private(epochs=3).planned_steps(4000) == 24
    assert Private(steps=5).planned_steps(4000) == 5
    assert Private().batch_in_memory(4000) == 584  # 500 + 4 √(500 · 7/8)
    assert Private().batch_in_memory(500) == 500
    assert "hard" in rules_by_name() and "ratio" not in rules_by_name()


def test_dp_adam_trains_and_a_large_delta_is_named(here, capsys):
    options = ["--optimizer", "dp-adam", "--epsilon", "8", "--delta", "0.05"]
    with jax.numpy_dtype_promotion("standard"):
        assert cli.main([*TINY, *options, "--out", "new"]) == 0
    assert results_of(here / "new")["settings"]["lr"] == 3e-3
    assert "δ = 0.05 is not below 1/60" in " ".join(capsys.readouterr().out.split())
    assert "is not below 1/60" in (here / "new" / "report.html").read_text()
