"""Answers of other packages, stored in golden/, and how clips are run on them."""

import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"


@functools.cache
def load(name):
    """Gives the stored answers, and the script that makes their inputs."""
    stored = json.loads((GOLDEN / f"{name}.json").read_text())
    script = GOLDEN / stored["script"]
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return stored, module


def stacked(steps):
    """Makes one tree of a list of trees, with the steps along the first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *steps)


def rows(tree):
    """Gives one row per step, of all the leaves."""
    return np.concatenate(
        [np.asarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)],
        axis=1,
    )


@functools.partial(jax.jit, static_argnums=0)
def replay(make_clip, steps, *settings):
    """Clips step after step; gives the updates and the states after each of them."""
    clip = make_clip(*settings)

    def step(state, grads):
        updates, state = clip.update(grads, state)
        return state, (updates, state)

    first = jax.tree.map(lambda leaf: leaf[0], steps)
    return jax.lax.scan(step, clip.init(first), steps)[1]


def train(step, start, gradients):
    """Runs a training step on each gradient; gives what it reports."""
    scan = jax.jit(functools.partial(jax.lax.scan, step))
    return scan(jax.tree.map(jnp.asarray, start), stacked(gradients))[1]


def factors(info):
    """Gives what each block was multiplied by: 1 where it was zero."""
    before, after = info.block_norms_before, info.block_norms_after
    return jnp.where(before > 0, after / jnp.where(before > 0, before, 1), 1)
