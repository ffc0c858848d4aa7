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


def gradients(sizes):
    """Makes gradients of these norms, stacked; all of them have one direction."""
    sizes = np.asarray(sizes, np.float32)
    with np.errstate(invalid="ignore"):  # infinity times zero
        return jax.tree.map(lambda leaf: np.multiply.outer(sizes, leaf), DIRECTION)


def gradient(size):
    """Makes a gradient of this norm."""
    return jax.tree.map(lambda leaf: leaf[0], gradients([size]))


LONGEST = 1200


def player(clip):
    """Compiles runs of any number of steps: gives the updates, and the last state."""

    @jax.jit
    def run(state, batches, steps):
        def step(i, carry):
            state, found = carry
            updates, state = clip.update(jax.tree.map(lambda b: b[i], batches), state)
            return state, jax.tree.map(lambda f, u: f.at[i].set(u), found, updates)

        start = state, jax.tree.map(jnp.zeros_like, batches)
        return jax.lax.fori_loop(0, steps, step, start)

    def play(gradients, state=None):
        steps = len(gradients["scale"])
        batches = jax.tree.map(
            lambda leaf: np.resize(leaf, (LONGEST, *leaf.shape[1:])), gradients
        )
        state = clip.init(PARAMS) if state is None else state
        state, found = run(state, batches, steps)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:steps], found), state

    return play


@functools.cache
def compiled(name):
    """Compiles a clip of the table for all tests."""
    return player(EVERY_CLIP[name]())


def play(clip, sizes, state=None):
    """Runs a player, or a clip of the table: the updates' norms, and the last state."""
    player = compiled(clip) if isinstance(clip, str) else clip
    updates, state = player(gradients(sizes), state)
    return np.array([norm(step) for step in zip(*updates.values(), strict=True)]), state


def clip_states(state):
    is_clip = lambda node: isinstance(node, clipjax.ClipState)  # noqa: E731
    return [n for n in jax.tree.leaves(state, is_leaf=is_clip) if is_clip(n)]


def memory(state):
    """Gives all that a clip has learnt, the momentum of acclip included."""
    found = [s.clip_memory for s in clip_states(state)]
    return found, getattr(state, "inner_state", ())
