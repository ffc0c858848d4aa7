"""Makes norm_growth_limiter.json: the norm-growth limiter of Fira's own package.

    python -m venv torch-venv
    torch-venv/bin/pip install torch==2.13.0 numpy transformers
    torch-venv/bin/pip install --no-deps fira==1.0.2
    torch-venv/bin/python tests/golden/make_norm_growth_limiter.py

Fira limits only the part of a gradient that lies outside a low-rank subspace. Here each
gradient is a matrix of two rows: a row of ones, which at the first step is the longer
one and becomes the subspace, and the row from `gradients`. With betas and epsilon of
zero and a learning rate of one, Fira scales the second row by one and subtracts from
the zero parameters what its limiter leaves of that row.
"""

import importlib.metadata
import json
import pathlib
import platform

import numpy as np

OUTPUT = pathlib.Path(__file__).with_name("norm_growth_limiter.json")
STEPS = 60
SPIKES = {8: 10.0, 20: 100.0, 21: 100.0, 30: 0.01, 31: 1.0, 45: 3.0}
WIDTH = 4


def gradients():
    """Makes the rows: log-normal norms with spikes and a dip, sums of zero."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((STEPS, WIDTH))
    rows -= rows.mean(axis=1, keepdims=True)
    norms = np.exp(0.2 * generator.standard_normal(STEPS))
    for step, factor in SPIKES.items():
        norms[step] *= factor
    rows *= (norms / np.linalg.norm(rows, axis=1))[:, None]
    return np.asarray(rows, np.float32)


def rounded(value):
    """Gives the shortest decimal that is the same float32."""
    return float(str(np.float32(value)))


def main():
    """Asks Fira."""
    import torch  # pyright: ignore[reportMissingImports]
    from fira import FiraAdamW  # pyright: ignore[reportMissingImports]

    parameter = torch.nn.Parameter(torch.zeros(2, WIDTH))
    projection = {"rank": 1, "update_proj_gap": 10**9, "alpha": 1.0}
    group = {"params": [parameter], **projection, "proj_type": "left"}
    plain = {"lr": 1.0, "betas": (0.0, 0.0), "eps": 0.0, "no_deprecation_warning": True}
    optimizer = FiraAdamW([group], **plain)
    limited, norms = [], []
    for row in gradients():
        subspace = np.ones(WIDTH, np.float32)
        parameter.data.zero_()
        parameter.grad = torch.tensor(np.stack([subspace, row]))
        optimizer.step()
        limited.append([rounded(-value) for value in parameter[1].tolist()])
        norms.append(rounded(optimizer.state[parameter]["scaling_grad"].item()))
    golden = {
        "script": pathlib.Path(__file__).name,
        "source": "fira.FiraAdamW",
        "fira": importlib.metadata.version("fira"),
        "torch": importlib.metadata.version("torch"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "settings": {"max_growth": 1.01, "eps": 1e-8},
        "cases": [{"limited": limited, "kept_norm": norms}],
    }
    OUTPUT.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
