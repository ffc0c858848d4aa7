"""Every recipe's numbers on the default device, against the CPU's."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import clipjax

from ..recipes import build

Shapes: TypeAlias = dict[str, tuple[int, ...]]
SHAPES: Shapes = {
    "bias": (64,),
    "conv": (3, 3, 8, 16),
    "dense": (32, 64),
    "embedding": (5000, 48),
    "scale": (),
}
SMALL_SHAPES: Shapes = {"bias": (16,), "dense": (16, 8)}
# Norms of the gradients of the steps, in turn; with inf and NaN in one entry each.
NORMS = (1.0, 30.0, 0.0, 1e-25, float("inf"), float("nan"), 1e20, 3.0)
# In bfloat16 two ulps of a leaf's largest entry: one for the result, and one for an
# optimizer's moment that a recipe keeps in bfloat16.
BARS = {"float32": 1e-5, "bfloat16": 2.0**-6}
# Where the method itself loses digits in float32. The numbers in parentheses are the
# differences between two ways to run it on one CPU, jitted or not.
WIDER = {
    # The exponential of a mean of logarithms, which are around -60 (8e-6).
    "quantization_clip": 5e-5,
    # Adam's bias correction, 1 - 0.999^t at small t (1e-5).
    "spam_clip": 5e-5,
    # Its twelve iterations do not converge at norm 1e20 (6e-4).
    "spectral_soft_clip": 1e-2,
}
BAD_LEAF, BAD_ENTRY = "dense", (5, 7)
TINY = float(np.finfo(np.float32).tiny)


def trees(shapes: Shapes, dtype: str) -> tuple[Any, list[Any]]:
    """Return parameters and the gradients of all steps, as NumPy arrays."""
    random = np.random.default_rng(0)

    def tree(norm: float) -> Any:
        leaves = {name: random.normal(size=shape) for name, shape in shapes.items()}
        now = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in leaves.values()))
        scale = (norm if np.isfinite(norm) else 1.0) / now
        leaves = {name: np.asarray(leaf * scale) for name, leaf in leaves.items()}
        if not np.isfinite(norm):
            leaves[BAD_LEAF][BAD_ENTRY] = norm
        return {name: leaf.astype(jnp.dtype(dtype)) for name, leaf in leaves.items()}

    return tree(30.0), [tree(norm) for norm in NORMS]


def run(clip: Any, step: Any, shapes: Shapes, dtype: str, device: Any) -> list[Any]:
    """Return each step's updates, and the norms and thresholds of its report."""
    params, gradients = jax.device_put(trees(shapes, dtype), device)
    state, results = jax.device_put(jax.jit(clip.init)(params), device), []
    for grads in gradients:
        updates, state, told = step(grads, state, params)
        results.append(jax.device_get((updates, told)))
    return results


def difference(one: Any, other: Any) -> float:
    """Return the largest difference, relative to the largest entry of `other`.

    Where one is NaN or infinite, the other must be the same, or the result is inf.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    finite = np.isfinite(one) & np.isfinite(other)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return float("inf")
    largest = np.max(np.abs(one[finite] - other[finite]), initial=0.0)
    if largest <= TINY:  # a device may flush subnormal numbers to zero
        return 0.0
    return float(largest / max(TINY, np.max(np.abs(other[finite]))))


def bar(name: str, dtype: str) -> float:
    """Return the largest difference that a recipe may show."""
    return max(BARS[dtype], WIDER.get(name, 0.0))


def worst(one: list[Any], other: list[Any]) -> tuple[float, float]:
    """Return the largest difference of two runs, and the norm of that step."""
    steps = zip(NORMS, one, other, strict=True)
    return max(
        (max(jax.tree.leaves(jax.tree.map(difference, mine, theirs))), norm)
        for norm, mine, theirs in steps
    )


def compare(name: str, shapes: Shapes, dtype: str) -> tuple[float, float]:
    """Return how far a recipe on the default device is from the CPU, and at what norm.

    Raises:
        RuntimeError: the process has no CPU backend.
    """
    clip = build(name, shapes)

    @jax.jit
    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = clip.update(grads, state, params)
        told = clipjax.metrics(state)
        endings = ("norm_raw", "norm_clipped", "/threshold")
        return updates, state, {k: told[k] for k in told if k.endswith(endings)}

    with (
        jax.numpy_dtype_promotion("standard"),  # optimizers in recipes mix dtypes
        jax.default_matmul_precision("highest"),  # by default TF32, or bfloat16 on TPUs
    ):
        on_device, on_cpu = (
            run(clip, step, shapes, dtype, device)
            for device in (jax.devices()[0], jax.devices("cpu")[0])
        )
    return worst(on_device, on_cpu)
