"""Every method and part by name, and the dozen clips that promises are walked over.

A new method is one line here: `test_contracts_form.py` traces every one of them, and
checks its form. What a clip does with numbers is one test over `REPRESENTATIVES`, which
have one clip of each structure, compiled once with the threshold as an argument.
"""

import contextlib
import functools
from functools import partial

import jax
import jax.numpy as jnp
import optax
from oracle import random_tree

import clipjax
from clipjax import granularity, guards, norms, rules, spectral, thresholds

SHAPES = {"dense": {"bias": (2,), "kernel": (3, 2)}, "scale": ()}
NARROW = (
    "float16",
    "bfloat16",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float4_e2m1fn",
)
LEAF_COUNT = 3


def by_rank(path, leaf):
    """Labels a leaf by its rank, so that the label exists on any tree."""
    del path
    return "matrices" if leaf.ndim >= 2 else "vectors"


RECIPES = {
    "clip_by_value": partial(clipjax.clip_by_value, 0.2),
    "clip_by_global_norm": partial(clipjax.clip_by_global_norm, 1.0),
    "clip_by_leaf_norm": partial(clipjax.clip_by_leaf_norm, 1.0),
    "clip_by_group_norm": partial(
        clipjax.clip_by_group_norm, by_rank, {"matrices": 1.0, "vectors": None}
    ),
    "clip_by_block_rms": partial(clipjax.clip_by_block_rms, 0.5),
    "adaptive_grad_clip": partial(clipjax.adaptive_grad_clip, 0.1),
    "soft_clip_by_global_norm": partial(clipjax.soft_clip_by_global_norm, 1.0),
    "normalise_by_global_norm": partial(clipjax.normalise_by_global_norm, 1.0),
    "torch_clip_grad_norm": partial(clipjax.torch_clip_grad_norm, 1.0),
    "scale_by_l0_l1": partial(clipjax.scale_by_l0_l1, 2.0, 1.0),
    "autoclip": partial(clipjax.autoclip, 50.0, 4),
    "quantile_clip": partial(clipjax.quantile_clip, 0.5, 3.0, 4, minimum_history=2),
    "zclip": partial(clipjax.zclip, warmup_steps=2),
    "clip_update_by_history": partial(clipjax.clip_update_by_history, 4, 0.5),
    "norm_growth_limiter": clipjax.norm_growth_limiter,
    "adagc": partial(clipjax.adagc, warmup_steps=2),
    "aggc": partial(clipjax.aggc, by_rank, alpha_high=0.7),
    "gradient_stabilizer": clipjax.gradient_stabilizer,
    "larc_clip": partial(clipjax.larc_clip, 0.1),
    "clippy": clipjax.clippy,
    "cclip": partial(clipjax.cclip, 0.2),
    "quantization_clip": partial(clipjax.quantization_clip, jnp.int8, 64.0),
    "two_sided_clip": partial(clipjax.two_sided_clip, 1e-4, 1.0),
    "delta_clip": partial(clipjax.delta_clip, 1.0),
    "spectral_clip": partial(clipjax.spectral_clip, 0.3),
    "spectral_clamp": partial(clipjax.spectral_clamp, 0.3),
    "spectral_soft_clip": partial(clipjax.spectral_soft_clip, 0.3),
}

# Recipes that put a clip and an optimizer's memory together: not all is as with a clip.
COMPOUNDS = {
    "stable_update_clip": clipjax.stable_update_clip,
    "spam_clip": partial(clipjax.spam_clip, theta=2.0, warmup_steps=2),
    "clip_by_momentum": partial(clipjax.clip_by_momentum, 5.0),
    "stable_spam_clip": clipjax.stable_spam_clip,
    "acclip": clipjax.acclip,
}

NORMS = {
    "l1": lambda: norms.l1,
    "l2": lambda: norms.l2,
    "linf": lambda: norms.linf,
    "rms": lambda: norms.rms,
    "lp": lambda: norms.lp(3),
}

RULES = {
    "hard": lambda: rules.hard,
    "hard_epsilon": lambda: rules.Hard(epsilon=1e-6),
    "soft": lambda: rules.soft,
    "tanh": lambda: rules.tanh,
    "sqrt": lambda: rules.sqrt,
    "normalise": lambda: rules.normalise,
    "band": lambda: rules.band(0.5),
    "skip": lambda: rules.skip,
    "floored": lambda: rules.floored(0.01),
    "automatic": lambda: rules.automatic(),
    "psac": lambda: rules.psac(),
    "global_adapt": lambda: rules.global_adapt(50.0),
}

GRANULARITIES = {
    "unit": lambda: granularity.unit(),
    "unit_axes": lambda: granularity.unit({"*kernel": 1}),
    "leaf": lambda: granularity.leaf(),
    "leaf_stacked": lambda: granularity.leaf({"*kernel": 1}),
    "group": lambda: granularity.group(by_rank),
    "whole": lambda: granularity.whole(),
}

THRESHOLDS = {
    "constant": lambda: thresholds.constant(0.7),
    "array": lambda: jnp.asarray(0.7),
    "schedule": lambda: optax.linear_schedule(1.0, 0.1, 3),
    "minimum": lambda: thresholds.minimum(0.7, optax.linear_schedule(1.0, 0.1, 3)),
    "maximum": lambda: thresholds.maximum(0.1, optax.linear_schedule(1.0, 0.1, 3)),
    "scaled": lambda: thresholds.scaled(optax.linear_schedule(1.0, 0.1, 3), 2.0),
    "after": lambda: thresholds.after(2, 0.3),
    "warmup_statistic": lambda: thresholds.warmup_statistic(2, 0.5, cap=2.0),
    "relative_to_params": lambda: thresholds.relative_to_params(0.3),
    "relative_to_learning_rate": lambda: thresholds.relative_to_learning_rate(0.1, 0.2),
    "quantile": lambda: thresholds.quantile(0.5, 4),
    "mean_plus_std": lambda: thresholds.mean_plus_std(4, 0.5),
    "ema": lambda: thresholds.ema(1.5),
    "streaming_quantile": lambda: thresholds.streaming_quantile(0.5),
    "zscore": lambda: thresholds.zscore(1.0, warmup=2),
    "log_mean_plus_std": lambda: thresholds.log_mean_plus_std(0.5, minimum_history=2),
    "moment_ratio": lambda: thresholds.moment_ratio(),
    "running_extremum": lambda: thresholds.running_extremum(),
    "relative_to_previous": lambda: thresholds.relative_to_previous(),
    "estimated_smoothness": lambda: thresholds.estimated_smoothness(cap=1.0),
}

GUARDS = {
    "propagate": lambda: guards.propagate,
    "zero": lambda: guards.zero,
    "drop": lambda: guards.drop,
}

METHODS = {
    "power_iteration": lambda: spectral.PowerIteration(),
    "svd": lambda: spectral.SVD(),
    "newton_schulz": lambda: spectral.NewtonSchulz(),
}

# Fits trees of SHAPES only.
TABLE = {"dense": {"bias": None, "kernel": 0.4}, "scale": 0.3}


def _clips():
    clips = {f"recipe-{name}": recipe for name, recipe in RECIPES.items()}

    def add(slot, name, **parts):
        clips[f"{slot}-{name}"] = lambda: clipjax.clip_by(
            **{key: make() for key, make in parts.items()}
        )

    for name, norm in NORMS.items():
        leaf = granularity.leaf
        add("norm", name, threshold=lambda: 0.3, granularity=leaf, norm=norm)
    for name, rule in RULES.items():
        add("rule", name, threshold=lambda: 0.3, rule=rule)
    for name, part in GRANULARITIES.items():
        add("granularity", name, threshold=lambda: 0.3, granularity=part)
    for name, threshold in THRESHOLDS.items():
        add("threshold", name, threshold=threshold)
    for name, guard in GUARDS.items():
        add("guard", name, threshold=lambda: 0.3, nonfinite=guard)
    learnt = THRESHOLDS["warmup_statistic"]
    for part in ("leaf", "unit"):
        name = f"learnt_per_{part}"
        add("threshold", name, threshold=learnt, granularity=GRANULARITIES[part])
    return clips


CLIPS = _clips() | {
    "threshold-table": lambda: clipjax.clip_by_leaf_norm(TABLE),
    "entries-soft": lambda: clipjax.clip_entries(0.3, rule=rules.soft),
    "entries-drop": lambda: clipjax.clip_entries(0.3, nonfinite=guards.drop),
    "entries-unreported": lambda: clipjax.clip_by_value(0.3, report=False),
    "spectral-drop": lambda: spectral.clip_singular_values(0.3, nonfinite=guards.drop),
}

# Need the params in update; the others must do without.
NEED_PARAMS = (
    "recipe-adaptive_grad_clip",
    "recipe-larc_clip",
    "recipe-clippy",
    "threshold-relative_to_params",
    "threshold-estimated_smoothness",
)
# The one recipe that is a chain, of a clip and a scale.
CHAIN = "recipe-scale_by_l0_l1"


def _learnt(cap, granularity, guard=guards.propagate):
    """Learns from the norms, and clips to the cap from the first step on."""
    source = thresholds.quantile(0.5, 4, factor=1e6, cap=cap)
    return clipjax.clip_by(source, granularity=granularity, nonfinite=guard)


# One clip of each structure, made from a threshold: granularity x memory x needs the
# parameters x guard. With hard rules, so that one threshold says what comes out.
REPRESENTATIVES = {
    "whole": clipjax.clip_by_global_norm,
    "leaf": clipjax.clip_by_leaf_norm,
    "stacked": lambda c: clipjax.clip_by_leaf_norm(c, stacked={"*kernel": 1}),
    "group": lambda c: clipjax.clip_by(c, granularity=granularity.group(by_rank)),
    "unit": lambda c: clipjax.clip_by(c, granularity=granularity.unit()),
    "rms": clipjax.clip_by_block_rms,
    "linf": lambda c: clipjax.clip_by(c, norm=norms.linf),
    "zero": lambda c: clipjax.clip_by(c, nonfinite=guards.zero),
    "drop": lambda c: clipjax.clip_by(c, nonfinite=guards.drop),
    "params": clipjax.adaptive_grad_clip,
    "learnt": lambda c: _learnt(c, granularity.whole()),
    "learnt-leaf": lambda c: _learnt(c, granularity.leaf(), guards.drop),
    "learnt-unit": lambda c: _learnt(c, granularity.unit()),
    "entries": clipjax.clip_by_value,
    "entries-drop": lambda c: clipjax.clip_entries(c, nonfinite=guards.drop),
    "entries-unreported": lambda c: clipjax.clip_by_value(c, report=False),
    "spectral": clipjax.spectral_clip,
    "svd": clipjax.spectral_clamp,
}
# Those that have a memory; those that have no blocks.
LEARNT = ("learnt", "learnt-leaf", "learnt-unit")
ENTRIES = ("entries", "entries-drop", "entries-unreported")


@contextlib.contextmanager
def about(name):
    """Names a clip in the report of a failure, where a test loops over many."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"This is about {name}.")
        raise


@functools.cache
def representative(name):
    """Compiles an update once for all tests of a process, threshold last."""
    make = REPRESENTATIVES[name]
    return jax.jit(
        lambda grads, state, params, threshold: make(threshold).update(
            grads, state, params
        )
    )


def run(name, grads, threshold, state=None, params=None):
    """Takes one compiled step of a representative; a state of None is a fresh one."""
    params = parameters() if params is None else params
    state = REPRESENTATIVES[name](1.0).init(params) if state is None else state
    return representative(name)(grads, state, params, jnp.float32(threshold))


@functools.cache
def clip(key):
    """Builds a clip of the catalogue once."""
    return CLIPS[key]()


@functools.cache
def jitted(key):
    """Compiles its update once for all tests of a process."""
    return jax.jit(clip(key).update)


def clip_parts(key):
    """Gives the parts of a clip, of the one inside a chain too."""
    if key == CHAIN:
        return clipjax.soft_clip_by_global_norm(2.0).clipper
    return clip(key).clipper


def parameters(dtype=jnp.float32):
    """Makes the parameters that most tests use."""
    return random_tree(0, SHAPES, dtype, size=3.0)


def gradients(seed=1, dtype=jnp.float32, size=5.0):
    """Makes gradients of the same structure, with an overall norm of ``size``."""
    return random_tree(seed, SHAPES, dtype, size)


def clip_state(state):
    """Finds the one clip's own state, also in a chain."""
    (found,) = clip_states(state)
    return found


def clip_states(state):
    """Finds the states of all clips."""
    is_clip = lambda node: isinstance(node, clipjax.ClipState)  # noqa: E731
    return [n for n in jax.tree.leaves(state, is_leaf=is_clip) if is_clip(n)]
