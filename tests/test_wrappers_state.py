"""What every tool of the ecosystem may do with the state of a wrapper."""

import pickle
import sys

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import assert_same_bits, kinds, random_tree

import clipjax

PARAMS = random_tree(0, {"a": (3, 2), "b": {"c": (2,)}})
LEARNT = clipjax.clip_by(clipjax.thresholds.ema(1.5))


def clipped_adam():
    return optax.chain(LEARNT, optax.adam(0.1))


# Each is a wrapper around a clip and Adam, or is one of the two parts of a chain.
WRAPPERS = {
    "skip_nonfinite": clipjax.skip_nonfinite(clipped_adam()),
    "skip_on_spike": clipjax.skip_on_spike(clipped_adam()),
    "skip_on_spike of leaves": clipjax.skip_on_spike(
        clipped_adam(),
        limit=clipjax.thresholds.log_mean_plus_std(),
        multiple=10.0,
        sigma=6.0,
        granularity=clipjax.granularity.leaf(),
    ),
    "raise_on_nonfinite": clipjax.raise_on_nonfinite(clipped_adam()),
    "periodic_reset": clipjax.periodic_reset(clipped_adam(), 2, warmup_steps=1),
    "per_worker": clipjax.per_worker(clipped_adam(), "workers"),
    "error_feedback": optax.chain(clipjax.error_feedback(LEARNT, 2.0), optax.adam(0.1)),
    "unscale": optax.chain(clipjax.unscale(2.0), clipped_adam()),
    "stable_update_clip": optax.chain(clipjax.stable_update_clip(), clipped_adam()),
    "spam_clip": clipjax.spam_clip(optax.adam(0.1)),
    "acclip": optax.chain(clipjax.acclip(), clipped_adam()),
    "nested": clipjax.skip_nonfinite(
        clipjax.skip_on_spike(clipjax.periodic_reset(clipped_adam(), 3))
    ),
}


# It needs an axis; it needs checkify under jit.
LEFT_OUT = ("per_worker", "raise_on_nonfinite")
# For the others it is enough that JAX lowers them.
COMPILED = ("nested", "acclip")


@pytest.fixture(scope="module")
def states():
    return {name: wrapper.init(PARAMS) for name, wrapper in WRAPPERS.items()}


def test_optimizer_states_can_be_mapped_as_those_of_optax(states):
    specs = jax.tree.map(lambda leaf: f"of rank {leaf.ndim}", PARAMS)
    for name, wrapper in WRAPPERS.items():
        mapped = optax.tree_map_params(
            *(wrapper, lambda _, spec: spec, states[name], specs),
            transform_non_params=lambda leaf: None,
        )
        found = jax.tree.leaves(mapped)
        # At least mu and nu of Adam; the residual, where errors are fed back.
        trees = {"error_feedback": 3}.get(name, 2)
        assert found.count("of rank 2") == found.count("of rank 1") >= trees, name
        same = optax.tree_map_params(wrapper, lambda leaf: leaf, states[name])
        assert kinds(same) == kinds(states[name]), name


def test_integers_among_the_parameters_keep_the_structure():
    params = PARAMS | {"i": jnp.arange(3), "n": None}
    clip = clipjax.error_feedback(LEARNT)
    specs = jax.tree.map(jnp.ndim, params)
    mapped = optax.tree_map_params(clip, lambda _, s: s, clip.init(params), specs)
    assert mapped.residual == specs


def test_the_structure_depends_on_settings_only():
    others = {"x": jnp.ones(2), "y": (jnp.ones(3), jnp.ones(()), jnp.ones((1, 1)))}
    for name in ("skip_nonfinite", "skip_on_spike"):
        wrapper = clipjax.__dict__[name](LEARNT)
        one, other = (jax.tree.structure(wrapper.init(p)) for p in (PARAMS, others))
        assert one == other


def test_names_of_fields_are_those_of_nobody_else(states):
    """`optax.tree.get(state, "count")` finds the optimizer's own."""

    def fields(package):
        classes = [
            item
            for name, module in list(sys.modules.items())
            if name.partition(".")[0] == package
            for item in vars(module).values()
            if isinstance(item, type) and hasattr(item, "_fields")
        ]
        states = [item for item in classes if item.__name__.endswith(("State", "Info"))]
        return {field for state in states for field in state._fields}

    assert {"mu", "count", "trace"} <= fields("optax")
    assert fields("clipjax") & fields("optax") == {"inner_state"}
    assert int(optax.tree.get(states["nested"], "count")) == 0


def test_states_hold_no_nan_and_no_buffer_twice():
    with jax.debug_nans(True):
        states = {name: wrapper.init(PARAMS) for name, wrapper in WRAPPERS.items()}
    for name, state in states.items():
        leaves = [leaf for leaf in jax.tree.leaves(state) if leaf.size]
        assert not any(np.any(np.isnan(leaf)) for leaf in leaves), name
        buffers = [leaf.unsafe_buffer_pointer() for leaf in leaves]
        assert len(set(buffers)) == len(buffers), name


def test_states_are_stored_and_restored(states):
    for name, state in states.items():
        numbered = jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), state)
        fresh = WRAPPERS[name].init(PARAMS)
        stored = flax.serialization.to_bytes(numbered)
        assert_same_bits(flax.serialization.from_bytes(fresh, stored), numbered)
        stored = pickle.dumps(jax.tree.map(np.asarray, numbered))
        assert_same_bits(pickle.loads(stored), numbered)


@pytest.mark.parametrize("name", [name for name in WRAPPERS if name not in LEFT_OUT])
def test_a_donated_batch_of_states(name):
    """Under vmap and jit, with the state donated, it keeps its form."""
    wrapper = WRAPPERS[name]
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), PARAMS)

    def update(grads, state):
        with jax.numpy_dtype_promotion("standard"):  # Optax itself mixes dtypes here
            return wrapper.update(grads, state, PARAMS, value=jnp.float32(1.0))

    step = jax.jit(jax.vmap(update), donate_argnums=1)
    state = jax.vmap(wrapper.init)(batch)
    before = kinds(state)
    step.lower(batch, state)  # warns of what cannot be donated
    updates, new = jax.eval_shape(step, batch, state)
    assert kinds(new) == before and kinds(updates) == kinds(batch)
    if name in COMPILED:
        updates, state = step(batch, state)
        assert kinds(state) == before and kinds(updates) == kinds(batch)


def test_states_of_others_are_refused(states):
    spike = clipjax.skip_on_spike(optax.identity(), window=8)
    alone = {
        "skip_nonfinite": WRAPPERS["skip_nonfinite"],
        "skip_on_spike": WRAPPERS["skip_on_spike"],
        "periodic_reset": WRAPPERS["periodic_reset"],
        "error_feedback": clipjax.error_feedback(LEARNT),
        "with an optimizer": WRAPPERS["spam_clip"],
    }
    foreign = [None, (), {}, [], 1.0, PARAMS, optax.EmptyState(), LEARNT]
    foreign += [optax.adam(0.1).init(PARAMS), spike.init(PARAMS), *states.values()]
    for name, wrapper in alone.items():
        own = wrapper.init(PARAMS)
        untyped = [flax.serialization.to_state_dict(own), tuple(own), list(own)]
        for wrong in (*foreign, *untyped):
            if any(wrong is state for state in states.values()) and type(wrong) is type(
                own
            ):
                continue  # its own, or another's that only what is inside can tell

            def update(grads, wrapper=wrapper, wrong=wrong):
                return wrapper.update(grads, wrong, PARAMS, value=1.0)

            for attempt in (update, lambda grads: jax.eval_shape(update, grads)):
                with pytest.raises(
                    ValueError, match="state is not that of|needs the st"
                ):
                    attempt(PARAMS)
                    pytest.fail(f"{name} took {type(wrong)}")
    # A state that is traced as well.
    for wrong in (LEARNT.init(PARAMS), {"a": jnp.ones(2)}, jnp.ones(2)):
        with pytest.raises(ValueError, match="state is not that of"):
            jax.eval_shape(lambda s: alone["skip_nonfinite"].update(PARAMS, s), wrong)


def test_another_name_is_another_state():
    state = clipjax.skip_nonfinite(LEARNT, name="other").init(PARAMS)
    with pytest.raises(
        ValueError, match="skip_names should be .*mine.* and is .*other"
    ):
        clipjax.skip_nonfinite(LEARNT, name="mine").update(PARAMS, state)
