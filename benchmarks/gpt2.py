"""A tree with the shapes of GPT-2 small, and gradients made the way training does."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

WIDTH, LAYERS, VOCABULARY, CONTEXT = 768, 12, 50257, 1024
TOKENS = 8


def shapes() -> dict[str, tuple[int, ...]]:
    """Gives the 148 leaves, 124 million parameters."""
    tree: dict[str, tuple[int, ...]] = {
        "wte": (VOCABULARY, WIDTH),
        "wpe": (CONTEXT, WIDTH),
    }
    for layer in range(LAYERS):
        block = {
            "ln_1/scale": (WIDTH,),
            "ln_1/bias": (WIDTH,),
            "attn/qkv": (WIDTH, 3 * WIDTH),
            "attn/qkv_bias": (3 * WIDTH,),
            "attn/out": (WIDTH, WIDTH),
            "attn/out_bias": (WIDTH,),
            "ln_2/scale": (WIDTH,),
            "ln_2/bias": (WIDTH,),
            "mlp/up": (WIDTH, 4 * WIDTH),
            "mlp/up_bias": (4 * WIDTH,),
            "mlp/down": (4 * WIDTH, WIDTH),
            "mlp/down_bias": (WIDTH,),
        }
        tree |= {f"h{layer:02d}/{name}": shape for name, shape in block.items()}
    return tree | {"ln_f/scale": (WIDTH,), "ln_f/bias": (WIDTH,)}


def parameters(dtype: Any) -> dict[str, jax.Array]:
    """Makes the parameters, all alike."""
    return {name: jnp.full(shape, 0.01, dtype) for name, shape in shapes().items()}


def gradients(parameters: dict[str, jax.Array], shift: jax.Array) -> Any:
    """Makes each matrix's gradient as a product over a few tokens.

    XLA cannot fold a matrix product into what follows, so that the gradient is a
    temporary of the step, as it is in training. The tokens are few, so that making it
    does not hide what the clip costs.
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
