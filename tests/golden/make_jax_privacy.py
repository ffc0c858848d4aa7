"""Makes jax_privacy.json: what jax_privacy's clipped_grad makes of a small loss.

    python -m venv privacy-venv
    privacy-venv/bin/pip install jax==0.10.2 jax-privacy==2.0.0 optax==0.2.8
    privacy-venv/bin/python tests/golden/make_jax_privacy.py

The results are stored, so that tests compare with this release whichever is installed.
The arguments are not stored: `arguments` makes them again.
"""

import importlib.metadata
import inspect
import json
import pathlib
import platform

import numpy as np

OUTPUT = pathlib.Path(__file__).with_name("jax_privacy.json")
BATCH = 6
SHAPES = {"kernel": (4, 3), "bias": (3,)}
# What is in OWN says how the arguments are made; the rest is passed on.
CASES = (
    {"l2_clip_norm": 1.0},
    {"l2_clip_norm": 0.0},
    {"l2_clip_norm": float("inf")},
    {"l2_clip_norm": 1.0, "normalize_by": 4.0},
    {"l2_clip_norm": 1.0, "keep_batch_dim": False},
    {"l2_clip_norm": 1.0, "microbatch_size": 2},
    {"l2_clip_norm": 1.0, "microbatch_size": 1, "normalize_by": 6.0},
    {"l2_clip_norm": 1.0, "return_values": True},
    {"l2_clip_norm": 1.0, "return_grad_norms": True},
    {"l2_clip_norm": 1.0, "has_aux": True},
    {
        "l2_clip_norm": 1.0,
        "has_aux": True,
        "keep_batch_dim": False,
        "return_values": True,
        "return_grad_norms": True,
        "microbatch_size": 3,
    },
    {"l2_clip_norm": 1.0, "argnums": [0, 3], "return_grad_norms": True},
    {"l2_clip_norm": 1.0, "argnums": [0], "return_values": True},
    {"l2_clip_norm": 1.0, "prng_argnum": 4, "return_values": True},
    {"l2_clip_norm": 1.0, "padding": [1, 4], "return_grad_norms": True},
    {"l2_clip_norm": 1.0, "padding": [0, 1, 2, 3, 4, 5]},
    {"l2_clip_norm": 1.0, "nan_row": 2, "return_values": True},
    {"l2_clip_norm": 1.0, "nan_row": 2, "microbatch_size": 2},
    {"l2_clip_norm": 1.0, "nan_row": 2, "nan_safe": False},
    {"l2_clip_norm": 1.0, "narrow": True, "dtype": "float32"},
    {"l2_clip_norm": 1.0, "narrow": True},
    {"l2_clip_norm": 1.0, "none": True},
)
RELATIONS = ("ADD_OR_REMOVE_ONE", "REPLACE_ONE", "REPLACE_SPECIAL")
OWN = ("padding", "nan_row", "narrow", "none")


def arguments(case):
    """Makes the loss's arguments: parameters, inputs, targets, an offset, a key."""
    import jax
    import jax.numpy as jnp

    generator = np.random.default_rng(0)
    draw = lambda *shape: generator.standard_normal(shape)  # noqa: E731
    params = {name: draw(*shape) for name, shape in SHAPES.items()}
    inputs, targets, offset = draw(BATCH, 4), draw(BATCH, 3), draw(1)
    inputs[3:] *= 0.05
    targets[3:] *= 0.05
    if "nan_row" in case:
        inputs[case["nan_row"]] = np.nan
    dtype = jnp.bfloat16 if case.get("narrow") else jnp.float32
    arrays = jax.tree.map(
        lambda array: jnp.asarray(array, dtype), (params, inputs, targets, offset)
    )
    if case.get("none"):
        arrays[0]["none"] = None
    return *arrays, jax.random.key(0)


def loss_of(case):
    """Makes a loss of the arguments that a case gives."""
    import jax
    import jax.numpy as jnp

    def loss(params, inputs, targets, offset, key=None):
        if key is not None:
            kept = jax.random.bernoulli(key, 0.5, inputs.shape)
            inputs = jnp.where(kept, inputs, 0)
        hidden = inputs @ params["kernel"] + params["bias"].reshape(
            (1,) * (inputs.ndim - 1) + (3,)
        )
        errors = (hidden - targets) * 0.1 + jnp.sum(offset)
        value = jnp.sum(errors * errors)
        return (value, {"errors": errors}) if case.get("has_aux") else value

    return loss


def run(clipped_grad, case):
    """Clips with either library: the gradient and the auxiliary outputs."""
    import jax.numpy as jnp

    options = {name: value for name, value in case.items() if name not in OWN}
    if "argnums" in options:
        options["argnums"] = tuple(options["argnums"])
    if "dtype" in options:
        options["dtype"] = jnp.dtype(options["dtype"])
    grad = clipped_grad(loss_of(case), batch_argnums=(1, 2), **options)
    given = arguments(case)
    if "prng_argnum" not in case:
        given = given[:4]
    padding = {}
    if "padding" in case:
        rows = np.isin(np.arange(BATCH), case["padding"])
        padding = {"is_padding_example": jnp.asarray(rows)}
    return grad, grad(*given, **padding)


def stored(tree):
    """Writes a tree as lists of rounded numbers, by path."""
    import jax

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path): {
            "dtype": str(leaf.dtype),
            "shape": list(leaf.shape),
            "entries": [repr(float(x)) for x in np.asarray(leaf, np.float64).ravel()],
        }
        for path, leaf in leaves
    }


def main():
    """Asks jax_privacy."""
    import dp_accounting  # pyright: ignore[reportMissingImports]
    from jax_privacy import clipping  # pyright: ignore[reportMissingImports]

    cases = []
    for case in CASES:
        grad, found = run(clipping.clipped_grad, case)
        relations = dp_accounting.NeighboringRelation
        sensitivity = {name: grad.sensitivity(relations[name]) for name in RELATIONS}
        cases.append(
            {"case": case, "found": stored(found), "sensitivity": sensitivity}
            | {"default_sensitivity": grad.sensitivity()}
        )
    signature = inspect.signature(clipping.clipped_grad)
    golden = {
        "script": pathlib.Path(__file__).name,
        "source": "jax_privacy.clipping.clipped_grad",
        "jax_privacy": importlib.metadata.version("jax-privacy"),
        "jax": importlib.metadata.version("jax"),
        "optax": importlib.metadata.version("optax"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "parameters": {
            name: {
                "kind": parameter.kind.name,
                "default": "required"
                if parameter.default is parameter.empty
                else "a function"
                if callable(parameter.default)
                else parameter.default,
            }
            for name, parameter in signature.parameters.items()
        },
        "cases": cases,
    }
    OUTPUT.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
