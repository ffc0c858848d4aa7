"""Every way to lay a gradient tree out on eight devices, and how to run a clip there.

A tree of `SHAPES` has a leaf of each kind: replicated, split along one mesh axis, along
both (fully sharded), and along both on one array axis. The first mesh axis holds
replicas, as in hybrid sharding. All shards have one shape: XLA compiles their loops
once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracle import assert_close, bits, norm, random_tree, wide

import clipjax
from clipjax import guards, norms
from clipjax.thresholds.entries import AverageMaximum

SHAPES = {
    "full": (8, 6),
    "pair": (16, 3),
    "replicated": (4,),
    "rows": (8, 3),
}
SPECS = {
    "full": PartitionSpec("data", "model"),
    "pair": PartitionSpec(("data", "model")),
    "replicated": PartitionSpec(),
    "rows": PartitionSpec("data"),
}
# In shard_map, units of a leaf must not lie on different devices.
UNIT_SPECS = SPECS | {"full": PartitionSpec(("data", "model"))}

# One clip of each structure that devices have a part in: sums and maxima over leaves,
# units, entries, memories of blocks, of leaves' entries, and of an optimizer. Groups,
# other norms and guards are in `test_contracts_mesh.py`.
CLIPS = {
    "whole": clipjax.clip_by_global_norm,
    "leaf": clipjax.clip_by_leaf_norm,
    "lp": lambda c, **k: clipjax.clip_by(c, norm=norms.lp(3), **k),
    "drop": lambda c, **k: clipjax.clip_by(c, nonfinite=guards.drop, **k),
    "units": lambda c, **k: clipjax.adaptive_grad_clip(c / 10, **k),
    "stand-in": lambda c, **k: clipjax.clippy(c / 2, **k),
    "learnt": lambda c, **k: clipjax.adagc(c, warmup_steps=2, **k),
    "entries": clipjax.clip_by_value,
    "range": lambda c, **k: clipjax.quantization_clip(jnp.int8, 64.0, **k),
    "maxima": lambda c, **k: clipjax.clip_entries(AverageMaximum(0.9), **k),
    "optimizer": lambda c, **k: clipjax.stable_update_clip(**k),
    "spectral": clipjax.spectral_clamp,
}
THRESHOLD = 1.0


def make(name, **settings):
    """Builds one of `CLIPS`."""
    return CLIPS[name](THRESHOLD, **settings)


def mesh(kind):
    axis_type = AxisType.Explicit if kind == "explicit" else AxisType.Auto
    return jax.make_mesh((2, 2, 2), ("replica", "data", "model"), (axis_type,) * 3)


def specs_of(tree, specs):
    """Splits what has the name and shape of a leaf as that leaf is split."""

    def spec(path, leaf):
        names = [str(getattr(key, "key", "")) for key in path]
        name = names[-1] if names else ""
        is_alike = name in SHAPES and np.shape(leaf) == SHAPES[name]
        return specs[name] if is_alike else PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec, tree)


class OneDevice:
    """What clips make of three steps on one device: the numbers to compare with.

    Attributes:
        params: the parameters.
        results: gives from a clip's name the updates and state after each step.
    """

    def __init__(self, shapes, bad):
        self._shapes, self._bad = shapes, bad
        self.params = random_tree(0, shapes, size=3.0)
        self.results = functools.cache(self._results)

    def gradients(self):
        """Makes three, for donation: short, long, and with NaN on one shard."""
        steps = [
            random_tree(seed, self._shapes, size=3.0 * 10.0**seed) for seed in (1, 2, 3)
        ]
        steps[2][self._bad] = steps[2][self._bad].at[5, 1].set(jnp.nan)
        return steps

    def _results(self, name):
        clip = make(name)
        update, state, results = jax.jit(clip.update), clip.init(self.params), []
        for grads in self.gradients():
            with jax.numpy_dtype_promotion("standard"):  # Adam itself mixes dtypes
                updates, state = update(grads, state, self.params)
            results.append((updates, state))
        return results


def assert_same_numbers(updates, expected):
    """Compares to 1e-6 of the norm of what is finite."""
    finite = jax.tree.map(lambda leaf: np.nan_to_num(wide(leaf)), expected)
    atol = 1e-6 * norm(finite)
    assert_close(updates, expected, rtol=0, atol=atol)


class Placed:
    """A clip traced, and at first use compiled, for a placement; gradients are donated.

    Attributes:
        state: the state before the next step.
        compiled: the executable.
    """

    def __init__(self, clip, kind, params, specs=SPECS):
        self._mesh = mesh(kind)
        self.state = clip.init(params)
        kinds = (specs, specs_of(self.state, specs))
        shardings = jax.tree.map(lambda spec: NamedSharding(self._mesh, spec), kinds)
        self._put = functools.partial(jax.device_put, device=shardings[0])
        with jax.set_mesh(self._mesh):
            self._params = self._put(params)
            self.state = jax.device_put(self.state, shardings[1])
            update = clip.update
            if kind == "shard_map":
                where = {"in_specs": (*kinds, specs), "out_specs": kinds}
                update = jax.shard_map(update, mesh=self._mesh, **where)
            step = jax.jit(update, donate_argnums=0, out_shardings=shardings)
            args = (self._put(params), self.state, self._params)
            with jax.numpy_dtype_promotion("standard"):  # Adam itself mixes dtypes
                self._lowered = step.lower(*args)

    @functools.cached_property
    def compiled(self):
        return self._lowered.compile()

    def step(self, grads):
        """Takes one step, and checks that devices that share a value agree on it."""
        with jax.set_mesh(self._mesh):
            args = (self._put(grads), self.state, self._params)
            updates, self.state = self.compiled(*args)
        assert_devices_agree((updates, self.state))
        return updates


def assert_devices_agree(tree):
    """Compares to the bit what lies on several devices."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        seen = {}
        for shard in leaf.addressable_shards:
            seen.setdefault(str(shard.index), set()).add(bits(shard.data))
        assert all(len(values) == 1 for values in seen.values()), path
