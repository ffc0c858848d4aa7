"""One of two processes that clip together: python two_processes.py PORT RANK.

Prints what it has seen as JSON. Rank -1 does the same alone, on as many devices.
"""

import json
import os
import sys

port, rank = sys.argv[1], int(sys.argv[2])
devices = 4 if rank < 0 else 2
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"

import jax  # noqa: E402

if rank >= 0:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank, initialization_timeout=60)

import numpy as np  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402
from oracle import random_tree  # noqa: E402

import clipjax  # noqa: E402
import clipjax.privacy  # noqa: E402

SPECS = {"a": PartitionSpec("x"), "b": PartitionSpec(), "c": PartitionSpec(None, "x")}
SHAPES = {"a": (8, 3), "b": (4,), "c": (3, 8)}


def main():
    """Takes three steps by each way, the last with NaN in the last process only."""
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Auto,))
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    clip = clipjax.skip_nonfinite(clipjax.clip_by(clipjax.thresholds.ema(0.9)))

    def put(tree):
        return {
            name: jax.make_array_from_callback(
                leaf.shape, shardings[name], lambda index, leaf=leaf: leaf[index]
            )
            for name, leaf in jax.tree.map(np.asarray, tree).items()
        }

    start = clip.init(random_tree(0, SHAPES))
    replicated = jax.tree.map(lambda _: PartitionSpec(), start)
    where = {"in_specs": (SPECS, replicated, SPECS), "out_specs": (SPECS, replicated)}
    noise = clipjax.privacy.gaussian_noise(1.0, 1.0, jax.random.key(0))
    ways = {
        "jit": (start, jax.jit(clip.update)),
        "shard_map": (start, jax.jit(jax.shard_map(clip.update, mesh=mesh, **where))),
        "noise": (noise.init(None), jax.jit(noise.update)),
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
    print(json.dumps(found))


if __name__ == "__main__":
    main()
