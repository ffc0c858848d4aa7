"""Trees with the shapes of GPT-2, and gradients that are products, as in training."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

WIDTH, LAYERS, VOCABULARY, CONTEXT = 768, 12, 50257, 1024
TOKENS = 8


def shapes(
    width: int = WIDTH, layers: int = LAYERS, vocabulary: int = VOCABULARY
) -> dict[str, tuple[int, ...]]:
    """Return the shapes by name: by default 148 leaves, 124 million parameters."""
    tree: dict[str, tuple[int, ...]] = {
        "wte": (vocabulary, width),
        "wpe": (CONTEXT, width),
    }
    for layer in range(layers):
        block = {
            "ln_1/scale": (width,),
            "ln_1/bias": (width,),
            "attn/qkv": (width, 3 * width),
            "attn/qkv_bias": (3 * width,),
            "attn/out": (width, width),
            "attn/out_bias": (width,),
            "ln_2/scale": (width,),
            "ln_2/bias": (width,),
            "mlp/up": (width, 4 * width),
            "mlp/up_bias": (4 * width,),
            "mlp/down": (4 * width, width),
            "mlp/down_bias": (width,),
        }
        tree |= {f"h{layer:02d}/{name}": shape for name, shape in block.items()}
    return tree | {"ln_f/scale": (width,), "ln_f/bias": (width,)}


def parameters(shapes: dict[str, tuple[int, ...]], dtype: Any) -> dict[str, jax.Array]:
    """Return parameters of these shapes, all equal."""
    return {name: jnp.full(shape, 0.01, dtype) for name, shape in shapes.items()}


def gradients(parameters: dict[str, jax.Array], shift: jax.Array) -> Any:
    """Compute each matrix's gradient as a product over a few tokens.

    XLA cannot fuse a matrix product into what follows, so the gradient is a temporary
    buffer of the step, as in training. The tokens are few, so that the product does not
    hide the cost of the clip.
    """
    grads = {}
    for number, (name, leaf) in enumerate(parameters.items()):
        if leaf.ndim == 1:
            grads[name] = leaf * shift.astype(leaf.dtype)
            continue
        inputs, errors = (
            jnp.sin(jnp.arange(TOKENS * size) * (0.1 + 0.01 * number) + shift)
            .reshape(TOKENS, size)
            .astype(leaf.dtype)
            for size in leaf.shape
        )
        grads[name] = inputs.T @ errors
    return grads
