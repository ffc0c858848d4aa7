"""Five inputs, and what Optax's and clipjax's clips make of them.

    python -m benchmarks.beside_optax

prints the table of the README. Every cell is computed by the two libraries that are
installed; `tests/test_readme_claims.py` compares the README with it. It needs the
extra ``bench``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import clipjax
from benchmarks.per_example.models import single_layer
from benchmarks.per_example.peers import ours, plain, vmap_and_optax

DEVICES = 8
ISSUE = "https://github.com/google-deepmind/optax/issues"
Clip = optax.GradientTransformation


def updated(clip: Clip, grads: Any, params: Any = None) -> tuple[Any, Any]:
    """Clip once, from a fresh state."""
    return clip.update(grads, clip.init(grads), params)


def the_norm(library: Any) -> str:
    """Return what the state of a clip says after a gradient of norm 5."""
    _, state = updated(library.clip_by_global_norm(1.0), jnp.array([3.0, 4.0]))
    if not jax.tree.leaves(state):
        return f"not kept: the state is `{state}`"
    metrics = clipjax.metrics(state)
    before, after = (metrics[f"clip/grad_norm_{at}"] for at in ("raw", "clipped"))
    return f"in the state: {before:.1f} before, {after:.1f} after, by `clipjax.metrics`"


def low_precision(library: Any) -> str:
    """Return a clipped float16 gradient, and the norm of many clipped bfloat16 ones."""
    clip = library.clip_by_global_norm(1.0)
    half, _ = updated(clip, jnp.array([300.0, 400.0], jnp.float16))
    leaves, _ = updated(clip, [jnp.ones(1, jnp.bfloat16)] * 1000)
    norm = np.linalg.norm([float(leaf[0]) for leaf in leaves])
    return f"`{half}`; norm {norm:.2f}"


def nan_in_one_leaf(library: Any) -> str:
    """Return what is left of the other leaf, and who says where the NaN was."""
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([jnp.nan])}
    clip = library.clip_by_global_norm(1.0)
    by_default, state = updated(clip, grads)
    spread = "both leaves NaN" if jnp.isnan(by_default["a"]).all() else "one leaf NaN"
    if not jax.tree.leaves(state):
        return f"{spread}, not reported"
    dropped, state = updated(clipjax.clip_by(1.0, nonfinite=clipjax.guards.drop), grads)
    return (
        f"{spread}, counted, leaf `{clipjax.nonfinite_path(state, grads)}` named; "
        f"`guards.drop` gives `{dropped['a']}` and `{dropped['b']}`"
    )


def shards(library: Any) -> str:
    """Return the norm of a gradient that is clipped to 1 inside shard_map."""
    mesh = jax.make_mesh((DEVICES,), ("x",), axis_types=(AxisType.Auto,))
    clip = library.clip_by_global_norm(1.0)
    step = lambda grads, params: updated(clip, grads, params)[0]  # noqa: E731
    spread = jax.shard_map(step, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    found = np.asarray(jax.jit(spread)(jnp.arange(1.0, 17.0), jnp.zeros(16)))
    return f"norm {np.linalg.norm(found):.2f}"


def per_example(library: Any) -> str:
    """Return the temporary memory of clipping each example, as XLA plans it."""
    model = single_layer(256)

    def temporary(way: Callable[..., Any]) -> int:
        step = jax.jit(way(model.loss, len(model.batch)))
        analysis = step.lower((model.params, *model.batch)).compile().memory_analysis()
        assert analysis is not None  # for CPUs there is one
        return analysis.temp_size_in_bytes

    way = {optax: vmap_and_optax, clipjax: ours}[library]
    return f"{temporary(way) / temporary(plain):.0f} times a plain gradient's memory"


ROWS = {
    f"the gradient's norm ([#326]({ISSUE}/326))": the_norm,
    "float16 `[300, 400]`; 1,000 bfloat16 leaves of norm 1; clip to 1": low_precision,
    "a NaN in one of two leaves": nan_in_one_leaf,
    f"`shard_map` over {DEVICES} devices, clip to 1": shards,
    f"256 examples, each clipped, 1024 x 1024 layer ([#50]({ISSUE}/50))": per_example,
}


def table() -> list[str]:
    """Return the lines of the table."""
    rows = [f"| {name} | {row(optax)} | {row(clipjax)} |" for name, row in ROWS.items()]
    return [f"| | Optax {optax.__version__} | clipjax |", "|---|---|---|", *rows]


def main() -> None:
    """Print the table, with several devices made of one CPU."""
    jax.config.update("jax_num_cpu_devices", DEVICES)
    print("\n".join(table()))


if __name__ == "__main__":
    main()
