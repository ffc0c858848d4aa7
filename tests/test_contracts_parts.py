"""Parts are values: they print, compare and hash; recipes say what they are."""

import ast
import inspect
import itertools
import re
import textwrap

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import about

import clipjax
from clipjax import granularity, guards, norms, recipes, rules, spectral, thresholds

SLOTS = {
    "norm": catalogue.NORMS,
    "rule": catalogue.RULES,
    "granularity": catalogue.GRANULARITIES,
    "guard": catalogue.GUARDS,
    "method": catalogue.METHODS,
}
EVERY = catalogue.RECIPES | catalogue.COMPOUNDS


def test_docstrings_give_the_coordinates():
    for name in catalogue.RECIPES:
        doc = inspect.getdoc(getattr(clipjax, name))
        with about(name):
            (line,) = re.findall(r"^Coordinates: ``(.*)``$", doc, re.MULTILINE)
            assert line == catalogue.clip_parts(f"recipe-{name}").coordinates


def test_docstrings_have_every_section():
    for name in EVERY:
        doc = inspect.getdoc(getattr(clipjax, name))
        with about(name):
            for section in ("Args:", "Returns:", "Raises:", "Example:", "References:"):
                assert f"\n{section}\n" in doc, section
            assert "| input | result |" in doc
            assert ".. math::" in doc


def test_every_recipe_is_in_the_catalogue_and_at_the_top():
    public = {n for n, thing in vars(recipes).items() if inspect.isfunction(thing)}
    assert public == set(EVERY)
    assert all(getattr(clipjax, name) is getattr(recipes, name) for name in public)


def test_recipes_only_name_their_coordinates():
    for name in EVERY:
        source = textwrap.dedent(inspect.getsource(getattr(clipjax, name)))
        (function,) = ast.parse(source).body
        _, *body = function.body
        # Checks of arguments aside, at most 12 lines.
        own = [part for part in body if "require_" not in ast.unparse(part)]
        lines = sum(part.end_lineno - part.lineno + 1 for part in own)
        with about(name):
            assert lines <= 12


# Optax's names ask for a threshold, and so do clips that are nothing without one.
ASK_FOR_A_THRESHOLD = {
    "adaptive_grad_clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_group_norm",
    "clip_by_leaf_norm",
    "clip_by_momentum",
    "clip_by_value",
    "scale_by_l0_l1",
    "soft_clip_by_global_norm",
    "torch_clip_grad_norm",
}


def test_recipes_construct_with_their_defaults():
    for name in EVERY:
        with about(name):
            recipe = getattr(clipjax, name)
            if name in ASK_FOR_A_THRESHOLD:
                with pytest.raises(TypeError, match="missing"):
                    recipe()
            else:
                assert isinstance(recipe(), optax.GradientTransformationExtraArgs)


def test_parts_compare_and_hash():
    for slot, parts in SLOTS.items():
        for name, make in parts.items():
            with about(f"{slot} {name}"):
                one, same = make(), make()
                assert one == same and hash(one) == hash(same)
                others = [other() for key, other in parts.items() if key != name]
                assert all(one != other for other in others)
                assert all(repr(one) != repr(other) for other in others)
                with pytest.raises((AttributeError, TypeError)):  # frozen
                    one.anything = 1


# Arrays and functions compare by identity, and every call makes others.
BY_IDENTITY = {f"threshold-{n}" for n in ("array", "schedule", "minimum", "maximum")}
BY_IDENTITY |= {"threshold-scaled", catalogue.CHAIN}


def test_clips_compare_by_their_parts_and_print_what_differs():
    clips = {}
    for key in catalogue.CLIPS:
        one, same = catalogue.clip(key), catalogue.CLIPS[key]()
        with about(key):
            assert repr(one) == repr(same) or key in BY_IDENTITY
            if key not in BY_IDENTITY:
                assert one == same and hash(one) == hash(same)
                clips[key] = one
    for (key, one), (other, two) in itertools.combinations(clips.items(), 2):
        with about(f"{key} and {other}"):
            assert (one == two) == (repr(one) == repr(two))


@pytest.mark.parametrize(
    ("make", "printed"),
    [
        (clipjax.clip_by_global_norm, "clip_by(whole × l2 × hard × constant({}))"),
        (clipjax.clip_by_value, "clip_entries(hard × constant({}))"),
        (
            lambda c: clipjax.clip_by(thresholds.ema(c), norm=norms.lp(3)),
            "clip_by(whole × lp(3) × hard × ema(decay=0.99, multiplier={}, "
            "remember='clipped'))",
        ),
        (
            lambda c: clipjax.clip_by(1.0, rule=rules.floored(c / 10), name="first"),
            "clip_by(whole × l2 × floored(fraction=0.{}) × constant(1), name='first')",
        ),
        (
            spectral.clip_singular_values,
            "clip_singular_values(spectral(power-iteration, 16) × hard × constant({}))",
        ),
        (
            lambda c: clipjax.clip_by_value(c, report=False),
            "clip_entries(hard × constant({}), report=False)",
        ),
    ],
)
def test_numbers_are_printed(make, printed):
    assert repr(make(2.0)) == printed.format(2)
    assert repr(make(3.0)) == printed.format(3)
    assert make(2.0) != make(3.0)


def test_a_traced_number_is_printed_as_an_array():
    def show(number):
        texts.extend(repr(make(number)) for make in catalogue.REPRESENTATIVES.values())
        texts.append(repr(clipjax.delta_clip(1.0, number)))

    texts = []
    jax.eval_shape(show, 0.5)
    assert all("array" in text for text in texts), texts


def test_coordinates_leave_the_numbers_out():
    one, two = clipjax.clip_by_leaf_norm(1.0), clipjax.clip_by_leaf_norm(2.0)
    assert one.clipper.coordinates == two.clipper.coordinates
    assert one.clipper.coordinates == "leaf × l2 × hard × constant"


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
    for index, make in enumerate(makers):
        if index != 2:  # an array on a device compares by identity
            assert make() == make()
        assert hash(make()) is not None
    for one, other in itertools.combinations(makers, 2):
        assert one() != other()


def test_tags_of_rules():
    """That they hold is for `test_contracts_updates.py` to see."""
    assert rules.hard.contractive and rules.hard.bounded
    assert rules.normalise.bounded and not rules.normalise.contractive
    assert rules.band().bounded and not rules.band().contractive
    assert not rules.floored(0.1).bounded
    for rule in (rules.automatic(), rules.psac()):
        assert rule.bounded and not rule.contractive
    assert rules.global_adapt(2.0).bounded and rules.global_adapt(2.0).contractive
    assert guards.zero.admits_all and not guards.drop.admits_all


def test_structural_mistakes_are_named():
    grads = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    labels = granularity.group(lambda *_: 3)
    cases = [
        (
            clipjax.clip_by_leaf_norm({"x": 1.0}),
            ValueError,
            "must be a prefix of the tree",
        ),
        (clipjax.clip_by_leaf_norm(1.0, stacked=3), ValueError, "at most the rank"),
        (
            clipjax.clip_by(1.0, granularity=granularity.unit(5)),
            ValueError,
            "axes must be axes of 'a'",
        ),
        (
            clipjax.clip_by(1.0, granularity=labels),
            TypeError,
            "labels must give a string for each leaf, got 3 for 'a'",
        ),
    ]
    for clip, kind, message in cases:
        with pytest.raises(kind, match=message):
            clip.update(grads, None)
