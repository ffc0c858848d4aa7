"""The form of every clip: structure, shapes and dtypes, by tracing alone."""

import itertools
from functools import partial

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import about
from oracle import assert_same_bits, kinds

# Every clip there is, also those with an optimizer inside.
EVERY = catalogue.CLIPS | {
    f"compound-{name}": make for name, make in catalogue.COMPOUNDS.items()
}
# Adam itself relies on promotion between the dtypes of moments and counts.
pytestmark = pytest.mark.usefixtures("standard_promotion_for_optax")


@pytest.fixture
def standard_promotion_for_optax(request):
    """Clips are strict about dtypes; Optax's Adam inside of a compound is not."""
    if "compound" not in request.node.name:
        yield
        return
    with jax.numpy_dtype_promotion("standard"):
        yield


def plain_clips():
    """Gives every clip without an optimizer in it, which has no table of leaves."""
    return [key for key in catalogue.CLIPS if key != "threshold-table"]


def of_every_kind(dtype=jnp.float32):
    """Makes a tree of leaves of every kind, on top of those of `parameters`."""
    odd = {
        "complex": jnp.full((2,), 3 + 4j, "complex64"),
        "empty": jnp.zeros((0, 3)),
        "float0": np.zeros((2,), jax.dtypes.float0),
        "gone": None,
        "integer": jnp.arange(2),
        "key": jax.random.key(3),
        "masked": optax.MaskedNode(),
        "list": [jnp.ones((1,)), (jnp.ones(()),)],
    }
    return catalogue.parameters(dtype) | {"odd": odd}


def traced(clip, grads, params):
    """Gives the state before a step, and the shapes of updates and the next state."""
    state = clip.init(params)
    return state, *jax.eval_shape(clip.update, grads, state, params)


def same(tree):
    """Gives a tree with its keys and float0 in order, as `eval_shape` returns them."""
    return jax.tree.structure(tree), [
        (jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)
    ]


def test_leaves_of_every_kind_come_back_as_they_came():
    """All narrow dtypes, which differ in their rounding, are in `test_precision.py`."""
    narrow = ("bfloat16", "float8_e4m3fn", "float4_e2m1fn")
    grads = of_every_kind()
    grads["odd"] |= {dtype: jnp.ones((2, 3), dtype) for dtype in narrow}
    grads["odd"]["weak"] = jnp.asarray(2.0)
    wide = {dtype: jnp.ones((2, 3)) for dtype in narrow} | {"weak": jnp.ones(())}
    params = of_every_kind()
    params["odd"] |= wide
    for key in plain_clips():
        # A memory has the dtypes of the parameters, or those of the gradient.
        remembers = catalogue.clip_parts(key).threshold.remembers
        for owner in (params, grads)[: 1 + remembers]:
            with about(key):
                before, updates, after = traced(catalogue.clip(key), grads, owner)
                assert kinds(updates) == kinds(grads)
                assert kinds(after) == kinds(before)


def test_leaves_of_every_kind_come_back_from_a_compound():
    params = of_every_kind()
    del params["odd"]["float0"], params["odd"]["key"], params["odd"]["integer"]
    for key in set(EVERY) - set(catalogue.CLIPS):
        with about(key):
            before, updates, after = traced(EVERY[key](), params, params)
            assert kinds(updates) == kinds(params)
            assert kinds(after) == kinds(before)


def test_float64_is_measured_in():
    with jax.enable_x64(True):
        params = catalogue.parameters(jnp.float64)
        grads = params | {"scale": jnp.ones((), jnp.bfloat16)}
        for key, make in catalogue.CLIPS.items():
            with about(key):
                before, updates, after = traced(make(), grads, params)
                assert kinds(updates) == kinds(grads)
                assert kinds(after) == kinds(before)
                info = catalogue.clip_state(after).clip_info
                numbers = {info.norm_before, *jax.tree.leaves(info[-3:])}
                assert all(number.dtype == "float64" for number in numbers)


def test_a_state_is_the_carry_of_a_scan_compound():
    params, grads = catalogue.parameters(), catalogue.gradients()
    for key, make in EVERY.items():
        clip = make()

        def steps(state, clip=clip):
            def step(state, _):
                updates, state = clip.update(grads, state, params)
                return state, updates

            return jax.lax.scan(step, state, length=2)

        with about(key):  # tracing a scan fails where the carry changes its type
            assert kinds(jax.eval_shape(steps, clip.init(params))[0]) == kinds(
                clip.init(params)
            )


def test_init_takes_structs_and_fills_every_field_with_its_own_buffer():
    params = catalogue.parameters()
    structs = jax.eval_shape(lambda: params)
    for key, make in EVERY.items():
        with about(key):
            state = make().init(params)
            assert_same_bits(make().init(structs), state)
            assert kinds(make().init(structs)) == kinds(state)
            abstract = jax.eval_shape(make().init, structs)
            assert same(abstract) == same(state)
            # What shares a buffer cannot be donated.
            buffers = [
                leaf.unsafe_buffer_pointer()
                for leaf in jax.tree.leaves(state)
                if leaf.size
            ]
            assert len(set(buffers)) == len(buffers)


def test_before_the_first_step_nothing_is_nan():
    for key, make in EVERY.items():
        with about(key):
            state = make().init(catalogue.parameters())
            for clip_state in catalogue.clip_states(state):
                info = clip_state.clip_info
                ones = (info.clip_ratio, info.average_clip_ratio)
                assert ones == (1, 1)
                assert info.first_nonfinite_leaf == -1
                others = {*info._fields} - {
                    *("clip_ratio", "average_clip_ratio", "first_nonfinite_leaf")
                }
                assert all(not np.any(getattr(info, field)) for field in others)
                assert clip_state.clip_steps == 0
            for leaf in jax.tree.leaves(state):
                assert np.all(np.isfinite(leaf))


def test_the_structure_of_a_state_does_not_depend_on_the_parameters():
    others = {"dense": {"kernel": jnp.ones((3, 5)), "a": [jnp.ones(2)] * 4}}
    for key in plain_clips():
        if "estimated_smoothness" in key:  # keeps parameters
            continue
        with about(key):
            init = catalogue.clip(key).init
            one, other = init(catalogue.parameters()), init(others)
            assert jax.tree.structure(one) == jax.tree.structure(other)


def test_a_report_has_no_number_per_entry():
    params = {"dense": {"bias": (2,), "kernel": (300, 2)}, "scale": ()}
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        params,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    for key in catalogue.CLIPS:
        with about(key):
            state = jax.eval_shape(catalogue.clip(key).init, params)
            blocks = 302 if key == "granularity-leaf_stacked" else catalogue.LEAF_COUNT
            for number in jax.tree.leaves(catalogue.clip_state(state).clip_info):
                assert number.size <= blocks


def jaxpr(function, *args):
    """Writes down what a function does, without compiling it."""
    return str(jax.make_jaxpr(function)(*args))


def test_what_a_clip_does_not_need_changes_nothing():
    params, grads = catalogue.parameters(), catalogue.gradients()
    for key in catalogue.CLIPS:
        update, state = catalogue.clip(key).update, catalogue.clip(key).init(params)
        needed = {}
        with about(key):
            if key in catalogue.NEED_PARAMS:
                needed = {"params": params}
                with pytest.raises(ValueError, match=r"\w+ needs params: call update"):
                    jax.eval_shape(update, grads, state)
            given = {"params": params, "value": 1.0, "spam": "x"}
            assert jaxpr(partial(update, **given), grads, state) == jaxpr(
                partial(update, **needed), grads, state
            )


def test_a_clip_that_remembers_nothing_needs_no_state():
    params, grads = catalogue.parameters(), catalogue.gradients()
    nothings = itertools.cycle((None, (), optax.EmptyState()))
    for key in sorted(set(catalogue.CLIPS) - {catalogue.CHAIN}):
        clip, nothing = catalogue.clip(key), next(nothings)
        with about(f"{key} with {nothing}"):
            if clip.clipper.threshold.remembers:
                with pytest.raises(ValueError, match="memory.*state that init made"):
                    clip.update(grads, nothing, params)
                continue
            updates, after = jax.eval_shape(clip.update, grads, nothing, params)
            assert kinds(updates) == kinds(grads)
            assert same(after) == same(clip.init(params))


def test_empty_trees_and_bare_arrays():
    """Containers are JAX's affair: one tree without leaves stands for all of them."""
    for key in plain_clips():
        clip = catalogue.clip(key)
        for tree in ({"a": None}, jnp.zeros((3, 0))):
            needs = ("axes", "stacked", "group_norm")  # leaves of certain names
            if jax.tree.leaves(tree) and any(word in key for word in needs):
                continue
            with about(f"{key} on {tree}"):
                before, updates, after = traced(clip, tree, tree)
                assert kinds(updates) == kinds(tree)
                assert kinds(after) == kinds(before)
