"""One of two processes that clip together: python two_processes.py PORT RANK.

Prints what it has seen as JSON.
"""

import json
import os
import sys

if __name__ == "__main__":  # before JAX is imported
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracle import random_tree

import clipjax
import clipjax.privacy

SPECS = {"a": PartitionSpec("x"), "b": PartitionSpec(), "c": PartitionSpec(None, "x")}
SHAPES = {"a": (8, 3), "b": (4,), "c": (3, 8)}


def steps_on(devices):
    """Takes three steps by each way, the last with NaN on the last device only."""
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Auto,), devices=devices)
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    clip = clipjax.skip_nonfinite(clipjax.clip_by(clipjax.thresholds.ema(0.9)))
    noise = clipjax.privacy.gaussian_noise(1.0, 1.0, jax.random.key(0))

    def put(tree):
        return {
            name: jax.make_array_from_callback(
                leaf.shape, shardings[name], lambda index, leaf=leaf: leaf[index]
            )
            for name, leaf in jax.tree.map(np.asarray, tree).items()
        }

    # Where the steps return it, which are then compiled once.
    everywhere = NamedSharding(mesh, PartitionSpec())
    start, first_noise = jax.jit(
        lambda: (clip.init(random_tree(0, SHAPES)), noise.init(None)),
        out_shardings=everywhere,
    )()
    replicated = jax.tree.map(lambda _: PartitionSpec(), start)
    where = {"in_specs": (SPECS, replicated, SPECS), "out_specs": (SPECS, replicated)}
    ways = {
        "jit": (start, jax.jit(clip.update)),
        "shard_map": (start, jax.jit(jax.shard_map(clip.update, mesh=mesh, **where))),
        "noise": (first_noise, jax.jit(noise.update)),
    }
    found = {}
    for way, (state, update) in ways.items():
        for seed in range(1, 4):
            grads = random_tree(seed, SHAPES, size=10.0**seed)
            if seed == 3:
                grads["a"] = grads["a"].at[7, 0].set(np.nan)
            updates, state = update(put(grads), state, put(grads))
            found[f"{way}-{seed}"] = {
                "state": [
                    np.asarray(leaf.addressable_data(0)).tolist()
                    for leaf in jax.tree.leaves(state)
                ],
                "updates": {
                    f"{name}-{shard.index}": np.asarray(shard.data).tolist()
                    for name, leaf in updates.items()
                    for shard in leaf.addressable_shards
                },
            }
    return found


def main(port, rank):
    """Joins the other process."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank, initialization_timeout=60)
    print(json.dumps(steps_on(jax.devices())))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
