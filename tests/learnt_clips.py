"""Clips that learn, each compiled once, and what the tests of their traps play."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from oracle import norm

import clipjax
from clipjax import thresholds

partial = functools.partial
SOURCES = {
    "quantile": partial(thresholds.quantile, 0.9, 50),
    "ema": partial(thresholds.ema, 2.0),
    "ema-late": partial(thresholds.ema, 2.0, minimum_history=10),
    "streaming_quantile": partial(thresholds.streaming_quantile, 0.9),
    "maximum": partial(thresholds.running_extremum, True, 1.5),
    "minimum": partial(thresholds.running_extremum, False, 3.0),
    "warmup-maximum": partial(thresholds.warmup_statistic, 20, 1.5),
    "warmup-quantile": partial(thresholds.warmup_statistic, 20, 1.5, quantile=0.9),
}
uncapped = partial(clipjax.zclip, max_grad_norm=None)
short_warmup = partial(clipjax.adagc, lambda_abs=2.0, warmup_steps=10)
RECIPES = {
    "autoclip": partial(clipjax.autoclip, window=50),
    "quantile_clip": partial(clipjax.quantile_clip, window=50, minimum_history=10),
    "zclip": uncapped,
    "zclip-skip": partial(uncapped, skip_update_on_spike=True),
    "clip_update_by_history": clipjax.clip_update_by_history,
    "norm_growth_limiter": clipjax.norm_growth_limiter,
    "adagc-raw": short_warmup,
    "adagc-clipped": partial(short_warmup, minimum_of="clipped"),
    "aggc": partial(clipjax.aggc, alpha_high=1.2),
    "gradient_stabilizer": clipjax.gradient_stabilizer,
    "stable_spam_clip": clipjax.stable_spam_clip,
    "acclip": clipjax.acclip,
}


def lenient(clip):
    """Lets Optax's Adam mix dtypes."""

    def update(*args, **extra):
        with jax.numpy_dtype_promotion("standard"):
            return clip.update(*args, **extra)

    return optax.GradientTransformationExtraArgs(clip.init, update)


# Their memory is Adam's, and Adam's to protect: wrap them in skip_nonfinite.
WITH_ADAM = {
    "spam_clip": lambda: lenient(clipjax.spam_clip()),
    "stable_update_clip": lambda: lenient(clipjax.stable_update_clip()),
}
CLIPS = {
    name: lambda source=source: clipjax.clip_by(source())
    for name, source in SOURCES.items()
} | RECIPES
EVERY_CLIP = CLIPS | WITH_ADAM
PARAMS = {"scale": jnp.zeros(()), "w": jnp.zeros(3)}
DIRECTION = {"scale": np.float32(0.6), "w": np.float32([0.0, -0.48, 0.64])}


def normal(steps, seed=0, spread=0.1):
    """Makes log-normal norms about 1."""
    return np.exp(spread * np.random.default_rng(seed).standard_normal(steps))


def gradient(size):
    """Makes a gradient of this norm; all of them have one direction."""
    with np.errstate(invalid="ignore"):  # infinity times zero
        return jax.tree.map(lambda leaf: np.float32(size) * leaf, DIRECTION)


@functools.cache
def compiled(name):
    """Gives the first state of a clip, and its update, compiled for all tests."""
    clip = EVERY_CLIP[name]()
    return clip.init(PARAMS), jax.jit(clip.update)


def play(clip, sizes, state=None):
    """Runs a clip, or one of the table: the updates' norms, and the last state."""
    if isinstance(clip, str):
        first, update = compiled(clip)
    else:
        first, update = clip.init(PARAMS), jax.jit(clip.update)
    state, lengths = first if state is None else state, []
    for size in sizes:
        updates, state = update(gradient(size), state)
        lengths.append(updates)
    return np.array([norm(updates) for updates in lengths]), state


def clip_states(state):
    is_clip = lambda node: isinstance(node, clipjax.ClipState)  # noqa: E731
    return [n for n in jax.tree.leaves(state, is_leaf=is_clip) if is_clip(n)]


def memory(state):
    """Gives all that a clip has learnt, the momentum of acclip included."""
    found = [s.clip_memory for s in clip_states(state)]
    return found, getattr(state, "inner_state", ())
