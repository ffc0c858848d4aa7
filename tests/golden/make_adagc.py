"""Makes adagc.json: what the AdaGC of pytorch_optimizer makes of gradients.

    python -m venv torch-venv
    torch-venv/bin/pip install torch==2.13.0 numpy
    torch-venv/bin/pip install --no-deps pytorch_optimizer==4.1.0
    torch-venv/bin/python tests/golden/make_adagc.py

With a first beta of zero, Adam's first moment is the clipped gradient itself. The
gradients are not stored: `gradients` makes them again.
"""

import importlib.metadata
import json
import pathlib
import platform

import numpy as np

OUTPUT = pathlib.Path(__file__).with_name("adagc.json")
STEPS = 60
SHAPES = ((3,), (2, 2))
# What multiplies which leaf at which step, counted from zero.
SPIKES = {(4, 0): 10.0, (25, 1): 100.0, (26, 0): 0.01, (40, 0): 10.0, (40, 1): 10.0}
CASES = (
    {"size": 0.5, "warmup_steps": 20},
    {"size": 3.0, "warmup_steps": 20},
    {"size": 3.0, "warmup_steps": 10, "lambda_abs": 0.3, "lambda_rel": 1.2},
)
NOTE = (
    "All steps are comparable: this version's warm-up divides by the global norm, not "
    "by its square. Steps count from 1. Below warmup_steps all leaves are scaled by "
    "min(1, lambda_abs/(global norm + eps)), and gamma is the least norm of the leaf "
    "after that. From warmup_steps on a leaf is scaled by "
    "min(1, lambda_rel*gamma/norm), and its norm after that enters gamma."
)


def gradients(size):
    """Makes a sequence: log-normal norms of each leaf, in random directions."""
    generator = np.random.default_rng(0)
    steps = []
    for step in range(STEPS):
        leaves = []
        for number, shape in enumerate(SHAPES):
            leaf = generator.standard_normal(shape)
            norm = size * np.exp(0.2 * generator.standard_normal())
            norm *= SPIKES.get((step, number), 1.0) / np.linalg.norm(leaf)
            leaves.append(np.asarray(norm * leaf, np.float32))
        steps.append(leaves)
    return steps


def rounded(values):
    """Gives the shortest decimals that are the same float32."""
    return [float(str(np.float32(value))) for value in values]


def run(size, **settings):
    """Gives the flat clipped gradients and the leaves' gammas after each step."""
    import torch  # pyright: ignore[reportMissingImports]
    from pytorch_optimizer import AdaGC  # pyright: ignore[reportMissingImports]

    leaves = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    plain = {"betas": (0.0, 0.999), "weight_decay": 0.0, "foreach": False}
    optimizer = AdaGC(leaves, **plain, **settings)
    clipped, gammas = [], []
    for step in gradients(size):
        for leaf, gradient in zip(leaves, step, strict=True):
            leaf.grad = torch.tensor(gradient)
        optimizer.step()
        states = [optimizer.state[leaf] for leaf in leaves]
        flat = torch.cat([state["exp_avg"].flatten() for state in states])
        clipped.append(rounded(flat.tolist()))
        gammas.append(rounded(state["gamma"].item() for state in states))
    return {"clipped": clipped, "gamma": gammas}


def main():
    """Asks pytorch_optimizer."""
    golden = {
        "script": pathlib.Path(__file__).name,
        "source": "pytorch_optimizer.AdaGC",
        "note": NOTE,
        "pytorch_optimizer": importlib.metadata.version("pytorch_optimizer"),
        "torch": importlib.metadata.version("torch"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "settings": {"beta": 0.98, "lambda_abs": 1.0, "lambda_rel": 1.05, "eps": 1e-8},
        "cases": [{**case, **run(**case)} for case in CASES],
    }
    OUTPUT.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
