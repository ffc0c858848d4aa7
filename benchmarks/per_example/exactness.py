"""How exact per-example clipping is, for models of every kind.

    python -m benchmarks.per_example.exactness [words of a kind's name]

prints the worst relative error, in float32, of the norms and of the clipped sum against
a loop over single examples, and how many parameters are used in products alone. It
needs the extras ``test`` and ``demos``.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import jax
import numpy as np

import clipjax
from clipjax.core.trees import Leaves

from .kinds import KINDS, Kind


class Errors(NamedTuple):
    """How far a model's results are from those of a loop over single examples.

    Attributes:
        norms: of the examples, relative to each.
        values: of the losses, relative to each.
        gradient: of the clipped sum, relative to its norm.
    """

    norms: float
    values: float
    gradient: float


def wide(tree: Any) -> dict[str, np.ndarray]:
    """Gives the floating parameters by name, in double precision."""
    arrays = Leaves.of(tree).by_name
    return {name: np.asarray(leaf, np.float64) for name, leaf in arrays.items()}


def norm(arrays: Any) -> float:
    """Gives the L2 norm of several arrays together."""
    return float(np.sqrt(sum(np.sum(array**2) for array in arrays)))


def has_aux(loss: Any, params: Any, batch: Any) -> bool:
    """Tells whether a loss gives more than a number."""

    def first(params: Any, batch: Any) -> Any:
        return loss(params, jax.tree.map(lambda leaf: leaf[0], batch))

    return isinstance(jax.eval_shape(first, params, batch), tuple)


def measure(kind: Kind, method: str = "ghost") -> Errors:
    """Compares norms, values and the clipped sum with a loop over single examples."""
    params, loss, batch = kind()
    more = has_aux(loss, params, batch)
    alone = loss if not more else lambda *arguments: loss(*arguments)[0]
    floating = Leaves.of(params)

    def of_floating(arrays: Any, batch: Any, row: int) -> Any:
        example = jax.tree.map(lambda leaf: leaf[row], batch)
        return alone(floating.tree_by_name(arrays), example)

    single = jax.jit(jax.value_and_grad(of_floating))
    size = jax.tree.leaves(batch)[0].shape[0]
    found = [single(floating.by_name, batch, row) for row in range(size)]
    losses = np.array([float(value) for value, _ in found])
    gradients = [wide(gradient) for _, gradient in found]
    norms = np.array([norm(gradient.values()) for gradient in gradients])

    # Half of the examples are clipped.
    limit = float(np.median(norms))
    clip = clipjax.clipped_grad(
        *(loss, 0, more),
        keep_batch_dim=False,
        method=method,
        l2_clip_norm=limit,
        return_values=True,
        return_grad_norms=True,
    )
    total, extra = jax.jit(clip.__call__)(params, batch)

    factors = np.minimum(1, limit / norms)
    exact = {
        name: sum(c * g[name] for c, g in zip(factors, gradients, strict=True))
        for name in gradients[0]
    }
    difference = [array - exact[name] for name, array in wide(total).items()]
    return Errors(
        float(np.max(np.abs(extra.grad_norms - norms) / norms)),
        float(np.max(np.abs(extra.values - losses) / np.abs(losses))),
        norm(difference) / norm(exact.values()),
    )


def sites(kind: Kind) -> tuple[int, int]:
    """Counts the parameters that are used in products alone, and the others."""
    params, loss, batch = kind()
    clip = clipjax.clipped_grad(
        *(loss, 0, has_aux(loss, params, batch)), l2_clip_norm=1.0, keep_batch_dim=False
    )
    lines = clip.plan(params, batch).splitlines()
    dense = sum(": gradients per example" in line for line in lines)
    return len(Leaves.of(params).arrays) - dense, dense


def main() -> None:
    """Prints a table of the kinds whose names have all the words given."""
    print("| kind | error of norms | of the clipped sum | at sites | dense |")
    print("|---|---|---|---|---|")
    for name, kind in KINDS.items():
        title = name.replace("_", " ")
        if all(word in title for word in sys.argv[1:]):
            errors, (without, dense) = measure(kind), sites(kind)
            cells = f"{errors.norms:.0e} | {errors.gradient:.0e} | {without} | {dense}"
            print(f"| {title} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
