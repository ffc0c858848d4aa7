"""Makes stable_adamw.json: the parameters after each step of optimi's StableAdamW.

    python -m venv torch-venv
    torch-venv/bin/pip install torch==2.13.0 numpy
    torch-venv/bin/pip install --no-deps torch-optimi==0.3.3
    torch-venv/bin/python tests/golden/make_stable_adamw.py

The first parameters and the gradients are not stored: `parameters` and `gradients` make
them again. With the tiny gradients the second moment lies below the floor of eps².
"""

import importlib.metadata
import itertools
import json
import pathlib
import platform

import numpy as np

OUTPUT = pathlib.Path(__file__).with_name("stable_adamw.json")
STEPS = 10
SPIKE = 6
SHAPES = ((3,), (2, 2))
SIZES = (1.0, 3e-7)
WEIGHT_DECAYS = (0.0, 0.1)
SETTINGS = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6}


def parameters():
    """Makes the parameters that every case starts from."""
    generator = np.random.default_rng(0)
    return [np.asarray(generator.standard_normal(s), np.float32) for s in SHAPES]


def gradients(size):
    """Makes the gradients of every step; those of one step are 100 times larger."""
    generator = np.random.default_rng(1)
    return [
        [
            np.asarray(
                size * (100.0 if step == SPIKE else 1.0) * generator.normal(size=shape),
                np.float32,
            )
            for shape in SHAPES
        ]
        for step in range(STEPS)
    ]


def rounded(value):
    """Gives the shortest decimal that is the same float32."""
    return float(str(np.float32(value)))


def run(size, weight_decay):
    """Gives the flat parameters after each step."""
    import torch  # pyright: ignore[reportMissingImports]
    from optimi import StableAdamW  # pyright: ignore[reportMissingImports]

    leaves = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in parameters()]
    plain = {"foreach": False, "triton": False}
    optimizer = StableAdamW(leaves, weight_decay=weight_decay, **SETTINGS, **plain)
    steps = []
    for step in gradients(size):
        for leaf, gradient in zip(leaves, step, strict=True):
            leaf.grad = torch.tensor(gradient)
        optimizer.step()
        flat = torch.cat([leaf.detach().flatten() for leaf in leaves])
        steps.append([rounded(value) for value in flat.tolist()])
    return steps


def main():
    """Asks optimi, with and without weight decay, for usual and tiny gradients."""
    cases = [
        {"size": size, "weight_decay": decay, "parameters": run(size, decay)}
        for size, decay in itertools.product(SIZES, WEIGHT_DECAYS)
    ]
    golden = {
        "script": pathlib.Path(__file__).name,
        "source": "optimi.StableAdamW",
        "torch-optimi": importlib.metadata.version("torch-optimi"),
        "torch": importlib.metadata.version("torch"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "settings": SETTINGS,
        "cases": cases,
    }
    OUTPUT.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
