"""The sensitivity of clipped sums: attained, and never exceeded, on pairs of batches.

The loss has the gradient (x ⊗ d, d, e), so that examples of any norm and direction, and
their opposites, are data. All clips are compiled in one program. That no example adds
more than C where its terms cancel is for `test_ghost_bound.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import clipjax
from clipjax import privacy, rules, thresholds
from clipjax.per_example.relations import CHANGES

EXAMPLES, CHANGED = 4, 1
PARAMS = {
    "w": np.zeros((4, 3), "f4"),
    "b": np.zeros((1, 3), "f4"),
    "v": np.zeros(2, "f4"),
}
SHAPES = {"x": (1, 4), "d": (1, 3), "e": (1, 2)}
PREFIX = {"w": 0.6, "b": 0.0, "v": 0.8}  # whose squares add up to 1


def loss(params, example):
    x, d, e = (example[name][0] for name in SHAPES)
    return jnp.sum((x @ params["w"] + params["b"]) * d) + jnp.sum(params["v"] * e[0])


def two_groups(name, leaf):
    return "second" if name == "v" else "first"


def split(**options):
    return lambda limit: {
        "l2_clip_norm": privacy.split_threshold(limit, PARAMS, **options)
    }


def by_prefix(limit):
    return {"l2_clip_norm": {name: share * limit for name, share in PREFIX.items()}}


def rescaled(thresholds=lambda limit: {"l2_clip_norm": limit}, **options):
    return lambda limit: thresholds(limit) | {"rescale_to_unit_norm": True} | options


RULES = {
    "hard": rules.hard,
    "epsilon": rules.Hard(epsilon=1e-6),
    "soft": rules.soft,
    "tanh": rules.tanh,
    "sqrt": rules.sqrt,
    "normalise": rules.normalise,
    "band": rules.band(),
    "skip": rules.skip,
    "automatic": rules.automatic(),
    "psac": rules.psac(),
    "global_adapt": rules.global_adapt(50.0),
}
# By name: a function of the threshold that gives the arguments of `clipped_grad`.
CLIPS = {
    name: lambda limit, rule=rule: {"l2_clip_norm": limit, "rule": rule}
    for name, rule in RULES.items()
}
LAYERS = {
    "uniform": split(),
    "dimension": split(by="dimension"),
    "groups": split(groups=two_groups),
    "prefix": by_prefix,
}
CLIPS |= LAYERS
RESCALED = {
    "rescaled": rescaled(),
    "rescaled normalise": rescaled(rule=rules.normalise),
    "rescaled automatic": rescaled(rule=rules.automatic(), normalize_by=4.0),
    "rescaled psac": rescaled(rule=rules.psac()),
    "rescaled uniform": rescaled(split()),
    "rescaled groups": rescaled(split(groups=two_groups)),
}
CLIPS |= RESCALED
WAYS = {
    "ghost": {"method": "ghost", "normalize_by": 8.0},
    "vmap": {"method": "vmap", "normalize_by": 8.0},
    "microbatches": {"microbatch_size": 2},
    "transformed": {
        "pre_clipping_transform": lambda gradient: {"v": 3 * gradient["v"]}
    },
}
CLIPS |= {
    name: lambda limit, options=options: {"l2_clip_norm": limit} | options
    for name, options in WAYS.items()
}
NARROW = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}
CLIPS |= {
    name: lambda limit: {"l2_clip_norm": limit, "dtype": jnp.float32} for name in NARROW
}


def make(name, limit):
    return clipjax.clipped_grad(loss, **CLIPS[name](limit))


@functools.cache
def program(names):
    """Compiles clips of one batch, given as data, and a threshold."""

    def run(batch, padding, limit):
        found = {}
        for name in names:
            cast = lambda leaf, name=name: jnp.asarray(leaf, NARROW.get(name))  # noqa: E731
            grad = make(name, limit)
            found[name] = grad(
                jax.tree.map(cast, PARAMS),
                jax.tree.map(cast, batch),
                is_padding_example=padding,
            )
        return found

    return jax.jit(run)


def results(batch, limit, padding=(), names=tuple(CLIPS)):
    """Returns what each clip gives, one vector in float64."""
    size = len(batch["x"])
    found = program(names)(batch, np.isin(np.arange(size), padding), np.float32(limit))
    return {
        name: np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(g)])
        for name, g in found.items()
    }


def examples(random, length):
    """Makes a batch in which the gradient of CHANGED has that norm, others about 1."""
    batch = {
        name: random.standard_normal((EXAMPLES, *shape)).astype("f4")
        for name, shape in SHAPES.items()
    }
    norms = np.sqrt(
        np.sum(batch["d"] ** 2, (1, 2)) * (1 + np.sum(batch["x"] ** 2, (1, 2)))
        + np.sum(batch["e"] ** 2, (1, 2))
    )
    wanted = np.full(EXAMPLES, 0.5)
    wanted[CHANGED] = length
    for name in ("d", "e"):
        batch[name] *= np.float32(wanted / norms)[:, None, None]
    return batch


def changed(batch, change):
    """Returns the batch with another example in that place."""
    new = {name: leaf.copy() for name, leaf in batch.items()}
    for name in ("d", "e"):
        new[name][CHANGED] = change(new[name][CHANGED])
    return new


# Norms relative to C: about the threshold, as `skip` needs, and far beyond it.
SIZES = (1e-30, 1e-3, 0.9995, 0.99995, 1.0, 1.5, 60.0, 1e4)
LIMITS = (1e-3, 1.0, 30.0)


@functools.cache
def worst():
    """Returns the largest change over the pairs, relative to the sensitivity."""
    random = np.random.default_rng(0)
    found = {}
    for limit in LIMITS:
        for size in SIZES:
            batch = examples(random, np.float32(size * limit))
            whole, without = results(batch, limit), results(batch, limit, [CHANGED])
            other = results(changed(batch, np.negative), limit)
            for name in CLIPS:
                grad = make(name, limit)
                for relation, neighbour in [
                    ("ADD_OR_REMOVE_ONE", without),
                    ("REPLACE_SPECIAL", without),
                    ("REPLACE_ONE", other),
                ]:
                    change = np.linalg.norm(whole[name] - neighbour[name])
                    ratio = change / grad.sensitivity(relation)
                    found.setdefault((name, relation), []).append(ratio)
    return {key: max(ratios) for key, ratios in found.items()}


@pytest.mark.parametrize("relation", CHANGES)
def test_the_sensitivity_is_attained_and_never_exceeded(relation):
    """Hard, normalise, band, global_adapt and, at the threshold, skip attain it.

    Soft, tanh, sqrt, automatic and psac come as near as one likes for long gradients.
    """
    found = {name: worst()[name, relation] for name in CLIPS}
    too_much = {name: ratio for name, ratio in found.items() if ratio > 1 + 1e-6}
    too_little = {name: ratio for name, ratio in found.items() if ratio < 1 - 1e-3}
    assert not too_much and not too_little


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_an_example_that_is_not_finite_changes_nothing(bad):
    batch = examples(np.random.default_rng(1), 0.5)
    without = results(batch, 1.0, [CHANGED])
    batch["e"][CHANGED, 0, 0] = bad
    found = results(batch, 1.0)
    for name in CLIPS:
        np.testing.assert_array_equal(found[name], without[name], err_msg=name)


def test_the_bound_holds_at_a_threshold_of_zero():
    batch = examples(np.random.default_rng(2), 60.0)
    whole, without = results(batch, 0.0), results(batch, 0.0, [CHANGED])
    for name in CLIPS:
        change = np.linalg.norm(whole[name] - without[name])
        if name in RESCALED:
            ratio = change / make(name, 0.0).sensitivity()
            assert 1 - 1e-3 <= ratio <= 1 + 1e-6, name
        else:
            assert change == 0 == make(name, 0.0).sensitivity(), name


def test_an_example_is_removed_from_the_arrays():
    """In place of being padding: the sums are those of another program."""
    names = ("ghost", "vmap", "microbatches", "automatic", "groups")
    batch = examples(np.random.default_rng(3), 1e4)
    fewer = {name: np.delete(leaf, CHANGED, 0) for name, leaf in batch.items()}
    whole, without = results(batch, 1.0), results(fewer, 1.0, names=names)
    for name in names:
        change = np.linalg.norm(whole[name] - without[name])
        assert 1 - 1e-3 <= change / make(name, 1.0).sensitivity() <= 1 + 1e-6, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": rules.floored(0.1)}, "does not bound"),
        ({"nan_safe": False}, "nan_safe must be True"),
        ({"dtype": jnp.bfloat16}, "dtype=bfloat16 has no sensitivity"),
        ({"dtype": jnp.float16}, "dtype=float16 has no sensitivity"),
        ({"l2_clip_norm": lambda example: 1.0}, "it looks at the example"),
        ({"l2_clip_norm": {"w": 1.0, "b": lambda e: 1.0, "v": 1.0}}, "not be a funct"),
        # The thresholds of this batch's examples, while another one may come.
        ({"l2_clip_norm": np.ones(EXAMPLES, "f4")}, r"not be of shape \[B\]"),
    ],
)
def test_what_has_no_sensitivity(options, message):
    grad = clipjax.clipped_grad(loss, **({"l2_clip_norm": 1.0} | options))
    for relation in CHANGES:
        with pytest.raises(ValueError, match=message):
            grad.sensitivity(relation)


@pytest.mark.parametrize(
    "number",
    [
        jnp.float16(1e-4),  # whose square is 0
        jnp.float32(1e-23),
        np.float32(1e-23),
        jnp.float32(1e25),
        jnp.bfloat16(0.7),
        jnp.int32(70_000),  # whose square wraps around
        np.int8(100),
    ],
)
def test_narrow_thresholds_and_divisors(number):
    exact, near = float(number), functools.partial(pytest.approx, rel=1e-6, abs=0)
    grad = clipjax.clipped_grad(loss, l2_clip_norm=number, normalize_by=3)
    assert float(grad.sensitivity()) == near(exact / 3)
    pair = dict.fromkeys(("w", "b"), number) | {"v": 0.0}
    grad = clipjax.clipped_grad(loss, l2_clip_norm=pair)
    assert float(grad.sensitivity()) == near(exact * 2**0.5)
    if 1e-6 < exact < 1e6:
        grad = clipjax.clipped_grad(loss, l2_clip_norm=1.0, normalize_by=number)
        assert float(grad.sensitivity()) == near(1 / exact)


class TooLong(rules.Rule):
    """It inherits that it is bounded, and is not; and it is NaN for short gradients."""

    def length(self, norm, threshold):
        return jnp.where(norm < threshold, jnp.nan, 3 * threshold)


@pytest.mark.parametrize("rescaled", [False, True])
def test_thresholds_and_rules_that_are_not_as_they_should_be(rescaled):
    """What a user passes cannot void the bound, nor show by NaN who is in a batch."""
    batch = examples(np.random.default_rng(5), 60.0)
    shown = jnp.asarray(batch["e"][:, 0, 0])
    is_nan = lambda example: jnp.where(  # noqa: E731
        example["e"][0, 0] == shown[CHANGED], jnp.nan, 1.0
    )
    make = functools.partial(
        clipjax.clipped_grad, loss, rescale_to_unit_norm=rescaled, method="vmap"
    )

    @jax.jit
    def run(batch, padding):
        call = lambda **options: make(**options)(  # noqa: E731
            PARAMS, batch, is_padding_example=padding
        )
        return call(l2_clip_norm=is_nan), call(l2_clip_norm=1.0, rule=TooLong())

    present = run(batch, np.zeros(EXAMPLES, bool))
    absent = run(batch, np.arange(EXAMPLES) == CHANGED)
    np.testing.assert_equal(*jax.tree.map(np.asarray, (present[0], absent[0])))
    change = jax.tree.map(np.subtract, present[1], absent[1])
    length = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(change)))
    assert 1 - 1e-3 < length <= 1 + 1e-6


def test_without_a_threshold_there_is_no_noise_to_add():
    for threshold in (None, {"w": 1.0, "b": None, "v": 1.0}, np.inf):
        grad = clipjax.clipped_grad(loss, l2_clip_norm=threshold)
        assert grad.sensitivity("REPLACE_ONE") == np.inf
        with pytest.raises(ValueError, match="sensitivity must be .*finite, got inf"):
            privacy.gaussian_noise(grad.sensitivity(), 1.0, jax.random.key(0))


def test_noise_is_not_added_to_a_sum_that_was_rounded():
    """`sensitivity` cannot see the dtype of parameters; the noise can."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), PARAMS)
    batch = examples(np.random.default_rng(4), 1.0)
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), batch)
    grad = clipjax.clipped_grad(loss, l2_clip_norm=1.0)
    noise = privacy.gaussian_noise(grad.sensitivity(), 1.0, jax.random.key(0))
    rounded = jax.eval_shape(grad, params, batch)
    with pytest.raises(TypeError, match="b has dtype bfloat16: the sum was rounded"):
        jax.eval_shape(noise.update, rounded, noise.init(params), params)
    grad = make("bfloat16", 1.0)
    updates, _ = jax.eval_shape(
        noise.update, jax.eval_shape(grad, params, batch), noise.init(params), params
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("bfloat16")}


MISUSED = {
    "ema": thresholds.ema(2.0),
    "quantile": {"w": 1.0, "b": thresholds.quantile(0.5, 4), "v": 1.0},
    "constant": thresholds.constant(1.0),
    "uncalled threshold": thresholds.ema,
    "recipe": clipjax.clip_by_global_norm(1.0),
    "recipes": {"w": clipjax.zclip(), "b": 1.0, "v": 1.0},
    "uncalled recipe": clipjax.zclip,
    "optimizer": optax.sgd(1.0),
}


@pytest.mark.parametrize("name", MISUSED)
def test_thresholds_that_look_at_private_norms_are_refused(name):
    with pytest.raises(TypeError, match="is for the gradient of a whole batch.*noise"):
        clipjax.clipped_grad(loss, l2_clip_norm=MISUSED[name])


def test_schedules_are_not_functions_of_an_example():
    for schedule in (optax.linear_schedule(1, 0, 3), optax.constant_schedule(1.0)):
        with pytest.raises(TypeError, match=r"l2_clip_norm=schedule\(step\)"):
            clipjax.clipped_grad(loss, l2_clip_norm=schedule)
        grad = clipjax.clipped_grad(loss, l2_clip_norm=schedule(0))
        assert grad.sensitivity() == 1.0
