"""Parts are values: they print, compare, hash, and refuse what is wrong by name."""

import ast
import inspect
import itertools
import re
import textwrap

import catalogue
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import clipjax
from clipjax import granularity, guards, norms, rules, thresholds

PARTS = {
    f"{slot}-{name}": make
    for slot, parts in {
        "norm": catalogue.NORMS,
        "rule": catalogue.RULES,
        "granularity": catalogue.GRANULARITIES,
        "guard": catalogue.GUARDS,
    }.items()
    for name, make in parts.items()
}


@pytest.mark.parametrize("name", catalogue.RECIPES)
def test_docstring_gives_the_coordinates(name):
    doc = inspect.getdoc(getattr(clipjax, name))
    (line,) = re.findall(r"^Coordinates: ``(.*)``$", doc, re.MULTILINE)
    key = f"recipe-{name}"
    if key == catalogue.CHAIN:
        assert line == catalogue.clip_parts(key).coordinates
    else:
        assert repr(catalogue.clip(key)) == f"clip_by({line})"


@pytest.mark.parametrize("name", catalogue.RECIPES | catalogue.COMPOUNDS)
def test_docstring_has_every_section(name):
    doc = inspect.getdoc(getattr(clipjax, name))
    for section in ("Args:", "Returns:", "Raises:", "Example:", "References:"):
        assert f"\n{section}\n" in doc, section
    assert "| input | result |" in doc
    assert ".. math::" in doc


def test_every_recipe_is_in_the_catalogue():
    from clipjax import recipes

    public = {
        name for name, thing in vars(recipes).items() if inspect.isfunction(thing)
    }
    assert public == set(catalogue.RECIPES | catalogue.COMPOUNDS)


# Optax's names ask for a threshold, and so do clips that are nothing without one.
ASK_FOR_A_THRESHOLD = {
    "adaptive_grad_clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_group_norm",
    "clip_by_leaf_norm",
    "clip_by_value",
    "scale_by_l0_l1",
    "soft_clip_by_global_norm",
    "torch_clip_grad_norm",
}


@pytest.mark.parametrize("name", catalogue.RECIPES | catalogue.COMPOUNDS)
def test_recipes_construct_with_their_defaults(name):
    recipe = getattr(clipjax, name)
    if name in ASK_FOR_A_THRESHOLD:
        with pytest.raises(TypeError, match="missing"):
            recipe()
    else:
        assert isinstance(recipe(), optax.GradientTransformation)


@pytest.mark.parametrize("name", catalogue.RECIPES | catalogue.COMPOUNDS)
def test_recipes_only_name_their_coordinates(name):
    source = textwrap.dedent(inspect.getsource(getattr(clipjax, name)))
    (function,) = ast.parse(source).body
    _, *body = function.body
    assert body[-1].end_lineno - body[0].lineno < 13, "longer than 12 lines"


@pytest.mark.parametrize("key", PARTS)
def test_parts_compare_and_hash(key):
    one, same = PARTS[key](), PARTS[key]()
    assert one == same and hash(one) == hash(same)
    slot = key.split("-")[0]
    for other, make in PARTS.items():
        if other != key and other.split("-")[0] == slot:
            assert one != make(), other
    with pytest.raises((AttributeError, TypeError)):  # frozen
        one.anything = 1
    assert re.fullmatch(r"[a-z0-9]+(\(.*\))?", repr(one)), repr(one)


# Arrays and functions compare by identity, and every call makes others.
BY_IDENTITY = ("array", "schedule", "minimum", "maximum", "scaled")
COMPARABLE = set(catalogue.CLIPS) - {catalogue.CHAIN}
COMPARABLE -= {f"threshold-{name}" for name in BY_IDENTITY}


@pytest.mark.parametrize("key", sorted(COMPARABLE))
def test_clips_compare_by_their_parts(key):
    one, same = catalogue.CLIPS[key](), catalogue.CLIPS[key]()
    assert one == same and hash(one) == hash(same)
    assert one != clipjax.clip_by_global_norm(123.0)
    assert repr(one) == repr(same)
    assert re.fullmatch(r"clip_by\(.+ × .+ × .+ × .+\)", repr(one))


def test_thresholds_compare_by_value():
    makers = [
        lambda: thresholds.constant(1.0),
        lambda: thresholds.constant({"a": 1.0, "b": None}),
        lambda: thresholds.constant(np.array([1.0, 2.0])),
        lambda: thresholds.warmup_statistic(3),
        lambda: thresholds.relative_to_params(0.1),
        lambda: thresholds.minimum(1.0, 2.0),
        lambda: thresholds.maximum(1.0, 2.0),
        lambda: thresholds.scaled(1.0, 2.0),
        lambda: thresholds.after(3, 1.0),
    ]
    for make in makers:
        assert make() == make()
        assert hash(make()) == hash(make())
    for one, other in itertools.combinations(makers, 2):
        assert one() != other()


@pytest.mark.parametrize(
    "part",
    [
        granularity.whole,
        lambda: granularity.group(catalogue.by_rank),
        granularity.unit,
        granularity.element,
    ],
    ids=["whole", "group", "unit", "element"],
)
def test_spectral_norm_goes_with_leaves_only(part):
    with pytest.raises(ValueError, match=r"norm=spectral.*granularity\.leaf\(\)"):
        clipjax.clip_by(1.0, granularity=part(), norm=norms.spectral())


NUMBERS = {
    "clip_by_value": (lambda x: clipjax.clip_by_value(x), "max_delta"),
    "clip_by_global_norm": (lambda x: clipjax.clip_by_global_norm(x), "max_norm"),
    "clip_by_leaf_norm": (lambda x: clipjax.clip_by_leaf_norm({"a": x}), "max_norm"),
    "clip_by_group_norm": (
        lambda x: clipjax.clip_by_group_norm(catalogue.by_rank, {"a": x}),
        "max_norms",
    ),
    "clip_by_block_rms": (lambda x: clipjax.clip_by_block_rms(x), "threshold"),
    "adaptive_grad_clip": (lambda x: clipjax.adaptive_grad_clip(x), "clipping"),
    "adaptive_grad_clip_eps": (lambda x: clipjax.adaptive_grad_clip(0.1, x), "eps"),
    "quantile": (lambda x: clipjax.quantile_clip(x), "quantile"),
    "quantile_max_norm": (lambda x: clipjax.quantile_clip(max_norm=x), "max_norm"),
    "percentile": (lambda x: clipjax.autoclip(x), "percentile"),
    "alpha": (lambda x: clipjax.zclip(x), "alpha"),
    "z_thresh": (lambda x: clipjax.zclip(z_thresh=x), "z_thresh"),
    "max_grad_norm": (lambda x: clipjax.zclip(max_grad_norm=x), "max_grad_norm"),
    "sigma": (lambda x: clipjax.clip_update_by_history(sigma=x), "sigma"),
    "gamma1": (lambda x: clipjax.gradient_stabilizer(x), "gamma1"),
    "adam_b1": (lambda x: clipjax.stable_update_clip(x), "b1"),
    "adam_eps": (lambda x: clipjax.stable_update_clip(eps=x), "eps"),
    "momentum": (lambda x: clipjax.acclip(x), "b1"),
    "soft_clip_by_global_norm": (clipjax.soft_clip_by_global_norm, "max_norm"),
    "normalise_by_global_norm": (clipjax.normalise_by_global_norm, "norm"),
    "torch_clip_grad_norm": (clipjax.torch_clip_grad_norm, "max_norm"),
    "norm_type": (lambda x: clipjax.torch_clip_grad_norm(1.0, x), "norm_type"),
    "l0": (lambda x: clipjax.scale_by_l0_l1(x, 1.0), "l0"),
    "l1": (lambda x: clipjax.scale_by_l0_l1(1.0, x), "l1"),
    "cclip": (clipjax.cclip, "tau"),
    "delta_clip": (clipjax.delta_clip, "max_norm"),
    "constant": (thresholds.constant, "threshold"),
    "scaled_factor": (lambda x: thresholds.scaled(1.0, x), "factor"),
    "minimum": (lambda x: thresholds.minimum(1.0, x), "threshold"),
    "after_steps": (lambda x: thresholds.after(x, 1.0), "steps"),
    "warmup_steps": (lambda x: thresholds.warmup_statistic(x), "steps"),
    "warmup_factor": (lambda x: thresholds.warmup_statistic(2, x), "factor"),
    "warmup_floor": (lambda x: thresholds.warmup_statistic(2, floor=x), "floor"),
    "warmup_cap": (lambda x: thresholds.warmup_statistic(2, cap=x), "cap"),
    "ratio": (lambda x: thresholds.relative_to_params(x), "ratio"),
    "floor": (lambda x: thresholds.relative_to_params(0.1, x), "floor"),
    "band": (lambda x: rules.band(x), "lower"),
    "hard_epsilon": (lambda x: rules.Hard(epsilon=x), "epsilon"),
    "lp": (lambda x: norms.lp(x), "p"),
    "spectral": (lambda x: norms.spectral(x), "iterations"),
    "alarm_after": (
        lambda x: clipjax.skip_nonfinite(optax.sgd(1.0), alarm_after=x),
        "alarm_after",
    ),
    "radius": (lambda x: clipjax.project_onto_ball(jnp.ones(2), x), "radius"),
}


@pytest.mark.parametrize("bad", [True, "1.0", -1.0, np.nan, np.float32(-2)], ids=repr)
@pytest.mark.parametrize("name", NUMBERS)
def test_bad_numbers_are_refused_by_name_and_value(name, bad):
    make, argument = NUMBERS[name]
    kind = TypeError if isinstance(bad, bool | str) else (ValueError, TypeError)
    with pytest.raises(kind, match=rf"\b({argument}) must be") as caught:
        make(bad)
    assert repr(bad) in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: clipjax.clip_by(1.0, norm="l2"), r"norm must be a Norm .* 'l2'"),
        (lambda: clipjax.clip_by(1.0, rule="hard"), r"rule must be a Rule .* 'hard'"),
        (
            lambda: clipjax.clip_by(1.0, granularity=granularity.leaf),
            "granularity must be a Granularity such as granularity.leaf()",
        ),
        (
            lambda: clipjax.clip_by(1.0, nonfinite="zero"),
            r"nonfinite must be a Guard such as guards.zero, got 'zero'",
        ),
        (lambda: clipjax.clip_by(dict), "threshold must be .* got <class"),
        (lambda: clipjax.clip_by_group_norm({"a": "x"}, 1.0), "max_norms must be"),
        (lambda: clipjax.skip_nonfinite("adam"), "inner must be .* 'adam'"),
        (lambda: thresholds.schedule(1.0), "function must be a schedule, got 1.0"),
        (lambda: thresholds.minimum(), "minimum needs at least one threshold"),
    ],
)
def test_wrong_kinds_are_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: clipjax.clip_by(1.0, name=""), "name must be a string"),
        (lambda: rules.band(1.5), "lower must be .* got 1.5"),
        (lambda: norms.lp(0.5), "p must be at least 1 and finite, got 0.5"),
        (lambda: norms.spectral(0), "iterations must be at least 1, got 0"),
        (
            lambda: thresholds.warmup_statistic(3, floor=2.0, cap=1.0),
            r"cap must be a number of at least 2 .* got 1.0",
        ),
        (lambda: clipjax.scale_by_l0_l1(0.0, 1.0), "l0 must be a positive .* got 0.0"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_structural_mistakes_are_named():
    grads = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    cases = [
        (clipjax.clip_by_leaf_norm({"x": 1.0}), "threshold must be a prefix"),
        (clipjax.clip_by_leaf_norm(1.0, stacked=3), "stacked must be at most the rank"),
        (clipjax.clip_by({"a": 1.0, "b": 2.0}), "not a table"),
        (
            clipjax.clip_by_group_norm(lambda path, leaf: path, {"a": 1.0}),
            "labels gives 'b' for 'b', which has no threshold; the groups are 'a'",
        ),
        (
            clipjax.clip_by(1.0, granularity=granularity.unit(5)),
            "axes must be axes of 'a'",
        ),
    ]
    for clip, message in cases:
        with pytest.raises(ValueError, match=message):
            clip.update(grads, clip.init(grads))
    with pytest.raises(TypeError, match="labels must give a string .* 3 for 'a'"):
        clipjax.clip_by(1.0, granularity=granularity.group(lambda *_: 3)).init(grads)


def test_a_jax_array_of_the_wrong_dtype_is_refused():
    with pytest.raises(TypeError, match="threshold must be .* got dtype bool"):
        clipjax.clip_by(jnp.asarray(True))


def test_guards_and_rules_have_their_tags():
    assert rules.hard.contractive and rules.hard.bounded
    assert rules.normalise.bounded and not rules.normalise.contractive
    assert rules.band().bounded and not rules.band().contractive
    assert guards.drop.hides and not guards.zero.hides
